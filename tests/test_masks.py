"""Names, patterns, labels and the partition of the tree."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftjax import masks
from peftjax.errors import UserError

NAMES = [
  f"encoder.layer.{layer}.{module}"
  for layer in range(3)
  for module in ("attention.self.query", "attention.self.value", "attention.output.dense", "output.dense")
]


@pytest.mark.parametrize(
  ("patterns", "count"),
  [
    (("query",), 3),
    (("query", "value"), 6),
    (("dense",), 6),
    (("attention.output.dense",), 3),
    (("uery",), 0),  # suffixes are whole components, as in PEFT
    (("*.layer.1.*",), 4),
    (("*self.[qv]*",), 6),
    (r".*\.(query|value)", 6),
    (r".*layer\.[01]\..*query", 2),
    ("query", 0),  # a string must match the whole name
  ],
)
def test_patterns_match_as_documented(patterns, count):
  assert sum(masks.matches(patterns, name) for name in NAMES) == count


def test_match_table_lists_every_pattern():
  assert {key: len(hits) for key, hits in masks.match_table(("query", "dense"), NAMES).items()} == {
    "query": 3,
    "dense": 6,
  }


@pytest.mark.parametrize(
  ("patterns", "hint"),
  [(("query", "valu"), "'value'"), ("query", "targets=('query',)"), (r"(", "no regular expression")],
)
def test_a_pattern_without_match_names_the_nearest(patterns, hint):
  with pytest.raises(UserError) as caught:
    masks.match_table(patterns, NAMES)
  assert hint in str(caught.value)
  assert "\n" not in str(caught.value)


TREE = {
  "encoder": {"layer": {"query": {"kernel": jnp.ones((3, 5, 7)), "bias": jnp.zeros((3, 7))}}},
  "classifier": {"kernel": jnp.ones((7, 2))},
}
STACKS = {"encoder.layer": 3}


def test_a_mask_sees_one_layer_at_a_time():
  seen = {}

  def mask(name, leaf):
    seen[name] = leaf.shape
    return masks.FROZEN

  masks.label(TREE, mask, STACKS)
  assert seen["encoder.layer.2.query.kernel"] == (5, 7)
  assert seen["classifier.kernel"] == (7, 2)
  assert len(seen) == 7


def test_layers_of_a_stack_must_agree():
  with pytest.raises(masks.LayersDiffer):
    masks.label(TREE, masks.where(("encoder.layer.2.query",), "top"), STACKS)


@pytest.mark.parametrize("group", ["Frozen", "FROZEN", "frozen "])
def test_a_group_that_is_frozen_but_for_its_spelling_is_refused(group):
  with pytest.raises(UserError, match=f"returned '{group}' for .*; did you mean 'frozen'"):
    masks.label(TREE, lambda name, leaf: group, STACKS)


def test_a_mask_that_returns_no_string_is_named():
  with pytest.raises(UserError, match="returned True"):
    masks.label(TREE, lambda name, leaf: True, STACKS)


def test_union_lets_the_first_mask_name_the_group():
  mask = masks.union(masks.where(("bias",), "bias"), masks.where(("query",), "adapter"), masks.nothing)
  assert mask("a.query.bias", None) == "bias"
  assert mask("a.query.kernel", None) == "adapter"
  assert mask("a.key.kernel", None) == masks.FROZEN


@given(st.lists(st.sampled_from(["frozen", "a", "b"]), min_size=3, max_size=3))
def test_partition_and_combine_are_inverse(groups):
  labels = masks.unflatten(dict(zip(masks.flatten(TREE), groups)))
  trainable, frozen = masks.partition(TREE, labels)
  assert set(masks.flatten(trainable)).isdisjoint(masks.flatten(frozen))
  assert len(masks.flatten(trainable)) == sum(group != "frozen" for group in groups)
  whole = masks.combine(trainable, frozen)
  assert jax.tree.structure(whole) == jax.tree.structure(TREE)
  jax.tree.map(np.testing.assert_array_equal, whole, TREE)


def test_combine_refuses_a_leaf_in_two_parts():
  with pytest.raises(ValueError, match="two parts"):
    masks.combine(TREE, TREE)


def test_count_is_of_parameters_and_bytes():
  assert masks.count(TREE) == masks.Count(leaves=3, parameters=105 + 21 + 14, bytes=4 * 140)
