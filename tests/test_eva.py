"""EVA: principal directions of the data, and ranks where they explain most."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from peftjax import eva, masks, methods
from peftjax.errors import UserError
from peftjax.model import Model
from peftjax.models.building import build
from peftjax.models.family import ENCODER, Architecture, Family
from peftjax.models.layers import Runtime, stack_of
from peftjax.sites import HasSites, Stream

SIZE = 7


class Block(nn.Module):
  """A residual tanh layer."""

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
    return x + nn.tanh(nn.Dense(SIZE, name="query")(x)), None


class Toy(nn.Module, HasSites):
  """Two blocks over frames, of which a mask of another name than the text models' says which are there."""

  sites: ClassVar[Mapping[str, str]] = {"__call__": "model"}
  streams: ClassVar[tuple[Stream, ...]] = (Stream(embeds="x", mask="frame_mask"),)

  runtime: Runtime

  def setup(self) -> None:
    self.layer = stack_of(Block, (), 2, self.runtime)

  def __call__(self, x: jax.Array, frame_mask: jax.Array | None = None) -> dict[str, jax.Array]:
    return {"logits": self.layer(x)[0]}


@pytest.fixture(scope="module")
def model() -> Model:
  family = Family(
    model_types=("toy",),
    parse=lambda config: None,
    architectures={"Toy": Architecture(lambda config, runtime: Toy(runtime), ENCODER)},
    stacks=lambda config: {"layer": 2},
    inputs=lambda config: {"x": jax.ShapeDtypeStruct((2, 3, SIZE), jnp.float32)},
  )
  runtime = Runtime()
  module, shapes, sites, stacks = build(family, "Toy", None, runtime)
  made = Model(module, shapes, None, {"model_type": "toy"}, family, "Toy", runtime, sites, stacks)
  rng = np.random.default_rng(0)
  return made.with_params(jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32), shapes))


def batches() -> list[dict[str, Any]]:
  rng = np.random.default_rng(1)
  spread = np.linspace(3.0, 0.2, SIZE)
  return [
    {
      "x": 1.0 + spread * rng.standard_normal((4, 5, SIZE)),
      "frame_mask": np.array([[1] * 5] * 3 + [[1, 1, 0, 0, 0]]),
    }
    for _ in range(3)
  ]


def rows() -> np.ndarray:
  return np.concatenate([one["x"][one["frame_mask"] == 1] for one in batches()])


def lora(**settings: Any) -> methods.LoRA:
  return methods.LoRA(**{"rank": 2, "alpha": 6.0, "targets": ("query",), **settings})


def test_a_spans_the_principal_directions_of_the_rows_that_count_and_the_model_starts_as_the_base(model: Model):
  added = eva.add(model, lora(), batches(), rho=1.0)
  first = np.asarray(added.params["layer"]["query"]["lora_a"][0])
  centred = rows() - rows().mean(axis=0)
  wanted = np.linalg.svd(centred, full_matrices=False)[2][:2].T
  np.testing.assert_allclose(np.abs((first * wanted).sum(axis=0)), 1.0, rtol=1e-5)
  np.testing.assert_array_equal(added.params["layer"]["query"]["lora_b"], np.zeros((2, 2, SIZE)))
  x = {"x": jnp.asarray(batches()[0]["x"], jnp.float32)}
  np.testing.assert_allclose(added(**x)["logits"], model(**x)["logits"], rtol=1e-6)


def test_whitened_directions_are_divided_by_the_root_of_their_singular_value(model: Model):
  plain, white = (eva.add(model, lora(), batches(), rho=1.0, whiten=one) for one in (False, True))
  ratio = plain.params["layer"]["query"]["lora_a"][0] / white.params["layer"]["query"]["lora_a"][0]
  values = np.linalg.svd(rows() - rows().mean(axis=0))[1][:2]
  np.testing.assert_allclose(ratio, np.broadcast_to(np.sqrt(values), (SIZE, 2)), rtol=1e-4)


def test_ranks_go_where_directions_explain_most_and_the_scale_stays(model: Model):
  def directions(*shares: float) -> eva.Directions:
    return eva.Directions(np.eye(4), np.ones(4), np.array(shares))

  found = {
    "a": directions(0.6, 0.3, 0.05, 0.05),
    "b": directions(0.28, 0.26, 0.24, 0.22),
    "c": directions(0.9, 0.1, 0, 0),
  }
  assert eva.allocate(found, {"a": 2, "b": 2, "c": 2}, 2.0) == {"a": 2, "b": 3, "c": 1}
  added = eva.add(model, lora(), batches(), rho=2.0).unrolled()
  method = added.methods[0]
  ranks = {path: leaf.shape[-1] for path, leaf in masks.flatten(added.params).items() if path.endswith("lora_a")}
  assert sum(ranks.values()) == 4
  assert {method.settings(path.removesuffix(".lora_a")) for path in ranks} == {(rank, 3.0) for rank in ranks.values()}


def test_mistakes_are_named(model: Model):
  with pytest.raises(UserError, match="no batch"):
    eva.add(model, lora(), [])
  with pytest.raises(UserError, match="at least 1"):
    eva.add(model, lora(), batches(), rho=0.5)
