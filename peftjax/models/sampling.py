"""How the next token is chosen from logits: greedily, or drawn after temperature, top-k and top-p."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from peftjax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
  """How to generate. The names are Hugging Face's where it has one.

  Attributes:
    max_new_tokens: a sequence ends after this many tokens, if not before.
    temperature: logits are divided by it; 0: always the likeliest token.
    top_k: draw among this many likeliest tokens; 0: among all.
    top_p: draw among the likeliest tokens that together have at least this probability.
    repetition_penalty: logits of tokens that have occurred are divided by it if positive, multiplied if negative.
    eos_ids: tokens that end a sequence.
    pad_id: what stands after the end.
    num_beams: with 2 or more, beam search for the likeliest sequence instead.
    length_penalty: beams are compared by log-likelihood / length ** length_penalty.
    early_stopping: beam search ends as soon as there are `num_beams` finished sequences.
  """

  max_new_tokens: int = 64
  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  repetition_penalty: float = 1.0
  eos_ids: tuple[int, ...] = ()
  pad_id: int = 0
  num_beams: int = 1
  length_penalty: float = 1.0
  early_stopping: bool = False

  def __post_init__(self) -> None:
    for name, least in (("max_new_tokens", 1), ("temperature", 0), ("top_k", 0), ("num_beams", 1)):
      if getattr(self, name) < least:
        raise UserError(f"generate.{name}: expected at least {least}, got {getattr(self, name)}")
    if not 0.0 < self.top_p <= 1.0:
      raise UserError(f"generate.top_p: expected a share in (0, 1], got {self.top_p}")
    if self.repetition_penalty <= 0.0:
      raise UserError(f"generate.repetition_penalty: expected a positive number, got {self.repetition_penalty}")
    if self.num_beams > 1 and self.temperature > 0.0:
      raise UserError("generate.num_beams: beam search does not sample; leave temperature at 0")


def penalised(logits_BxV: jax.Array, seen_BxV: jax.Array, penalty: float) -> jax.Array:
  """The logits with those of seen tokens moved away (Keskar et al. 2019, arXiv 1909.05858)."""
  if penalty == 1.0:
    return logits_BxV
  moved = jnp.where(logits_BxV > 0, logits_BxV / penalty, logits_BxV * penalty)
  return jnp.where(seen_BxV, moved, logits_BxV)


def narrowed(logits_BxV: jax.Array, sampling: Sampling) -> jax.Array:
  """The logits divided by the temperature, -inf for tokens that top-k or top-p (arXiv 1904.09751) leave out."""
  logits = logits_BxV / sampling.temperature
  vocabulary = logits.shape[-1]
  if 0 < sampling.top_k < vocabulary:
    least = jax.lax.top_k(logits, sampling.top_k)[0][:, -1:]
    logits = jnp.where(logits < least, -jnp.inf, logits)
  if sampling.top_p < 1.0:
    ordered = jnp.sort(logits, axis=-1)[:, ::-1]
    share = jax.nn.softmax(ordered, axis=-1)
    is_kept = jnp.cumsum(share, axis=-1) - share < sampling.top_p  # the first is always kept
    least = jnp.min(jnp.where(is_kept, ordered, jnp.inf), axis=-1, keepdims=True)
    logits = jnp.where(logits < least, -jnp.inf, logits)
  return logits


def choose(key: jax.Array, logits_BxV: jax.Array, seen_BxV: jax.Array, sampling: Sampling) -> jax.Array:
  """int32[B]: the next token of each row. A row's draw depends on the key and the row's place in the batch alone."""
  logits = penalised(logits_BxV.astype(jnp.float32), seen_BxV, sampling.repetition_penalty)
  if sampling.temperature == 0.0:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
  keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(logits.shape[0]))
  return jax.vmap(jax.random.categorical)(keys, narrowed(logits, sampling)).astype(jnp.int32)
