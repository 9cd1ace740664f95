"""Names, parts and wholes of trees of any kind."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from peftjax import masks, trees
from peftjax.errors import UserError
from peftjax.quantize import quantize


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Block:
  attention: Any
  scale: Any


class Pair(NamedTuple):
  mean: Any
  var: Any


def whole() -> dict[str, Any]:
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
  return {
    "embed": draw(7, 3),
    "blocks": [Block({"q": draw(3, 3), "k": draw(3, 3)}, draw(3)), Block({"q": draw(3, 3), "k": draw(3, 3)}, draw(3))],
    "norm": Pair(draw(3), draw(3)),
    "out": (draw(3, 2), {"bias": draw(2)}),
  }


NAMES = [
  "embed",
  *(f"blocks.{index}.{leaf}" for index in (0, 1) for leaf in ("attention.q", "attention.k", "scale")),
  "norm.mean",
  "norm.var",
  "out.0",
  "out.1.bias",
]


def same(one, other) -> None:
  assert jax.tree.structure(one) == jax.tree.structure(other)
  jax.tree.map(np.testing.assert_array_equal, one, other)


def test_every_leaf_of_lists_tuples_and_dataclasses_has_a_name():
  flat = masks.flatten(whole())
  assert list(flat) == NAMES
  np.testing.assert_array_equal(flat["blocks.1.attention.k"], whole()["blocks"][1].attention["k"])


def test_labels_have_the_trees_structure():
  labels = masks.label(whole(), masks.where((r"blocks.1.attention", "bias"), "adapter"))
  assert jax.tree.structure(labels) == jax.tree.structure(whole())
  trained = {name for name, group in masks.flatten(labels).items() if group == "adapter"}
  assert trained == {"blocks.1.attention.q", "blocks.1.attention.k", "out.1.bias"}


@pytest.mark.parametrize("patterns", [("blocks.0.scale",), ("q",), ("embed", "mean"), ("*",), (r"out.*",)], ids=str)
def test_parts_make_the_whole_again(patterns):
  labels = masks.label(whole(), masks.where(patterns, "some"))
  trainable, frozen = masks.partition(whole(), labels)
  assert not set(masks.flatten(trainable)) & set(masks.flatten(frozen))
  assert set(masks.flatten(trainable)) == {name for name, group in masks.flatten(labels).items() if group == "some"}
  same(masks.combine(trainable, frozen), whole())
  same(masks.combine(frozen, trainable), whole())


def test_gradients_reach_the_trainable_part_alone_and_updates_keep_its_structure():
  tree = whole()
  labels = masks.label(tree, masks.where(("blocks.1.attention.q", "var"), "some"))
  trainable, frozen = masks.partition(tree, labels)

  def loss(part):
    both = masks.combine(part, frozen)
    x = both["embed"]
    for block in both["blocks"]:
      x = x @ block.attention["q"] @ block.attention["k"] * block.scale
    return jnp.sum(x * both["norm"].var)

  gradient = jax.jit(jax.grad(loss))(trainable)
  assert set(masks.flatten(gradient)) == {"blocks.1.attention.q", "norm.var"}
  reference = jax.grad(lambda both: loss(masks.partition(both, labels)[0]))(tree)
  for name, leaf in masks.flatten(gradient).items():
    np.testing.assert_allclose(leaf, masks.flatten(reference)[name], rtol=1e-6)
  assert jax.tree.structure(jax.tree.map(jnp.add, trainable, gradient)) == jax.tree.structure(trainable)


def test_a_leaf_in_two_parts_is_an_error():
  part = masks.partition(whole(), masks.label(whole(), masks.where(("q",), "some")))[0]
  with pytest.raises(ValueError, match=r"blocks\.0\.attention\.q"):
    masks.combine(part, part)


def test_two_leaves_of_one_name_are_an_error():
  with pytest.raises(UserError, match=r"'a\.b'"):
    masks.flatten({"a.b": 1, "a": {"b": 2}})


def test_the_state_of_an_nnx_module_is_a_tree():
  class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
      self.blocks = nnx.List([nnx.Linear(3, 3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)])

  state = nnx.state(Net(nnx.Rngs(0)))
  pure = nnx.to_pure_dict(state)
  assert {name.replace(".value", "") for name in masks.flatten(state)} == set(masks.flatten(pure))
  trainable, frozen = masks.partition(state, masks.label(state, masks.where(("*blocks.1.kernel*",), "some")))
  assert len(jax.tree.leaves(trainable)) == 1
  same(masks.combine(trainable, frozen), state)


def test_a_quantised_leaf_is_one_leaf():
  tree = [{"kernel": quantize(jnp.ones((64, 64)), kind="nf4", block=64)}, jnp.ones(3)]
  assert list(masks.flatten(tree)) == ["0.kernel", "1"]
  same(masks.combine(*masks.partition(tree, masks.label(tree, masks.where(("1",), "some")))), tree)


def test_refilling_changes_the_leaves_alone():
  doubled = trees.refilled(whole(), {name: 2 * leaf for name, leaf in masks.flatten(whole()).items()})
  same(doubled, jax.tree.map(lambda leaf: 2 * leaf, whole()))
