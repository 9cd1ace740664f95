"""Learned vectors among a stream's own: where they are put, what the model sees of them, and how they are cut off."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from peftjax.errors import UserError
from peftjax.methods.base import Call, Context, Leaves, Method
from peftjax.sites import Site, Stream


@dataclasses.dataclass(frozen=True, kw_only=True)
class VirtualTokens(Method):
  """A method that puts learned embeddings before the input's.

  Attributes:
    num_virtual_tokens: n.
    num_transformer_submodules: PEFT keeps this many times n rows and uses the first n; 0: as PEFT chooses, 2 for
      encoder-decoder language models and 1 otherwise.
  """

  kinds: ClassVar[tuple[str, ...]] = ("model",)

  num_virtual_tokens: int = 20
  num_transformer_submodules: int = 0

  def __post_init__(self) -> None:
    if self.num_virtual_tokens < 1:
      raise UserError(f"{self.name}.num_virtual_tokens: expected at least 1, got {self.num_virtual_tokens}")

  def bind(self, context: Context) -> Self:
    limit = context.config.get("max_position_embeddings")
    if isinstance(limit, int) and self.num_virtual_tokens >= limit:
      raise UserError(f"{self.name}.num_virtual_tokens: {self.num_virtual_tokens} fill all {limit} positions")
    bound = super().bind(context)
    is_pair = any(len(site.streams) > 1 for site in context.sites if site.kind == "model")
    submodules = self.num_transformer_submodules or (2 if is_pair and not context.head else 1)
    return dataclasses.replace(bound, num_transformer_submodules=submodules)

  @property
  def rows(self) -> int:
    """How many embeddings are kept."""
    return self.num_virtual_tokens * max(self.num_transformer_submodules, 1)

  def select(self, context: Context) -> list[Site]:
    sites = [site for site in context.sites if site.kind == "model"]
    if not sites:
      raise UserError(f"method {self.name!r} needs a model that declares its embedding step, and this one does not")
    return sites

  def prompt(self, leaves: Leaves, call: Call | None = None) -> jax.Array:
    """All embeddings kept, [rows, hidden]; without a call, as for inference."""
    raise UserError(f"{self.name} makes no prompt")

  def before(self, leaves: Leaves, x: dict[str, Any], site: Site, call: Call) -> dict[str, Any]:
    stream = site.streams[0]
    check_room(self.name, call.module, x[stream.embeds].shape[1], self.num_virtual_tokens)
    if x.get(stream.packed) is not None:
      raise UserError(f"{self.name}: a prompt stands before one sequence; packed sequences cannot share it")
    return prepend(x, self.prompt(leaves, call)[: self.num_virtual_tokens], stream)

  def after(self, leaves: Leaves, x: dict[str, Any], y: dict[str, Any], site: Site, call: Call) -> dict[str, Any]:
    return cut(y, self.num_virtual_tokens, site.streams[0])


def prepend(inputs: dict[str, Any], prompt: jax.Array, stream: Stream) -> dict[str, Any]:
  """The model site's inputs with `prompt` [n, hidden] in every sequence of a stream: before it, or behind its start."""
  embeds = inputs[stream.embeds]
  batch, count = embeds.shape[0], prompt.shape[0]

  def joined(values: jax.Array, new: Any) -> jax.Array:
    new = jnp.broadcast_to(jnp.asarray(new, values.dtype), (batch, count, *values.shape[2:]))
    return jnp.concatenate([values[:, : stream.start], new, values[:, stream.start :]], axis=1)

  extended = {**inputs, stream.embeds: joined(embeds, prompt)}
  for name, value in {stream.mask: 1, **stream.along}.items():
    if inputs.get(name) is not None:
      extended[name] = joined(inputs[name], value)
  return {**extended, stream.positions: None} if stream.positions else extended


def cut(outputs: dict[str, Any], count: int, stream: Stream) -> dict[str, Any]:
  """The outputs without those of `count` virtual tokens."""

  def one(value: jax.Array, axis: int) -> jax.Array:
    ends = [(0, stream.start), (stream.start + count, value.shape[axis])]
    parts = [jax.lax.slice_in_dim(value, *each, axis=axis) for each in ends if each[0] < each[1]]
    return jnp.concatenate(parts, axis=axis)

  return {
    name: one(value, stream.outputs[name]) if name in stream.outputs else value for name, value in outputs.items()
  }


def shifted(inputs: dict[str, Any], module: Any, count: int, streams: Iterable[Stream]) -> dict[str, Any]:
  """The model site's inputs with the positions of sequences behind `count` virtual tokens.

  These are the positions given, or those that the model would count; None where they go on from a cache's, whose first
  tokens were shifted already.
  """
  for stream in streams:
    if stream.positions:
      inputs = {**inputs, stream.positions: _shifted(inputs, module, count, stream)}
  return inputs


def _shifted(inputs: dict[str, Any], module: Any, count: int, stream: Stream) -> jax.Array | None:
  positions = inputs.get(stream.positions)
  if positions is None and hasattr(module, "default_positions"):
    positions = module.default_positions(inputs)
    if positions is None:
      return None
  elif positions is None:
    batch, length = inputs[stream.embeds].shape[:2]
    positions = jnp.broadcast_to(jnp.arange(length), (batch, length))
  return positions + count


def longest(inputs: dict[str, Any], site: Site) -> int:
  """The length of the model site's longest sequences."""
  return max(inputs[stream.embeds].shape[1] for stream in site.streams)


def check_room(name: str, module: Any, length: int, count: int) -> None:
  """Raises a `UserError` if a sequence of `length` and `count` virtual tokens exceed the model's learned positions."""
  limit = getattr(module, "position_limit", None)
  if limit is not None and length + count > limit:
    raise UserError(
      f"{name}: {length} tokens and {count} virtual tokens do not fit the model's {limit} positions; "
      f"shorten the texts to {limit - count} or use fewer virtual tokens"
    )
