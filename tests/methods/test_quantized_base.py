"""Every method over a quantised base: as over the arrays that it stands for, or refused with the reason."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax import masks, methods
from peftjax.errors import UserError
from peftjax.model import Model
from peftjax.quantize_model import dequantize_leaves
from tests.methods import tiny
from tests.methods.test_reparam import CASES, TARGETS, toy
from tests.models.decoder_models import LLAMA, random_model

# On the toy's linear layers: one set of settings of each reparametrisation.
LINEAR = sorted({name for name in CASES if " " not in name} | {"dora pissa", "oft exact", "miss bat"})
# On an encoder (or a decoder): the others.
ENCODER: dict[str, dict[str, Any]] = {
  "bitfit": {},
  "ia3": {},
  "houlsby": {"bottleneck_dim": 5},
  "pfeiffer": {"bottleneck_dim": 5},
  "parallel_adapter": {"bottleneck_dim": 5},
  "compacter": {"bottleneck_dim": 4},
  "adapter_plus": {"bottleneck_dim": 5},
  "reft": {"rank": 2},
  "prompt": {"num_virtual_tokens": 3},
  "p_tuning": {"num_virtual_tokens": 3},
  "prefix": {"num_virtual_tokens": 3},
  "p_tuning_v2": {"num_virtual_tokens": 3},
  "llama_adapter": {"num_virtual_tokens": 3, "adapter_layers": 1},
  "trainable_tokens": {"token_indices": (3, 5)},
  "unipelt": {},
  "hybrid": {"methods": ({"name": "lora", "rank": 3}, {"name": "bitfit"})},
}
# Those that read the base's kernel in their own ways: gradients too.
WHOLE = ("lora", "dora pissa", "hira", "miss bat", "delora", "oft", "ia3")
# A mask alone, as bitfit's, and a combination of two that are here.
LIKE_OTHERS = {"head", "layernorm", "beft", "patterns", "mam"}
REFUSED: dict[str, dict[str, Any]] = {"full": {}, "last_k": {"k": 1}}


def test_every_method_is_here():
  assert {name.partition(" ")[0] for name in LINEAR} | {*ENCODER, *REFUSED, *LIKE_OTHERS} == set(methods.METHODS)


def check(quantized: Model, method: methods.Method, inputs: dict[str, jax.Array], whole: bool) -> None:
  """Outputs over the quantised base and over its arrays agree; where `whole`, so do fresh leaves and gradients."""
  model = quantized.add(method, jax.random.key(3))
  floats = dataclasses.replace(model, params=dequantize_leaves(model.params, jnp.float32))
  if whole:
    fresh = masks.flatten(quantized.dequantized().add(method, jax.random.key(3)).params)
    for path in model.adapter_paths():
      np.testing.assert_array_equal(masks.flatten(model.params)[path], fresh[path], err_msg=path)
  leaves = tiny.noise_on(tiny.trainable(model), scale=0.1)

  def of(leaves: dict[str, Any], one: Model, rest: dict[str, Any]) -> Any:
    outputs = one.forward(masks.unflatten({**rest, **leaves}), inputs)
    return sum(jnp.sum(jnp.sin(value * 3.0)) for value in outputs.values()), outputs

  @jax.jit
  def both(leaves: dict[str, Any], first: dict[str, Any], second: dict[str, Any]) -> Any:
    pairs = ((model, first), (floats, second))
    return [jax.grad(of, has_aux=True)(leaves, *pair) if whole else of(leaves, *pair)[1] for pair in pairs]

  found, expected = both(leaves, tiny.rest_of(model), tiny.rest_of(floats))
  for path, leaf in jax.tree_util.tree_leaves_with_path(found):
    other = dict(jax.tree_util.tree_leaves_with_path(expected))[path]
    np.testing.assert_allclose(leaf, other, rtol=1e-5, atol=1e-5 * max(1.0, float(jnp.max(jnp.abs(other)))))


@pytest.mark.parametrize("name", LINEAR)
def test_reparametrisations(name):
  kind = ("nf4", "int4", "int8")[LINEAR.index(name) % 3]
  method = methods.build({"name": name.split()[0], "targets": TARGETS, **CASES[name].settings})
  inputs = {"x": jax.random.normal(jax.random.key(1), (2, 3, 20))}
  check(toy().quantized(kind), method, inputs, name in WHOLE)


@pytest.mark.parametrize("name", ENCODER)
def test_on_an_encoder(name):
  method = methods.build({"name": name, **ENCODER[name]})
  if name == "llama_adapter":
    model, inputs = random_model({**LLAMA, "num_hidden_layers": 2}), {"input_ids": tiny.batch()["input_ids"]}
  else:
    model, inputs = tiny.encoder(num_hidden_layers=1), tiny.batch()
  check(model.quantized("nf4"), method, inputs, name in WHOLE)


@pytest.mark.parametrize("name", REFUSED)
def test_methods_that_train_kernels_are_refused(name):
  model = tiny.encoder().quantized("nf4")
  with pytest.raises(UserError, match=rf"{name} trains '.*kernel', which is stored as nf4 .* \(lora, dora"):
    model.add(methods.build({"name": name, **REFUSED[name]}))
  with pytest.raises(UserError, match="before methods are added"):
    model.add(methods.Head()).quantized("int8")


def test_modules_saved_whole_are_refused_unless_they_are_left_out():
  method = methods.LoRA(targets=("query",), modules_to_save=("pooler.dense",))
  with pytest.raises(UserError, match="lora trains 'bert.pooler.dense.kernel'"):
    tiny.encoder().quantized("nf4").add(method)
