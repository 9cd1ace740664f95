"""Prompt tuning (Lester et al. 2021, arXiv 2104.08691): learned embeddings before the input's.

    [p₁ ... pₙ ; e(x₁) ... e(x_L)] enters the model; the outputs of the n virtual tokens are cut off again.

A sequence classifier pools the first position, which is then a virtual token, as in Hugging Face PEFT.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from peftjax.errors import UserError, nearest
from peftjax.methods.base import Call, Context, Leaves, Method, Site

INITS = ("random", "vocab", "text")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt(Method):
  """Virtual tokens at the embedding step.

  Attributes:
    num_virtual_tokens: n.
    init: random (N(0, 1), as in PEFT), vocab (embeddings of tokens drawn from the vocabulary), or text.
    init_ids: for init="text": the token ids of the text, repeated or cut to n.
  """

  name: ClassVar[str] = "prompt"
  kinds: ClassVar[tuple[str, ...]] = ("model",)
  leaf_names: ClassVar[tuple[str, ...]] = ("prompt_embeddings",)
  learning_rate: ClassVar[float] = 3e-2

  num_virtual_tokens: int = 20
  init: str = "vocab"
  init_ids: tuple[int, ...] = ()

  def __post_init__(self) -> None:
    if self.init not in INITS:
      raise UserError(f"{self.name}.init: unknown {self.init!r}; {nearest(self.init, INITS)}")
    if self.init == "text" and not self.init_ids:
      raise UserError(f"{self.name}.init='text' needs init_ids, the token ids of the text")
    if self.num_virtual_tokens < 1:
      raise UserError(f"{self.name}.num_virtual_tokens: expected at least 1, got {self.num_virtual_tokens}")

  def bind(self, context: Context) -> Self:
    limit = context.config.get("max_position_embeddings")
    if isinstance(limit, int) and self.num_virtual_tokens >= limit:
      raise UserError(f"{self.name}.num_virtual_tokens: {self.num_virtual_tokens} fill all {limit} positions")
    return super().bind(context)

  def select(self, context: Context) -> list[Site]:
    sites = [site for site in context.sites if site.kind == "model"]
    if not sites:
      raise UserError(f"method {self.name!r} needs a model that declares its embedding step, and this one does not")
    return sites

  def create(self, key: jax.Array, site: Site, base: Leaves) -> Leaves:
    count = self.num_virtual_tokens
    if self.init == "random":
      return {"prompt_embeddings": jax.random.normal(key, (count, *site.shape))}
    vocabulary = base["embedding"]
    if self.init == "text":
      ids = jnp.resize(jnp.asarray(self.init_ids), (count,))
    else:
      ids = jax.random.randint(key, (count,), 0, vocabulary.shape[0])
    return {"prompt_embeddings": vocabulary[ids].astype(jnp.float32)}

  def before(self, leaves: Leaves, x: dict[str, Any], site: Site, call: Call) -> dict[str, Any]:
    return prepend(x, leaves["prompt_embeddings"])

  def after(self, leaves: Leaves, x: dict[str, Any], y: dict[str, Any], site: Site, call: Call) -> dict[str, Any]:
    return cut(y, self.num_virtual_tokens, x["embeds"].shape[1])


def prepend(inputs: dict[str, Any], prompt: jax.Array) -> dict[str, Any]:
  """The inputs of the embedding step with `prompt` [n, hidden] before every sequence."""
  embeds = inputs["embeds"]
  batch, count = embeds.shape[0], prompt.shape[0]
  tokens = jnp.broadcast_to(prompt.astype(embeds.dtype), (batch, *prompt.shape))
  extended = {**inputs, "embeds": jnp.concatenate([tokens, embeds], axis=1), "position_ids": None}
  if inputs.get("attention_mask") is not None:
    mask = inputs["attention_mask"]
    extended["attention_mask"] = jnp.concatenate([jnp.ones((batch, count), mask.dtype), mask], axis=1)
  if inputs.get("token_type_ids") is not None:
    types = inputs["token_type_ids"]
    extended["token_type_ids"] = jnp.concatenate([jnp.zeros((batch, count), types.dtype), types], axis=1)
  return extended


def cut(outputs: dict[str, Any], count: int, length: int) -> dict[str, Any]:
  """The outputs without those of the first `count` of `count + length` positions."""

  def one(value: jax.Array) -> jax.Array:
    axis = value.ndim - 2  # [..., positions, features]
    has_positions = value.ndim >= 3 and value.shape[axis] == count + length
    return jax.lax.slice_in_dim(value, count, count + length, axis=axis) if has_positions else value

  return {name: one(value) for name, value in outputs.items()}


def positions_of(inputs: dict[str, Any], module: Any) -> jax.Array:
  """The positions of the sequence, int[B, L]: those given, or those that the model would count itself."""
  if inputs.get("position_ids") is not None:
    return inputs["position_ids"]
  if hasattr(module, "default_positions"):
    return module.default_positions(inputs["embeds"])
  return jnp.broadcast_to(jnp.arange(inputs["embeds"].shape[1]), inputs["embeds"].shape[:2])


def check_room(name: str, module: Any, length: int, count: int) -> None:
  """Raises a `UserError` if a sequence of `length` and `count` virtual tokens exceed the model's learned positions."""
  limit = getattr(module, "position_limit", None)
  if limit is not None and length + count > limit:
    raise UserError(
      f"{name}: {length} tokens and {count} virtual tokens do not fit the model's {limit} positions; "
      f"shorten the texts to {limit - count} or use fewer virtual tokens"
    )
