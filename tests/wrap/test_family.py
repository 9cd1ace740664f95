"""The LLaMA of this package, wrapped as a plain function, is the registered family, method by method."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import peftjax
from peftjax import masks
from peftjax.methods import METHODS
from peftjax.model import Model
from peftjax.train.flops import count_flops
from tests.models import decoder_models
from tests.wrap import grid

TARGETS = ("q_proj", "v_proj", "o_proj", "down_proj")
TOKENS = {"trainable_tokens": {"token_indices": (5, 17, 30)}, "lora-embedding": {"rank": 3}}
NAMES = (*grid.METHOD_SETTINGS, *TOKENS)


@functools.cache
def both() -> tuple[Model, Model, dict[str, Any]]:
  """(the registered model, the same wrapped, inputs)."""
  model = decoder_models.random_model({**decoder_models.LLAMA, "tie_word_embeddings": True})
  ids = jnp.asarray(decoder_models.token_ids())
  inputs = {"input_ids": ids, "attention_mask": jnp.ones_like(ids).at[0, -3:].set(0)}

  def function(params: Any, input_ids: Any, attention_mask: Any) -> Any:
    return model.module.apply({"params": params}, input_ids=input_ids, attention_mask=attention_mask)

  return model, peftjax.wrap(function, model.params, inputs), inputs


@functools.cache
def pair(name: str) -> tuple[Model, Model, dict[str, Any]]:
  """(the registered model, the wrapped one) with the same method of the same values."""
  model, wrapped, inputs = both()
  if name in TOKENS:
    targets: Any = ("embed_tokens",)
    method = METHODS[name.partition("-")[0]](**{"targets": targets, **TOKENS[name]})
    if name == "trainable_tokens":
      method = METHODS[name](**TOKENS[name])
    own = METHODS[name.partition("-")[0]](**{"targets": targets, **TOKENS[name]})
  else:
    own = method = grid.make(name, TARGETS)
  registered = grid.moved(model.add(method, jax.random.key(1)), scale=0.2)
  return registered, wrapped.add(own).with_params(registered.params), inputs


def run(model: Model, inputs: Any) -> Any:
  """((the loss, logits), gradients of what trains)."""
  trainable, frozen = masks.partition(model.params, model.labels())

  def loss(part: Any) -> Any:
    logits = model.forward(masks.combine(part, frozen), inputs)["logits"]
    return jnp.sin(logits).mean(), logits

  return jax.value_and_grad(loss, has_aux=True), trainable


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients_are_the_registered_familys(name):
  registered, wrapped, inputs = pair(name)
  assert set(masks.flatten(registered.params)) == set(masks.flatten(wrapped.params))
  assert wrapped.adapter_paths() == registered.adapter_paths()
  assert masks.flatten(wrapped.labels()) == masks.flatten(registered.labels())
  (one, ones), (two, twos) = (jax.jit(step)(part) for step, part in (run(registered, inputs), run(wrapped, inputs)))
  decoder_models.assert_close(two[1], one[1])
  grid.close(twos, ones, 1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_costs_no_more_than_two_percent_above_the_registered_familys(name):
  registered, wrapped, inputs = pair(name)
  (step, part), (other, same) = run(registered, inputs), run(wrapped, inputs)
  assert count_flops(other, same) <= 1.02 * count_flops(step, part)
