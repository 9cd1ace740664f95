"""The LLaMA family without an oracle: packing, layouts, methods, layers that differ, the loss in chunks, counts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax import masks, methods
from peftjax.errors import UserError
from peftjax.loading import from_config
from peftjax.models import moe, token_loss
from peftjax.models.layers import Runtime
from peftjax.train.flops import count_flops
from tests.models.decoder_models import LLAMA, assert_close, random_model, token_ids, with_method

GEMMA = {**LLAMA, "model_type": "gemma2", "sliding_window": 3, "head_dim": 6}
MIXTRAL = {**LLAMA, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
DECI = {**LLAMA, "model_type": "deci", "num_key_value_heads_per_layer": [6, 2, 3]}
METHODS = {
  "lora": methods.LoRA(rank=3, targets=("q_proj", "o_proj", "down_proj", "embed_tokens")),
  "ia3": methods.IA3(),
  "houlsby": methods.Houlsby(bottleneck_dim=5),
  "prompt": methods.Prompt(num_virtual_tokens=4),
  "layernorm": methods.LayerNormTuning(),
}


@pytest.mark.parametrize("config", [LLAMA, GEMMA], ids=["llama", "gemma2"])
def test_packed_sequences_equal_unpacked_ones(config):
  model = random_model(config)
  first, second = token_ids(1, 5, seed=1), token_ids(1, 7, seed=2)
  packed = np.concatenate([first, second, np.zeros((1, 2), int)], axis=1)
  segments = np.array([[1] * 5 + [2] * 7 + [0] * 2])
  positions = np.array([[*range(5), *range(7), 0, 0]])
  found = model(input_ids=packed, segment_ids=segments, position_ids=positions)["logits"]
  assert_close(found[:, :5], model(input_ids=first)["logits"])
  assert_close(found[:, 5:12], model(input_ids=second)["logits"])
  restarted = model(input_ids=packed, segment_ids=segments)["logits"]
  np.testing.assert_array_equal(restarted[:, :12], found[:, :12])


@pytest.mark.parametrize("name", METHODS)
def test_methods_act_the_same_scanned_and_unrolled(name):
  model = random_model(GEMMA)
  ids = token_ids()
  plain = np.asarray(model(input_ids=ids)["logits"])
  adapted = with_method(model, METHODS[name])
  found = np.asarray(adapted(input_ids=ids)["logits"])
  assert found.shape == plain.shape
  if adapted.adapter_paths():
    assert np.abs(found - plain).max() > 0.1
  assert_close(adapted.unrolled()(input_ids=ids)["logits"], found)


def test_a_method_on_one_layer_unrolls_the_model_and_merges():
  model = random_model(LLAMA)
  ids = token_ids()
  adapted = with_method(model, methods.LoRA(rank=2, targets=("q_proj", "gate_proj"), layers=(1,)))
  assert sorted(adapted.params["model"]["layers"]) == ["0", "1", "2"]
  assert "lora_a" not in adapted.params["model"]["layers"]["0"]["self_attn"]["q_proj"]
  assert_close(adapted.merge()(input_ids=ids)["logits"], adapted(input_ids=ids)["logits"])


def test_layers_with_different_key_heads_equal_full_attention_with_repeated_heads():
  grouped = random_model(DECI)
  full = random_model({**LLAMA, "num_key_value_heads": 6}, runtime=Runtime(scan_layers=False))
  params = masks.flatten(grouped.params)
  for path, leaf in params.items():
    if "k_proj" in path or "v_proj" in path:
      heads = leaf.reshape(leaf.shape[0], -1, 6)
      params[path] = jnp.repeat(heads, 6 // heads.shape[1], axis=1).reshape(leaf.shape[0], -1)
  ids = token_ids()
  expected = full.with_params(masks.unflatten(params))(input_ids=ids)["logits"]
  assert_close(grouped(input_ids=ids)["logits"], expected)


def test_layers_that_differ_stay_unrolled_and_take_methods():
  model = random_model(DECI)
  for name in ("lora", "houlsby"):
    adapted = with_method(model, METHODS[name])
    assert np.abs(adapted(input_ids=token_ids())["logits"] - model(input_ids=token_ids())["logits"]).max() > 0.1
  model = from_config(DECI).add(methods.LastK(k=1))
  assert model.stacks == {}
  groups = masks.flatten(model.labels())
  assert {path.split(".")[2] for path, group in groups.items() if group == "last_k"} == {"2"}


def test_every_expert_has_its_own_adapter_and_merges():
  model = random_model(MIXTRAL)
  adapted = with_method(model, methods.LoRA(rank=2, targets=("w1", "w2", "gate"), bias="none"))
  experts = adapted.params["model"]["layers"]["block_sparse_moe"]["experts"]
  assert experts["w1"]["kernel"].shape == (3, 4, 20, 28)
  assert experts["w2"]["lora_a"].shape == (3, 4, 28, 2)
  assert len({float(one) for one in experts["w1"]["lora_a"][..., 0, 0].ravel()}) == 12
  ids = token_ids()
  found = np.asarray(adapted(input_ids=ids)["logits"])
  assert np.abs(found - model(input_ids=ids)["logits"]).max() > 0.1
  assert_close(adapted.unrolled()(input_ids=ids)["logits"], found)
  assert_close(adapted.merge()(input_ids=ids)["logits"], found)
  assert_close(adapted.unrolled().merge()(input_ids=ids)["logits"], found)


def test_experts_of_a_layer_are_treated_alike_and_layers_need_not_be():
  model = random_model(MIXTRAL)
  adapted = model.add(methods.LoRA(rank=2, targets=("w1",), layers=(1,)))
  assert "lora_a" in adapted.params["model"]["layers"]["1"]["block_sparse_moe"]["experts"]["w1"]
  with pytest.raises(UserError, match="treat them alike"):
    model.add(methods.LoRA(rank=2, targets=("experts.0.w1",)))


def test_blocks_hold_every_token_once_for_each_of_its_experts():
  random = np.random.default_rng(0)
  for tokens, chosen, count in ((1, 2, 5), (13, 3, 4), (40, 1, 3), (6, 2, 64)):
    experts = np.stack([random.permutation(count)[:chosen] for _ in range(tokens)])
    rows, owners, places = (np.asarray(x) for x in moe.into_blocks(jnp.asarray(experts), count))
    for token in range(tokens):
      for choice in range(chosen):
        assert rows.ravel()[places[token, choice]] == token
        assert owners[places[token, choice] // rows.shape[1]] == experts[token, choice]
    assert (rows < tokens).sum() == tokens * chosen


def losses(model, ids, targets, params=None):
  outputs = model.forward(model.params if params is None else params, {"input_ids": ids, "targets": targets})
  assert "logits" not in outputs
  return outputs["token_losses"]


@pytest.mark.parametrize("tied", [False, True])
def test_chunked_loss_equals_the_plain_one_in_value_and_gradient(monkeypatch, tied):
  monkeypatch.setattr(token_loss, "_CHUNK_ELEMENTS", 2 * 61 * 4)  # chunks of 4 of 9 positions
  model = random_model({**LLAMA, "tie_word_embeddings": tied})
  ids, targets = jnp.asarray(token_ids()), jnp.asarray(token_ids(seed=5)).at[0, 3:6].set(token_loss.IGNORED)

  def plain(params):
    logits = model.forward(params, {"input_ids": ids})["logits"]
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    return jnp.where(targets == token_loss.IGNORED, 0.0, -chosen)

  assert_close(losses(model, ids, targets), plain(model.params))
  expected = jax.grad(lambda params: plain(params).sum())(model.params)
  found = jax.grad(lambda params: losses(model, ids, targets, params).sum())(model.params)
  jax.tree.map(assert_close, found, expected)


@pytest.mark.parametrize("targets", [("q_proj",), ("lm_head",), ("q_proj", "lm_head", "embed_tokens")])
@pytest.mark.parametrize("tied", [False, True])
def test_chunked_loss_of_a_frozen_head_and_of_adapters_on_it(monkeypatch, tied, targets):
  """Gradients of what trains alone, each token's loss with a weight of its own."""
  monkeypatch.setattr(token_loss, "_CHUNK_ELEMENTS", 2 * 61 * 4)
  if tied and "lm_head" in targets:
    pytest.skip("a tied head has no module of its own")
  model = with_method(random_model({**LLAMA, "tie_word_embeddings": tied}), methods.LoRA(rank=2, targets=targets))
  ids, wanted = jnp.asarray(token_ids()), jnp.asarray(token_ids(seed=5)).at[0, 3:6].set(token_loss.IGNORED)
  weights = jnp.linspace(0.3, 1.7, ids.size).reshape(ids.shape)
  trainable, frozen = masks.partition(model.params, model.labels())

  def chunked(trainable, frozen):
    return (weights * losses(model, ids, wanted, masks.combine(trainable, frozen))).sum()

  def plain(trainable, frozen):
    logits = model.forward(masks.combine(trainable, frozen), {"input_ids": ids})["logits"]
    return (weights * token_loss.cross_entropy(logits, wanted)["token_losses"]).sum()

  jax.tree.map(assert_close, jax.grad(chunked)(trainable, frozen), jax.grad(plain)(trainable, frozen))


def test_a_frozen_head_computes_its_logits_once():
  model = random_model(LLAMA).add(methods.LoRA(rank=2, targets=("q_proj",)))
  ids = jnp.asarray(token_ids())
  trainable, frozen = masks.partition(model.params, model.labels())

  def flops(function):
    return count_flops(jax.grad(function), trainable, frozen)

  def chunked(trainable, frozen):
    return losses(model, ids, ids, masks.combine(trainable, frozen)).sum()

  def plain(trainable, frozen):
    logits = model.forward(masks.combine(trainable, frozen), {"input_ids": ids})["logits"]
    return token_loss.cross_entropy(logits, ids)["token_losses"].sum()

  assert flops(chunked) == flops(plain)


@pytest.mark.parametrize(("rows", "length", "vocabulary"), [(2, 256, 50257), (8, 1024, 32000), (1, 7, 11)])
def test_positions_are_divided_evenly(rows, length, vocabulary):
  count = token_loss.chunk_count(rows, length, vocabulary)
  chunk = -(-length // count)
  assert chunk * rows * vocabulary <= token_loss._CHUNK_ELEMENTS or chunk == 1
  assert count * chunk - length < count


def test_chunked_loss_sees_prompts_and_adapters_on_the_head():
  model = random_model(LLAMA)
  ids, targets = jnp.asarray(token_ids()), jnp.asarray(token_ids(seed=5))
  for method in (methods.Prompt(num_virtual_tokens=3), methods.LoRA(rank=2, targets=("lm_head",))):
    adapted = with_method(model, method)
    expected = token_loss.cross_entropy(adapted(input_ids=ids)["logits"], targets)
    assert_close(losses(adapted, ids, targets), expected["token_losses"])


@pytest.mark.parametrize("named", [None, 0, 3])
def test_a_text_is_classified_by_its_last_token_whatever_fills_up(named):
  """The tokenizer's padding token need not be config.json's."""
  labels = {"architectures": ["LlamaForSequenceClassification"], "num_labels": 3}
  model = random_model({**LLAMA, **labels, "pad_token_id": named})
  ids = np.array([[5, 7, 9, 4]])
  wanted = model(input_ids=ids, attention_mask=np.ones_like(ids))["logits"]
  for filling in (0, 3, 11):
    longer, mask = (np.pad(one, ((0, 0), (0, 3)), constant_values=by) for one, by in ((ids, filling), (ids * 0 + 1, 0)))
    assert_close(model(input_ids=longer, attention_mask=mask)["logits"], wanted)


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"num_key_value_heads": 4}, "6 query heads do not divide among 4"),
    ({"rope_scaling": {"type": "linaer", "factor": 2.0}}, "did you mean 'linear'"),
    ({"rope_scaling": {"type": "linear"}}, "needs a factor"),
    ({"hidden_act": "silo"}, "did you mean 'silu'"),
  ],
)
def test_impossible_configs_are_refused(change, words):
  with pytest.raises(UserError, match=words):
    from_config({**LLAMA, **change})
