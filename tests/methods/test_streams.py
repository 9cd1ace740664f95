"""What models declare of the sequences that run through them, and that methods need no more than that."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from peftjax import masks, methods
from peftjax.errors import UserError
from peftjax.loading import from_config
from peftjax.methods.attach import attach
from peftjax.methods.base import Context
from peftjax.methods.bound import Bound, bind
from peftjax.methods.discovery import discover
from peftjax.methods.inject import acting
from peftjax.models.layers import Runtime, attention
from peftjax.models.registry import FAMILIES
from peftjax.sites import HasSites, Stream

TINY = {
  "vocab_size": 23, "hidden_size": 12, "d_model": 12, "n_embd": 12, "num_hidden_layers": 2, "n_layer": 2,
  "num_layers": 2, "num_attention_heads": 3, "n_head": 3, "num_heads": 3, "num_key_value_heads": 3, "d_ff": 16,
  "intermediate_size": 16,
  "d_kv": 4, "head_dim": 4, "ffn_dim": 16, "rotary_dim": 4, "max_position_embeddings": 32, "n_positions": 32,
  "word_embed_proj_dim": 12, "num_local_experts": 2, "num_experts": 2, "num_experts_per_tok": 1, "pad_token_id": 0,
  "moe_intermediate_size": 16, "num_labels": 3, "type_vocab_size": 2, "query_pre_attn_scalar": 4,
  "conv_dim": [6, 8], "conv_kernel": [5, 3], "conv_stride": [4, 2], "num_conv_pos_embeddings": 4,
  "num_conv_pos_embedding_groups": 2,
  "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 3, "decoder_attention_heads": 3,
  "backbone_config": {"model_type": "resnet", "hidden_sizes": [4, 6], "depths": [1, 1], "embedding_size": 4},
}  # fmt: skip

CHANNELS = {  # of models of images, which read none of these
  name: family.table.read["block_out_channels"].default
  for name, family in FAMILIES.items()
  if "block_out_channels" in family.table.read
}


def architectures() -> list[tuple[str, str]]:
  return [(name, architecture) for name, family in FAMILIES.items() for architecture in family.architectures]


@pytest.mark.parametrize(("model_type", "architecture"), architectures(), ids=lambda part: part)
def test_no_output_shows_that_there_are_virtual_tokens(model_type, architecture):
  sizes = {"block_out_channels": [32] * len(CHANNELS[model_type])} if model_type in CHANNELS else TINY
  model = from_config(
    {**sizes, "model_type": model_type, "architectures": [architecture]}, runtime=Runtime(output_hidden_states=True)
  )
  if not any(site.kind == "model" for site in model.sites):
    with pytest.raises(UserError, match="declares its embedding step"):
      model.add(methods.Prompt(num_virtual_tokens=3))
    return
  inputs = {name: jax.ShapeDtypeStruct((2, *leaf.shape[1:]), leaf.dtype) for name, leaf in model.example_inputs.items()}

  def shapes(one) -> Any:
    return jax.tree.map(lambda leaf: leaf.shape, jax.eval_shape(one.forward, one.params, inputs))

  for method in (methods.Prompt(num_virtual_tokens=3), methods.Prefix(num_virtual_tokens=3)):
    assert shapes(model.add(method)) == shapes(model)


class Patches(nn.Module, HasSites):
  """A small vision encoder: patches behind a class token, positions added before, no mask."""

  sites: ClassVar = {"from_embeds": "model"}
  streams: ClassVar = (Stream(embeds="patches", outputs={"states": 1}, start=1),)
  embedding_path: ClassVar = ("patch",)

  def setup(self) -> None:
    self.patch = nn.Dense(12)
    self.block = Block()
    self.head = nn.Dense(3)

  def __call__(self, pixels: jax.Array) -> dict[str, jax.Array]:
    embedded = self.patch(pixels)
    embedded += jnp.sin(jnp.arange(pixels.shape[1], dtype=jnp.float32))[:, None]
    front = jnp.ones((pixels.shape[0], 1, 12))
    return self.from_embeds(jnp.concatenate([front, embedded], axis=1))

  def from_embeds(self, patches: jax.Array) -> dict[str, jax.Array]:
    states, _ = self.block(patches)
    return {"states": states, "logits": self.head(states[:, 0])}


class Block(nn.Module, HasSites):
  sites: ClassVar = {"attend": "attention", "__call__": "block"}

  def setup(self) -> None:
    self.query, self.key, self.value = nn.Dense(12), nn.Dense(12), nn.Dense(12)

  def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
    q, k, v = (layer(x).reshape(*x.shape[:2], 3, 4) for layer in (self.query, self.key, self.value))
    return x + self.attend(q, k, v).reshape(x.shape), None

  def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    return attention(q, k, v, mask)


PIXELS = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 5)), jnp.float32)


def added(*chosen: methods.Method, seed: int = 0) -> tuple[nn.Module, masks.Tree, tuple[Bound, ...]]:
  module = Patches()
  params = module.init(jax.random.key(0), PIXELS)["params"]
  _, sites = discover(module, {"pixels": PIXELS}, {})
  bound = bind(chosen, Context(sites, {}, head=("head",)))
  return module, attach(params, bound, jax.random.key(seed)), bound


def outputs(module, params, bound, ids=None) -> dict[str, jax.Array]:
  with acting(bound, params, adapter_ids=ids) as whole:
    return module.apply({"params": whole}, PIXELS)


def test_virtual_patches_stand_behind_the_class_token():
  module, params, bound = added(methods.Prompt(num_virtual_tokens=2, init="random"))
  prompt = params["from_embeds"]["prompt_embeddings"]
  embedded = PIXELS @ params["patch"]["kernel"] + params["patch"]["bias"] + jnp.sin(jnp.arange(6.0))[:, None]
  rows = jnp.concatenate([jnp.ones((4, 1, 12)), jnp.broadcast_to(prompt, (4, 2, 12)), embedded], axis=1)
  wanted = module.apply({"params": params}, rows, method="from_embeds")
  found = outputs(module, params, bound)
  np.testing.assert_allclose(found["logits"], wanted["logits"], rtol=1e-6)
  np.testing.assert_allclose(found["states"], jnp.delete(wanted["states"], jnp.asarray([1, 2]), axis=1), rtol=1e-6)
  assert found["states"].shape == (4, 7, 12)


@pytest.mark.parametrize(
  "method",
  [
    methods.Prefix(num_virtual_tokens=2),
    methods.ReFT(rank=2, init="published"),
    methods.LlamaAdapter(num_virtual_tokens=2),
    methods.PTuning(num_virtual_tokens=2),
  ],
  ids=lambda method: method.name,
)
def test_methods_of_text_act_on_patches(method):
  module, params, bound = added(method)
  bumped = jax.tree.map(lambda leaf: leaf + 0.1, params)
  changed, base = outputs(module, bumped, bound), outputs(module, bumped, ())
  assert changed["states"].shape == base["states"].shape
  assert np.abs(changed["states"] - base["states"]).max() > 1e-3


def test_examples_with_and_without_a_prefix_share_a_batch_of_patches():
  module, params, bound = added(methods.Prefix(num_virtual_tokens=2))
  base = outputs(module, params, ())
  pair = tuple(dataclasses.replace(one, members=(0, 1)) for one in bound)
  stacked = masks.unflatten({path: jnp.stack([leaf, leaf + 1.0]) if "prefix" in path else leaf
                             for path, leaf in masks.flatten(params).items()})  # fmt: skip
  mixed = outputs(module, stacked, pair, jnp.asarray([0, -1, 1, -1]))
  alone = outputs(module, params, bound)
  np.testing.assert_allclose(mixed["states"][0], alone["states"][0], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(mixed["states"][1::2], base["states"][1::2], rtol=1e-5, atol=1e-6)


def test_without_a_mask_a_prompt_cannot_be_hidden_from_some_examples():
  module, params, bound = added(methods.Prompt(num_virtual_tokens=2, init="random"))
  pair = tuple(dataclasses.replace(one, members=(0,)) for one in bound)
  stacked = {**params, "from_embeds": jax.tree.map(lambda leaf: leaf[None], params["from_embeds"])}
  with pytest.raises(UserError, match="without a mask"):
    outputs(module, stacked, pair, jnp.asarray([0, -1, 0, -1]))


def test_each_stream_of_an_encoder_decoder_has_its_layers():
  model = from_config({**TINY, "model_type": "t5", "architectures": ["T5ForConditionalGeneration"]})
  blocks = {".".join(site.path): site.streams[0].mask for site in model.sites if site.kind == "block"}
  assert blocks == {"encoder.block": "attention_mask", "decoder.block": "decoder_attention_mask"}
