"""Every method on Whisper and Wav2Vec2: it acts, its leaves get gradients, or the reason why not; what LoRA costs."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax import masks, methods
from peftjax.errors import UserError
from peftjax.loading import from_config, initialise
from peftjax.testing import bases
from peftjax.train.flops import count_flops
from tests.data.recordings import WHISPER
from tests.methods import matrix

TASKS = {"speech": "speech_recognition", "classes": "audio_classification", "letters": "ctc"}
CONFIG = {**WHISPER, "vocab_size": 31, "decoder_start_token_id": 1, "pad_token_id": 0, "eos_token_id": 0}
SETTINGS = {**matrix.SETTINGS, "vpt_deep": {"num_virtual_tokens": 3, "deep": True}}
WAV2VEC2 = {
  "model_type": "wav2vec2", "architectures": ["Wav2Vec2ForCTC"], "vocab_size": 31, "hidden_size": 12,
  "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "conv_dim": [16, 12],
  "conv_kernel": [9, 4], "conv_stride": [5, 3], "num_conv_pos_embeddings": 6, "num_conv_pos_embedding_groups": 2,
  "feat_extract_norm": "layer", "pad_token_id": 0,
}  # fmt: skip
WITHOUT = {"trainable_tokens": "this model declares no word embeddings"}
NAMES = [*(name for name in matrix.NAMES if name not in WITHOUT), "vpt_deep"]
RANDOM = np.random.default_rng(0)
FEATURES = RANDOM.normal(size=(2, 16, 20)).astype(np.float32)
WAVES = RANDOM.normal(size=(2, 311)).astype(np.float32)
IDS = RANDOM.integers(2, 31, (2, 5))


def make(name):
  if name == "vpt_deep":
    return methods.Prompt(**SETTINGS[name])
  return methods.Patterns(train=("q_proj",)) if name == "patterns" else matrix.make(name, SETTINGS.get(name, {}))


def inputs(kind):
  if kind == "letters":
    return {"input_values": WAVES}
  return {"input_features": FEATURES, **({"decoder_input_ids": IDS} if kind == "speech" else {})}


@functools.cache
def base(kind):
  labels = 5 if kind == "classes" else 0
  config = WAV2VEC2 if kind == "letters" else CONFIG
  return initialise(from_config(config, task=TASKS[kind], num_labels=labels), jax.random.key(0))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", TASKS)
def test_a_method_acts_and_every_leaf_of_it_has_a_gradient(kind, name):
  model = base(kind).add(make(name), jax.random.key(1))
  model = bases.replaced(model, bases.noise_on(bases.trainable(model), seed=1, scale=0.05))
  trainable, frozen = masks.partition(model.params, model.labels())

  def loss(leaves):
    outputs = model.forward(masks.combine(leaves, frozen), inputs(kind))
    return (outputs["logits"] ** 2).sum(), outputs

  gradients, outputs = jax.jit(jax.grad(loss, has_aux=True))(trainable)
  plain = base(kind)(**inputs(kind))
  assert {key: one.shape for key, one in outputs.items()} == {key: one.shape for key, one in plain.items()}
  assert np.abs(outputs["logits"] - plain["logits"]).max() > 1e-6
  # Leaves that no output depends on: keys' biases, which softmax does not see, and what Wav2Vec2 puts in masked places.
  unread = ("k_proj.bias", "masked_spec_embed")
  for path, gradient in masks.flatten(gradients).items():
    assert path.endswith(unread) or np.abs(gradient).max() > 1e-9, path


@pytest.mark.parametrize(("name", "why"), WITHOUT.items())
def test_a_method_that_does_not_apply_says_why(name, why):
  with pytest.raises(UserError, match=why):
    base("speech").add(make(name))


def test_flops_of_lora_on_all_linears_are_at_most_seven_tenths_of_full():
  sizes = {"d_model": 384, "encoder_attention_heads": 6, "decoder_attention_heads": 6, "encoder_ffn_dim": 1536,
           "decoder_ffn_dim": 1536, "max_source_positions": 48, "num_mel_bins": 80}  # fmt: skip
  model = from_config({**CONFIG, **sizes})
  read = {
    "input_features": jax.ShapeDtypeStruct((4, 80, 96), jnp.float32),
    "decoder_input_ids": jax.ShapeDtypeStruct((4, 24), jnp.int32),
  }

  def flops(method):
    adapted = model.add(method, jax.random.key(0))

    def gradient(flat, rest, read):
      whole = lambda leaves: masks.unflatten({**rest, **leaves})  # noqa: E731
      return jax.grad(lambda leaves: jnp.sum(adapted.forward(whole(leaves), read)["logits"]))(flat)

    return count_flops(gradient, bases.trainable(adapted), bases.rest_of(adapted), read)

  lora, full = flops(methods.LoRA(rank=8, targets="all-linear")), flops(methods.Full())
  assert lora <= 0.70 * full, lora / full
