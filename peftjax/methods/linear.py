"""What the methods on linear sites share: PEFT's usual default targets, and settings by name pattern."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from peftjax import masks
from peftjax.errors import UserError, nearest
from peftjax.methods import targets as default_targets
from peftjax.methods.base import Call, Context, Targeted
from peftjax.patterns import full_match
from peftjax.placement import matmul
from peftjax.sites import Site


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearMethod(Targeted):
  """A method on linear sites whose default targets are LoRA's: attention's query and value.

  At convolutions, those that act there see a matrix [in · window, out] for the kernel, in the order in which torch has
  it, so that blocks, products and reflections are those of PEFT.

  Class attributes:
    patterns: its fields that map a name pattern to a value for modules that differ.
  """

  kinds: ClassVar[tuple[str, ...]] = ("linear",)
  patterns: ClassVar[tuple[str, ...]] = ()

  def at_convolution(self, site: Site) -> Site:
    return site.as_matrix()

  def default_targets(self, model_type: str) -> masks.Patterns:
    return default_targets.ATTENTION.get(model_type, ())

  def bind(self, context: Context) -> Self:
    bound = super().bind(context)
    names = [name for site in self.candidates(context) for name in site.names if bound.wants(name, site, context)]
    for field in self.patterns:
      check_patterns(f"{self.name}.{field}", getattr(self, field), names)
    return bound


def check_patterns(what: str, patterns: Iterable[str], names: list[str]) -> None:
  """Raises a `UserError` if a pattern of a field such as `rank_pattern` matches no name."""
  for pattern in patterns:
    if not any(ends_with(pattern, name) for name in names):
      tails = {one.rpartition(".")[2] for name in names for one in masks.called(name)}
      raise UserError(f"{what}: {pattern!r} matches no targeted module; {nearest(pattern, tails)}")


def ends_with(pattern: str, name: str) -> bool:
  """Whether a regular expression matches a dotted name from some component to its end."""
  return any(full_match(rf"(.*\.)?({pattern})$", one) for one in masks.called(name))


def by_pattern(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
  """The value of the first pattern that matches, or the default.

  >>> by_pattern({"query": 4}, "layer.0.query", 8), by_pattern({"query": 4}, "layer.0.key", 8)
  (4, 8)
  """
  for pattern, value in patterns.items():
    if ends_with(pattern, name):
      return value
  return default


def low_rank(x: Any, *factors: Any, dtype: Any) -> Any:
  """((x A) B) ..., left-associated, in `dtype`: thin products instead of a full-size one."""
  product = x.astype(dtype)
  for factor in factors:
    product = matmul(product, factor.astype(dtype))
  return product


def uniform_by_fan(key: jax.Array, shape: tuple[int, ...], fan_in: int) -> jax.Array:
  """Uniform within ±1/√fan_in: torch's default for a linear layer, Kaiming's with a = √5."""
  return jax.random.uniform(key, shape, minval=-(fan_in**-0.5), maxval=fan_in**-0.5)


def dropout_mask(call: Call, shape: tuple[int, ...], rate: float) -> jax.Array:
  """Ones, each zero with probability `rate` while training; unlike dropout's, what is kept is not scaled."""
  kept = call.dropout(jnp.ones(shape), rate)
  return kept if rate == 0.0 else (kept > 0).astype(jnp.float32)
