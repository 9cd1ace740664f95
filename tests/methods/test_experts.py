"""Maps that hold one matrix for each expert: every method acts at each expert with leaves of its own."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax import UserError, adapters, masks, methods
from peftjax.methods.base import Method
from peftjax.parallel import mesh as mesh_lib
from peftjax.parallel.sharding import EXPERT, by_rules, layout_of
from tests.methods import tiny
from tests.methods.linen_models import EXPERTS, PIXELS, Mixture, make
from tests.methods.test_linen_modules import LINEAR, close, method_of

QUICK = ("lora", "dora", "oft", "hira", "vera")


def trained(method: Method, seed: int = 3):
  model = make(Mixture).add(method, jax.random.key(seed))
  own = {path: leaf for path, leaf in tiny.trainable(model).items() if not model.context.in_head(path)}
  return tiny.replaced(model, tiny.noise_on(own, seed=seed, scale=0.1))


def test_each_expert_is_a_matrix_of_one_site():
  model = make(Mixture).add(methods.LoRA(rank=2, targets="all-linear"))
  sites = {site.names[0]: (site.experts, site.shape) for site in model.bound[0].sites}
  assert sites == {"patches": (0, (12, 12)), "router": (0, (12, 3)), "first": (3, (12, 8)), "second": (3, (8, 20)),
                   "third": (3, (20, 12))}  # fmt: skip
  a = model.params["second"]["lora_a"]
  assert a.shape == (EXPERTS, 8, 2)
  assert len({float(one) for one in a[:, 0, 0]}) == EXPERTS


@pytest.mark.parametrize(
  "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in LINEAR]
)
def test_acting_equals_the_change_of_weights(name):
  model, base = trained(method_of(name, targets=("first", "second"))), make(Mixture)
  found = model(pixels=PIXELS)["logits"]
  close(found, model.merge()(pixels=PIXELS)["logits"])
  assert np.abs(found - base(pixels=PIXELS)["logits"]).max() > 1e-3


@pytest.mark.parametrize("name", ["lora", "dora", "oft"])
def test_gradients_are_those_of_the_change_of_weights(name):
  model = trained(method_of(name))
  own = {path: leaf for path, leaf in tiny.trainable(model).items() if path in model.adapter_paths()}

  def loss(leaves, merges):
    one = tiny.replaced(model, leaves)
    one = one.merge() if merges else one
    return jnp.sum(jnp.sin(one.forward(one.params, {"pixels": PIXELS})["logits"]))

  found, wanted = (jax.jit(jax.grad(lambda leaves, m=merges: loss(leaves, m)))(own) for merges in (False, True))
  for path, leaf in found.items():
    np.testing.assert_allclose(leaf, wanted[path], rtol=1e-4, atol=1e-5, err_msg=path)


def test_an_expert_s_leaves_act_on_that_expert_alone():
  model = trained(methods.LoRA(rank=2, targets=("second",)))
  flat = masks.flatten(model.params)
  alone = tiny.replaced(model, {"second.lora_b": flat["second.lora_b"].at[jnp.array([0, 2])].set(0.0)})
  change = alone.merge().params["second"]["kernel"] - make(Mixture).params["second"]["kernel"]
  assert not np.any(change[np.array([0, 2])])
  assert np.all(np.abs(change[1]).max() > 1e-3)


@pytest.mark.slow
def test_several_adapters_share_a_batch_and_are_scaled_summed_and_taken_out():
  base = make(Mixture)
  each = [adapters.take(trained(method_of("lora", rank=rank), rank)) for rank in (2, 3)]
  each = [dataclasses.replace(one, along={}) for one in each]
  mixed = adapters.mixed(base, each)(pixels=PIXELS, adapter_ids=[1, -1, 0])["logits"]
  for row, wanted in enumerate((adapters.put(base, each[1]), base, adapters.put(base, each[0]))):
    close(mixed[row], wanted(pixels=PIXELS)["logits"][row])
  half = adapters.scaled(trained(method_of("oft")), 0.5)
  close(half(pixels=PIXELS)["logits"], half.merge()(pixels=PIXELS)["logits"])
  model = trained(method_of("oft"))
  back = adapters.unmerge(model.merge(), dataclasses.replace(adapters.take(model), along={}))
  jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=2e-5), back.params, base.params)
  converted = adapters.to_lora(trained(method_of("hira", rank=2)), energy=1.0).model
  close(converted(pixels=PIXELS)["logits"], trained(method_of("hira", rank=2))(pixels=PIXELS)["logits"])


def test_dropout_draws_for_each_expert():
  model = trained(methods.LoRA(rank=2, dropout=0.5, targets=("second", "third")))
  inputs = {"pixels": PIXELS}
  one, same, other = (model.forward(model.params, inputs, jax.random.key(seed))["logits"] for seed in (0, 0, 1))
  np.testing.assert_array_equal(one, same)
  assert np.abs(one - other).max() > 1e-4


def test_experts_lie_apart_on_a_mesh():
  model = make(Mixture).add(methods.LoRA(rank=2, targets=("second", "third")))
  mesh = mesh_lib.make_mesh({"data": 1, "fsdp": 1, "tensor": 1, "sequence": 1}, jax.devices()[:1])
  layout = layout_of(model, mesh)
  for leaf in ("kernel", "bias", "lora_a", "lora_b"):
    assert layout.axes[f"second.{leaf}"][0] == EXPERT
  wide = jax.sharding.AbstractMesh((2, 1, 4, 1), tuple(mesh.shape))
  kernel = jax.ShapeDtypeStruct((8, 64, 64), jnp.float32)
  assert by_rules(wide, (EXPERT, "embed", "mlp"), kernel, 0) == jax.sharding.PartitionSpec("tensor", None, None)


def test_what_peft_has_not_for_experts_is_said(tmp_path):
  with pytest.raises(UserError, match="LoRA alone for experts"):
    trained(method_of("oft", targets=("second",))).save_adapter(tmp_path / "adapter")
  with pytest.raises(UserError, match="no dropout"):
    trained(methods.LoRA(rank=2, dropout=0.1, targets=("second",))).save_adapter(tmp_path / "adapter")
