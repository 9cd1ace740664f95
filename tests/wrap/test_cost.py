"""What LoRA costs on models of a user's own: its step against full fine-tuning's, and nothing as big as a weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import pytest
from flax import nnx
from jax.extend import core

import peftjax
from peftjax import masks, methods
from peftjax.model import Model
from peftjax.train.flops import count_flops
from tests.wrap import grid, models, test_collections

WIDE = {"HIDDEN": 256, "INNER": 192, "SIZE": 80, "LENGTH": 7}
CASES = (*grid.CASES, "gemma", "dantinox")


def large(case: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Model, dict[str, Any]]:
  """(the model in the sizes of `WIDE`, of shapes alone where its library allows, inputs)."""
  for name, size in WIDE.items():
    monkeypatch.setattr(models, name, size)
  if case == "gemma":
    module, variables, inputs = test_collections.gemma(256, 192, 40)
    return peftjax.wrap(module, variables, inputs), inputs
  if case == "dantinox":
    net, inputs = test_collections.dantinox(256, 64), {"x": test_collections.IDS}
    return peftjax.wrap(lambda net, x: net(x).logits, net, inputs), inputs
  inputs = {"x": models.tokens()}
  if case == "nnx":
    return peftjax.wrap(models.NnxTransformer(nnx.Rngs(0)), example_inputs=inputs), inputs
  if case == "function":
    return peftjax.wrap(models.function, jax.eval_shape(models.function_params), inputs), inputs
  make = {"linen": models.linen_vit, "haiku": models.haiku_transformer, "equinox_mlp": models.equinox_mlp,
          "equinox_vit": models.equinox_vit}[case]  # fmt: skip
  first, params, inputs = make()
  return peftjax.wrap(first, params, inputs), inputs


def step_of(model: Model, inputs: dict[str, Any]) -> tuple[Callable[..., Any], Any, Any]:
  """(the loss and its gradient, shapes of what trains and of what does not)."""
  part, rest = masks.partition(jax.eval_shape(lambda tree: tree, model.params), model.labels())

  def loss(part: Any, rest: Any) -> jax.Array:
    return grid.scalar(model.forward(masks.combine(part, rest), inputs))

  return jax.value_and_grad(loss), part, rest


REARRANGES = ("transpose", "reshape", "convert_element_type", "broadcast_in_dim", "squeeze", "slice", "copy", "rev",
              "dynamic_slice", "gather", "concatenate")  # fmt: skip


def computed(jaxpr: core.Jaxpr) -> Iterator[tuple[str, int]]:
  """(primitive, elements) of what a program and those within it compute; what only rearranges is left out."""
  for equation in jaxpr.eqns:
    inner = list(core.jaxprs_in_params(equation.params))
    for one in inner:
      yield from computed(one)
    if not inner and equation.primitive.name not in REARRANGES:
      yield from ((equation.primitive.name, math.prod(out.aval.shape)) for out in equation.outvars)


@pytest.mark.parametrize("case", CASES)
def test_a_step_of_lora_takes_at_most_seven_tenths_and_forms_nothing_as_big_as_a_weight(case, monkeypatch):
  if case.startswith(("equinox", "haiku")):
    pytest.importorskip(case.partition("_")[0])
  model, inputs = large(case, monkeypatch)
  lora = model.add(methods.LoRA(rank=1, targets="all-linear"))
  steps = step_of(lora, inputs), step_of(model.add(methods.Full()), inputs)
  counts = [count_flops(*one) for one in steps]
  assert counts[0] <= 0.70 * counts[1]
  weights = {math.prod(site.shape) for site in lora.bound[0].sites if min(site.shape) > 8}
  formed = [[one for one in _live(*step) if one[1] in weights] for step in steps]
  assert formed[1] and not formed[0], formed[0]


def _live(step: Callable[..., Any], *shapes: Any) -> list[tuple[str, int]]:
  """What the step computes of all that it reads."""
  closed = jax.jit(step).trace(*shapes).jaxpr
  live, _ = jax.interpreters.partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
  return list(computed(live))


@pytest.mark.parametrize("case", CASES)
def test_the_compilers_own_count_is_at_most_seven_tenths(case, monkeypatch):
  if case.startswith(("equinox", "haiku")):
    pytest.importorskip(case.partition("_")[0])
  model, inputs = large(case, monkeypatch)
  added = model.add(methods.LoRA(rank=1, targets="all-linear")), model.add(methods.Full())
  lora, full = (_compiled(*step_of(one, inputs)) for one in added)
  assert lora <= 0.70 * full


def _compiled(step: Callable[..., Any], *shapes: Any) -> float:
  return float(jax.jit(step).lower(*shapes).compile().cost_analysis()["flops"])
