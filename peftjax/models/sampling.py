"""How the next token is chosen from logits: greedily, or drawn after temperature, top-k and top-p."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.errors import UserError

_UNROLLED = 16  # tokens of a sequence that are compared one after the other in the compiled program, not in a loop


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
  """How to generate. The names are Hugging Face's where it has one.

  Attributes:
    max_new_tokens: a sequence ends after this many tokens, if not before.
    temperature: logits are divided by it; 0: always the likeliest token.
    top_k: draw among this many likeliest tokens; 0: among all.
    top_p: draw among the likeliest tokens that together have at least this probability.
    repetition_penalty: logits of tokens that have occurred are divided by it if positive, multiplied if negative; under
      beam search log-probabilities, as Hugging Face does it.
    no_repeat_ngram_size: no sequence of so many tokens occurs twice in prompt and answer; 0: any may.
    min_new_tokens: no token that ends a sequence comes before so many others.
    suppress_tokens: tokens that never come; ids beyond the vocabulary are none.
    begin_suppress_tokens: tokens that do not come first.
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
  no_repeat_ngram_size: int = 0
  min_new_tokens: int = 0
  suppress_tokens: tuple[int, ...] = ()
  begin_suppress_tokens: tuple[int, ...] = ()
  eos_ids: tuple[int, ...] = ()
  pad_id: int = 0
  num_beams: int = 1
  length_penalty: float = 1.0
  early_stopping: bool = False

  def __post_init__(self) -> None:
    least = {"max_new_tokens": 1, "temperature": 0, "top_k": 0, "num_beams": 1, "no_repeat_ngram_size": 0}
    for name, bound in {**least, "min_new_tokens": 0}.items():
      if not bound <= getattr(self, name) < 2**31:
        raise UserError(f"generate.{name}: expected at least {bound}, got {getattr(self, name)}")
    if not 0.0 < self.top_p <= 1.0:
      raise UserError(f"generate.top_p: expected a share in (0, 1], got {self.top_p}")
    if not 0.0 < self.repetition_penalty < math.inf:
      raise UserError(f"generate.repetition_penalty: expected a positive number, got {self.repetition_penalty}")
    if not math.isfinite(self.length_penalty):
      raise UserError(f"generate.length_penalty: expected a finite number, got {self.length_penalty}")
    if self.min_new_tokens > self.max_new_tokens:
      raise UserError(f"generate.min_new_tokens={self.min_new_tokens}: more than max_new_tokens={self.max_new_tokens}")
    if self.num_beams > 1 and self.temperature > 0.0:
      raise UserError("generate.num_beams: beam search does not sample; leave temperature at 0")


def processed(
  scores_BxV: jax.Array, seen_BxV: jax.Array, history_BxP: jax.Array, count: jax.Array, sampling: Sampling
) -> jax.Array:
  """Scores of the next token after the rules that look back, in Hugging Face's order.

  Args:
    seen_BxV: bool, which tokens have occurred; not looked at without a penalty.
    history_BxP: int32, prompt and answer so far, in slots of which the last `max_new_tokens` are the answer's; -1 where
      there is no token. Not looked at unless sequences may not repeat.
    count: how many tokens the answer has.
  """
  scores = penalised(scores_BxV, seen_BxV, sampling.repetition_penalty)
  if sampling.no_repeat_ngram_size:
    size = history_BxP.shape[1] - sampling.max_new_tokens + count
    scores = jnp.where(repeating(history_BxP, size, sampling.no_repeat_ngram_size, scores.shape[1]), -jnp.inf, scores)
  if sampling.min_new_tokens and sampling.eos_ids:
    is_end = jnp.zeros(scores.shape[1], bool).at[jnp.asarray(sampling.eos_ids)].set(True)
    scores = jnp.where(is_end & (count < sampling.min_new_tokens), -jnp.inf, scores)
  if sampling.suppress_tokens:
    scores = jnp.where(_among(sampling.suppress_tokens, scores.shape[1]), -jnp.inf, scores)
  if sampling.begin_suppress_tokens:
    first = _among(sampling.begin_suppress_tokens, scores.shape[1]) & (count == 0)
    scores = jnp.where(first, -jnp.inf, scores)
  return scores


def _among(tokens: tuple[int, ...], vocabulary: int) -> jax.Array:
  """bool[V]: which tokens are among some."""
  known = np.asarray([token for token in tokens if 0 <= token < vocabulary], np.int32)
  return jnp.zeros(vocabulary, bool).at[known].set(True)


def repeating(history_BxP: jax.Array, size: jax.Array, length: int, vocabulary: int) -> jax.Array:
  """bool[B, V]: the tokens that would make the last `length` of a history the same as some before.

  Args:
    size: slots of the history that are in use; -1 within them is no token, and equal to none.
  """
  slots, most = jnp.arange(history_BxP.shape[1]), history_BxP.shape[1]
  if length > most:  # none has room
    return jnp.zeros((history_BxP.shape[0], vocabulary), bool)

  def compared(back: Any, matches: jax.Array) -> jax.Array:
    ahead = history_BxP[:, jnp.minimum(slots + back, most - 1)]
    last = jax.lax.dynamic_slice_in_dim(history_BxP, jnp.maximum(size - length + 1 + back, 0), 1, axis=1)
    return matches & (ahead == last) & (ahead >= 0)

  matches = (slots + length <= size) & (history_BxP >= 0)
  if length > _UNROLLED:
    matches = jax.lax.fori_loop(0, length - 1, compared, matches)
  else:
    for back in range(length - 1):
      matches = compared(back, matches)
  following = history_BxP[:, jnp.minimum(slots + length - 1, most - 1)]
  rows = jnp.arange(history_BxP.shape[0])[:, None]
  matches &= (following >= 0) & (size >= length)
  return jnp.zeros((history_BxP.shape[0], vocabulary), bool).at[rows, jnp.maximum(following, 0)].max(matches)


def with_token(
  seen_BxV: jax.Array, history_BxP: jax.Array, tokens_B: jax.Array, count: jax.Array, sampling: Sampling
) -> tuple[jax.Array, jax.Array]:
  """What `processed` looks back at, after each row's token number `count` of its answer."""
  if seen_BxV.shape[1]:
    seen_BxV = seen_BxV.at[jnp.arange(len(tokens_B)), tokens_B].set(True)
  if history_BxP.shape[1]:
    at = history_BxP.shape[1] - sampling.max_new_tokens + count
    history_BxP = history_BxP.at[:, at].set(tokens_B)
  return seen_BxV, history_BxP


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
    logits = _kept(logits, sampling.top_p)
  return logits


class Draws(NamedTuple):
  """How each row of a batch chooses, where rows differ in it.

  Attributes:
    temperature: f32[B]; 0: always the likeliest token.
    top_p: f32[B], as of `Sampling`.
    seed: uint32[B]; what a row draws depends on it and on the row's own logits, not on its place.
  """

  temperature: jax.Array
  top_p: jax.Array
  seed: jax.Array


def choose_each(draws: Draws, logits_BxV: jax.Array, count: jax.Array) -> jax.Array:
  """int32[B]: the next token of each row, its own way; `count` is how many tokens its answer has."""
  logits = logits_BxV.astype(jnp.float32)
  likeliest = jnp.argmax(logits, axis=-1).astype(jnp.int32)

  def one(row: jax.Array, temperature: jax.Array, top_p: jax.Array, seed: jax.Array) -> jax.Array:
    row = row / jnp.where(temperature > 0, temperature, 1.0)
    return jax.random.categorical(jax.random.fold_in(jax.random.key(seed), count), _kept(row, top_p))

  drawn = lambda: jax.vmap(one)(logits, *draws).astype(jnp.int32)  # noqa: E731
  any_draws = jax.lax.cond((draws.temperature > 0).any(), drawn, lambda: likeliest)
  return jnp.where(draws.temperature > 0, any_draws, likeliest)


def _kept(logits: jax.Array, top_p: jax.Array | float) -> jax.Array:
  """[..., V]: -inf for the tokens that top-p (arXiv 1904.09751) leaves out."""
  ordered = jnp.sort(logits, axis=-1)[..., ::-1]
  share = jax.nn.softmax(ordered, axis=-1)
  is_kept = jnp.cumsum(share, axis=-1) - share < top_p  # the first is always kept
  least = jnp.min(jnp.where(is_kept, ordered, jnp.inf), axis=-1, keepdims=True)
  return jnp.where(logits < least, -jnp.inf, logits)


def choose(key: jax.Array, logits_BxV: jax.Array, sampling: Sampling) -> jax.Array:
  """int32[B]: the next token of each row. A row's draw depends on the key and the row's place in the batch alone."""
  logits = logits_BxV.astype(jnp.float32)
  if sampling.temperature == 0.0:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
  keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(logits.shape[0]))
  return jax.vmap(jax.random.categorical)(keys, narrowed(logits, sampling)).astype(jnp.int32)
