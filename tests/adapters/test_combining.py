"""Combination and conversion of any method with a change of weights; reasons where there is none."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from peftjax import adapters, masks, methods
from peftjax.adapters import abilities, converting
from peftjax.errors import UserError
from tests.adapters import cases
from tests.methods import tiny

CONVERTS = [name for name in cases.NAMES if abilities.can(cases.method(name), "convert") is True]


@functools.cache
def changes(name, seed=1):
  model = cases.adapted(name, seed)
  return jax.jit(lambda params: adapters.deltas(model.with_params(params)))(model.params)


@pytest.mark.parametrize(
  "name", [name if name in cases.QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CONVERTS]
)
def test_a_lora_of_full_rank_is_the_method(name):
  full = {"rank": 12} if not cases.on_toy(name) else {"rank": 20}
  found = converting.from_deltas(cases.base(name), changes(name), **full)
  again = adapters.deltas(found.model)
  for path, change in changes(name).items():
    cases.close(again[path], change)
  assert all(error.max() < 1e-5 for error in found.errors.values())
  assert abilities.can(cases.method(name), "combine") is True


def test_conversion_says_its_error_and_keeps_the_energy_that_is_asked_for():
  model = cases.adapted("oft")
  found = adapters.to_lora(model, energy=0.7)
  again = adapters.deltas(found.model)
  for path, change in changes("oft").items():
    for layer, error in enumerate(found.errors[path]):
      values = np.linalg.svd(change[layer], compute_uv=False) ** 2
      rank = int(found.ranks[path][layer])
      assert values[:rank].sum() >= 0.7 * values.sum() > values[: rank - 1].sum()
      np.testing.assert_allclose(error, (values[rank:].sum() / values.sum()) ** 0.5, rtol=1e-4, atol=1e-5)
      np.testing.assert_allclose(
        np.linalg.norm(change[layer] - again[path][layer]), error * values.sum() ** 0.5, rtol=1e-3
      )
  assert adapters.to_lora(found.model, rank=20).errors["layer.up.kernel"].max() < 1e-5
  ia3 = adapters.to_lora(cases.adapted("ia3"), rank=20).model
  cases.close(ia3(**cases.batch("ia3"))["logits"], cases.adapted("ia3")(**cases.batch("ia3"))["logits"])


@pytest.mark.parametrize("how", ["cat", "svd"])
def test_of_adapters_one_may_be_on_some_layers_alone(how):
  base = cases.encoder()
  models = [cases.with_lora(base, seed, layers=layers) for seed, layers in ((1, (1,)), (2, ()))]
  assert models[0].stacks != models[1].stacks
  for order in (models, models[::-1]):
    found = adapters.combine(order, (0.5, -2.0), how, **({"rank": 12} if how == "svd" else {}), along=0)
    again, parts = adapters.deltas(found), [adapters.deltas(one.unrolled()) for one in order]
    for path in {**parts[0], **parts[1]}:
      cases.close(again[path], sum(w * part[path] for w, part in zip((0.5, -2.0), parts) if path in part), 1e-4)


def by_hand(kind, tensors, weights, density, sign="total"):
  """The dense formulas in numpy, for one layer."""
  if kind in ("ties", "magnitude_prune"):
    kept = []
    for one in tensors:
      order = np.argsort(-np.abs(one).ravel(), kind="stable")[: int(density * one.size)]
      keep = np.zeros(one.size, bool)
      keep[order] = True
      kept.append(np.where(keep.reshape(one.shape), one, 0.0))
    tensors = kept
  if kind != "ties":
    return sum(weight * one for weight, one in zip(weights, tensors))
  votes = sum(tensors) if sign == "total" else sum(map(np.sign, tensors))
  majority = np.where(votes >= 0, 1, -1)
  agree = [np.sign(one) == majority for one in tensors]
  total = sum(weight * one * own for weight, one, own in zip(weights, tensors, agree))
  return total / np.maximum(sum(agree), 1)


WAYS = [
  ("svd", None, "total"),
  ("ties_svd", 0.4, "total"),
  ("ties_svd", 0.6, "frequency"),
  ("magnitude_prune_svd", 0.3, "total"),
]


@pytest.mark.parametrize(("how", "density", "sign"), WAYS)
def test_changes_of_different_methods_are_combined(how, density, sign):
  models = [cases.adapted("loha"), cases.adapted("dora"), cases.adapted("road")]
  weights = (0.5, -0.8, 1.1)
  merged = adapters.combine(models, weights, how, density=density, majority_sign=sign, into="base")
  lora = adapters.combine(models, weights, how, density=density, majority_sign=sign, rank=20)
  base, found, approximate = (masks.flatten(one.params) for one in (cases.toy(), merged, lora.merge()))
  for path in changes("loha"):
    kind = how.removesuffix("_svd")
    each = [np.asarray(changes(name)[path]) for name in ("loha", "dora", "road")]
    wanted = [by_hand(kind, [one[layer] for one in each], weights, density, sign) for layer in range(2)]
    cases.close(found[path], base[path] + np.stack(wanted))
    cases.close(approximate[path], found[path])
  assert not merged.bound and lora.bound[0].method.name == "lora"
  bias = "layer.up.bias"
  cases.close(found[bias], base[bias] + 1.1 * changes("road")[bias])


def test_dare_keeps_the_mean():
  from peftjax.adapters.arithmetic import dropped

  ones = jax.numpy.ones((300, 200))
  found = np.asarray(dropped(ones, 0.2, jax.random.key(3)))
  assert abs((found > 0).mean() - 0.2) < 0.01 and set(np.unique(found)) == {0.0, 5.0}


@pytest.mark.parametrize("name", [name for name in cases.NAMES if name not in CONVERTS])
@pytest.mark.parametrize("ability", ["merge", "convert", "combine"])
def test_what_cannot_be_done_says_why(name, ability):
  model, reason = cases.fresh(name), abilities.can(cases.method(name), ability)
  act = {
    "merge": model.merge,
    "convert": lambda: adapters.to_lora(model, 2),
    "combine": lambda: adapters.combine([model, model], rank=2),
  }[ability]
  if reason is True:
    assert ability == "merge" and not act().bound  # the base's own leaves hold the change already
    return
  with pytest.raises(UserError) as caught:
    act()
  assert str(caught.value) == reason


def test_settings_out_of_range():
  one = cases.adapted("lora")
  for wrong, expected in (
    ({"how": "tie"}, "ties"),
    ({"how": "ties"}, "density: ties keeps a share"),
    ({"how": "svd", "density": 0.5}, "prunes nothing"),
    ({"weights": (1.0,)}, "1 weights for 2"),
    ({"weights": (1.0, float("nan"))}, "weight is nan"),
    ({"how": "cat", "into": "base"}, "expected lora"),
    ({"majority_sign": "most"}, "majority_sign"),
    ({"rank": 21}, "rank 21 exceeds the 20"),
  ):
    with pytest.raises(UserError, match=expected):
      adapters.combine([one, cases.adapted("lora", 2)], **wrong)
  with pytest.raises(UserError, match="not all adapters are LoRA"):
    adapters.combine([one, cases.adapted("loha")])
  with pytest.raises(UserError, match="combines LoRA's factors"):
    adapters.combine([one, cases.adapted("loha")], how="cat")
  with pytest.raises(UserError, match="give either a rank"):
    adapters.to_lora(one)
  other = cases.toy().with_params(jax.tree.map(lambda leaf: leaf + 1.0, cases.toy().params))
  with pytest.raises(UserError, match="another base than the first"):
    adapters.combine([one, other.add(methods.LoRA(targets=cases.T))])


def test_heads_have_no_sum():
  pair = [cases.with_lora(cases.encoder(), seed, targets=("query",)) for seed in (1, 2)]
  assert adapters.combine(pair, how="cat").params["classifier"]["kernel"] is pair[0].params["classifier"]["kernel"]
  changed = tiny.replaced(pair[1], {"classifier.bias": np.ones(5, np.float32)})
  with pytest.raises(UserError, match="say by `along`"):
    adapters.combine([pair[0], changed], how="cat")
  np.testing.assert_array_equal(
    adapters.combine([pair[0], changed], how="cat", along=1).params["classifier"]["bias"], np.ones(5)
  )
