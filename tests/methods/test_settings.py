"""The types and ranges of methods' settings, however a method is made; what is too large is said before it is made."""

from __future__ import annotations

import dataclasses
import typing

import jax
import numpy as np
import pytest

from peftjax import memory, methods
from peftjax.errors import UserError
from peftjax.methods import METHODS
from peftjax.methods.settings import check, range_of
from tests.methods.tiny import encoder

WRONG = [
  ({"name": "lora", "dropout": 2.0}, "dropout=2.0: expected a number from 0 to below 1"),
  ({"name": "lora", "dropout": -1.0}, "dropout=-1.0"),
  ({"name": "lora", "dropout": 1.0}, "dropout=1.0"),
  ({"name": "loha", "rank_dropout": 1.5}, "rank_dropout=1.5"),
  ({"name": "lora", "dropout": float("nan")}, "dropout=nan"),
  ({"name": "lora", "alpha": 0}, "alpha=0: expected a finite number above 0"),
  ({"name": "lora", "alpha": -8.0}, "alpha=-8.0"),
  ({"name": "lora", "alpha": 10**400}, "alpha=1000"),
  ({"name": "lora", "rank": 0}, "rank=0: expected a whole number from 1"),
  ({"name": "lora", "rank": "8"}, "rank=8: expected a whole number from 1"),
  ({"name": "lora", "rank": 1.5}, "rank=1.5"),
  ({"name": "lora", "rank": True}, "rank=True"),
  ({"name": "lora", "targets": 5}, "targets=5: expected a tuple of names or patterns"),
  ({"name": "lora", "targets": ("query", 5)}, "expected a tuple of names or patterns"),
  ({"name": "lora", "modules_to_save": "pooler"}, "modules_to_save=pooler: expected a tuple of texts"),
  ({"name": "lora", "layers": ("x",)}, "layers=('x',): expected a tuple of whole numbers"),
  ({"name": "lora", "rank_pattern": {"query": -1}}, "rank_pattern={'query': -1}: expected a dict from pattern to"),
  ({"name": "lora", "rank_pattern": 1}, "rank_pattern=1"),
  ({"name": "lora", "alpha_pattern": {"query": 0}}, "alpha_pattern={'query': 0}"),
  ({"name": "lora", "rslora": 1}, "rslora=1: expected True or False"),
  ({"name": "lora", "bias": 3}, "bias=3: expected a text"),
  ({"name": "lora", "r": 3}, "no field 'r'"),
  ({"name": "vera", "projection_prng_key": -1}, "projection_prng_key=-1"),
  ({"name": "last_k", "first": -2}, "first=-2: expected a whole number from 0 to 2,147,483,647, or -1"),
  ({"name": "hybrid", "methods": 5}, "methods=5"),
  ({"name": "hybrid", "methods": ("lora", 5)}, "methods=('lora', 5)"),
  ({"name": "hybrid", "methods": ({"rank": 5},)}, "method.name=None"),
  ({"name": "math:pi"}, "is no method and no mask"),
  ({"name": "json:JSONDecoder"}, "is no method and no mask"),
  ({"name": "peftjax.methods:MaskMethod"}, "needs function"),
  ({"name": ""}, "expected the name of a method"),
  ({"name": 3}, "expected the name of a method"),
]


@pytest.mark.parametrize(("settings", "words"), WRONG, ids=[str(one)[:50] for one, _ in WRONG])
def test_a_config_says_what_was_expected(settings, words):
  with pytest.raises(UserError) as caught:
    methods.build(settings)
  assert words in str(caught.value)


def test_a_combination_takes_names():
  made = methods.build({"name": "hybrid", "methods": ("bitfit", {"name": "lora"})})
  assert [part.name for part in made.parts] == ["bitfit", "lora"]


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_default_is_in_its_range_and_shares_are_shares(name):
  method = METHODS[name]
  needed = {"hybrid": {"methods": (methods.IA3(), methods.BitFit())}, "trainable_tokens": {"token_indices": (3,)}}
  check(method(**needed.get(name, {})))
  hints = typing.get_type_hints(method)
  for field in dataclasses.fields(method):
    if hints[field.name] in (int, float):
      wanted = range_of(field, hints[field.name])
      assert not wanted.takes(float("nan")) and not wanted.takes(float("inf")) and not wanted.takes("1")
      if "dropout" in field.name:
        assert not any(wanted.takes(one) for one in (-0.1, 1.0, 2.0)) and wanted.takes(0.5)


@pytest.mark.parametrize(
  "wrong",
  [methods.LoRA(rank=0), methods.LoRA(dropout=1.0), methods.LoRA(alpha=float("nan")), methods.LoRA(rank="8"),
   methods.LoRA(modules_to_save="pooler"), methods.Hybrid(methods=(methods.IA3(), methods.LoRA(rank=-1)))],
  ids=repr,
)  # fmt: skip
def test_a_program_is_told_when_the_method_is_added(wrong):
  with pytest.raises(UserError, match="expected"):
    encoder().add(wrong, jax.random.key(0))


def test_numbers_of_numpy_are_numbers():
  model = encoder().add(methods.LoRA(rank=np.int64(3), alpha=np.float32(6), layers=(np.int32(1),)), jax.random.key(0))
  assert model.params["bert"]["encoder"]["layer"]["1"]["attention"]["self"]["query"]["lora_a"].shape == (12, 3)


def test_leaves_that_cannot_fit_are_not_made(monkeypatch):
  with pytest.raises(
    UserError, match=r"lora: the leaves that it adds: needs [0-9,.]+ [A-Z]iB of memory, and there are"
  ):
    encoder().add(methods.LoRA(rank=2**30, targets=("query",)), jax.random.key(0))
  model = encoder()
  pairs, width, rank = 4, 12, 3  # query and value of two layers
  monkeypatch.setattr(memory, "limit", lambda: 4 * pairs * 2 * width * rank)
  model.add(methods.LoRA(rank=3, targets=("query", "value")), jax.random.key(0))
  with pytest.raises(UserError, match=r"needs 1\.5 KiB"):
    model.add(methods.LoRA(rank=4, targets=("query", "value")), jax.random.key(0))


def test_the_limit_is_that_of_the_process(monkeypatch):
  whole = memory.limit()
  monkeypatch.setattr(memory.resource, "getrlimit", lambda _: (2**20, memory.resource.RLIM_INFINITY))
  assert memory.limit() == 2**20 < whole
  with pytest.raises(UserError, match="a thing: needs"):
    memory.check(2**20 + 1, "a thing")
  memory.check(2**20, "a thing")


@pytest.mark.parametrize("name", ["vera", "randlora"])
def test_shared_projections_are_not_drawn_for_their_shapes(name):
  model = encoder()
  shaped = model.with_params(jax.eval_shape(lambda tree: tree, model.params))
  rank = 10**9  # 48 GB of random numbers
  added = shaped.add(METHODS[name](rank=rank, targets=("query",)), jax.random.key(0))
  assert added.params[name][f"{name}_b"].shape == {"vera": (rank, 12), "randlora": (12, 1, rank)}[name]
  drawn = jax.jit(lambda key: encoder().add(METHODS[name](rank=5, targets=("query",)), key).params[name])
  whole = model.add(METHODS[name](rank=5, targets=("query",)), jax.random.key(0)).params[name]
  for leaf, array in drawn(jax.random.key(0)).items():
    np.testing.assert_array_equal(array, whole[leaf])
