"""The losses of language models: which tokens count, how micro-batches add up, and what the compiled step costs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax import masks, methods, tasks
from peftjax.errors import UserError
from peftjax.loading import from_config
from peftjax.tasks.causal_lm import IGNORED, CausalLM, targets_of
from peftjax.tasks.seq2seq_lm import Seq2SeqLM
from tests.models.decoder_models import LLAMA, assert_close, random_model, token_ids

T5 = {"model_type": "t5", "vocab_size": 61, "d_model": 20, "d_kv": 6, "d_ff": 28, "num_layers": 2, "num_heads": 3}

KEY = jax.random.key(0)


def log_probs(logits, ids):
  return np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), ids[..., None], axis=-1)[..., 0]


def test_targets_are_the_next_tokens_within_a_segment():
  ids = jnp.arange(10, 18)[None]
  batch = {"input_ids": ids, "segment_ids": jnp.array([[1, 1, 1, 2, 2, 2, 0, 0]])}
  labels = jnp.where(batch["segment_ids"] > 0, ids, IGNORED)
  assert targets_of({**batch, "labels": labels}).tolist() == [[11, 12, -100, 14, 15, -100, -100, -100]]
  mask = jnp.array([[1, 1, 1, 1, 1, 0, 0, 0]])
  assert targets_of({"input_ids": ids, "attention_mask": mask}).tolist() == [[11, 12, 13, 14, -100, -100, -100, -100]]


def test_causal_loss_is_the_mean_over_tokens_with_labels():
  model, task = random_model(LLAMA), CausalLM()
  ids = token_ids(3, 8)
  labels = np.where(np.arange(8) >= 3, ids, IGNORED)
  labels[1, 5:] = IGNORED
  batch = {"input_ids": ids, "labels": labels, "weight": np.array([1.0, 1.0, 0.0], np.float32)}
  expected = log_probs(model(input_ids=ids)["logits"][:, :-1], ids[:, 1:])
  counted = (labels[:, 1:] != IGNORED) * batch["weight"][:, None]

  def forward(inputs):
    return model.forward(model.params, inputs)

  loss, weight, _ = task.loss(forward, jax.tree.map(jnp.asarray, batch), KEY)
  assert float(weight) == counted.sum() == 7
  assert_close(loss / weight, -(expected * counted).sum() / 7)
  predictions = jax.tree.map(np.asarray, task.predict(forward, jax.tree.map(jnp.asarray, batch)))
  metrics = task.metrics(predictions)
  assert metrics["loss"] == pytest.approx(float(loss / weight), rel=1e-6)
  assert metrics["perplexity"] == pytest.approx(np.exp(metrics["loss"]))
  best = np.asarray(model(input_ids=ids)["logits"])[:, :-1].argmax(-1) == ids[:, 1:]
  assert metrics["accuracy"] == pytest.approx((best * counted).sum() / 7)


def test_sequence_to_sequence_loss_reads_labels_behind_the_start_token():
  model, task = random_model(T5), Seq2SeqLM()
  ids, labels = token_ids(2, 6), token_ids(2, 5, seed=3)
  padded = np.where(np.arange(5) < np.array([[5], [3]]), labels, IGNORED)
  batch = {"input_ids": ids, "labels": padded, "weight": np.ones(2, np.float32)}
  batch = jax.tree.map(jnp.asarray, batch)
  loss, weight, _ = task.loss(lambda inputs: model.forward(model.params, inputs), batch, KEY)
  decoder_ids = np.concatenate([np.zeros((2, 1), int), np.where(padded < 0, 0, padded)[:, :-1]], axis=1)
  logits = model(input_ids=ids, decoder_input_ids=decoder_ids)["logits"]
  expected = -(log_probs(logits, np.maximum(padded, 0)) * (padded >= 0)).sum()
  assert float(weight) == 8
  assert_close(loss, expected)


def test_settings_of_classifiers_are_refused():
  with pytest.raises(UserError, match="label_smoothing"):
    tasks.make("causal_lm", (), 0.1)


def compiled_step(vocabulary, length, method):
  shape = {**LLAMA, "vocab_size": vocabulary, "num_hidden_layers": 1, "max_position_embeddings": 4096}
  model = from_config({**shape, "num_attention_heads": 2, "head_dim": 10}).add(method)
  trainable, frozen = masks.partition(model.params, model.labels())
  ids = jax.ShapeDtypeStruct((1, length), jnp.int32)
  weight = jax.ShapeDtypeStruct((1,), jnp.float32)

  def loss(trainable, frozen, batch):
    params = masks.combine(trainable, frozen)
    total, count, _ = CausalLM().loss(lambda inputs: model.forward(params, inputs), batch, KEY)
    return total / count

  return jax.jit(jax.grad(loss)).lower(trainable, frozen, {"input_ids": ids, "weight": weight}).compile()


def test_temporaries_depend_on_neither_vocabulary_nor_length():
  vocabulary, method = 128_000, methods.LoRA(rank=2)
  short, long = (compiled_step(vocabulary, length, method) for length in (256, 1024))
  whole = 4 * 1024 * vocabulary
  assert long.memory_analysis().temp_size_in_bytes < whole / 3
  grown = long.memory_analysis().temp_size_in_bytes - short.memory_analysis().temp_size_in_bytes
  assert grown < whole / 20
  few = compiled_step(vocabulary // 4, 1024, method)
  assert long.memory_analysis().temp_size_in_bytes - few.memory_analysis().temp_size_in_bytes < whole / 20


def test_a_frozen_head_costs_no_weight_gradient():
  vocabulary, length = 128_000, 128  # one chunk: of a loop, the compiler counts one round
  frozen, full = (compiled_step(vocabulary, length, method) for method in (methods.LoRA(rank=2), methods.Full()))
  head = 2 * length * 20 * vocabulary
  assert frozen.cost_analysis()["flops"] < full.cost_analysis()["flops"] - 0.9 * head
