"""Beam search: the likeliest sequences found by keeping the K best beginnings of each row.

Scores are log-likelihood / length ** length_penalty. A sequence that ends among the K best continuations is set aside;
the search ends when no running beam could still beat the worst that is set aside (or, with early stopping, when K are).

Shapes are in the names: B rows, K beams, C candidates, N tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.models.kv_cache import take_rows
from peftjax.models.sampling import Sampling, processed, with_token

_LOW = -1e9
State = dict[str, Any]


def search(
  step: Callable[[Any, jax.Array], tuple[jax.Array, Any]],
  logits_BxV: jax.Array,
  cache: Any,
  before: tuple[jax.Array, jax.Array],
  sampling: Sampling,
) -> jax.Array:
  """int32[B, N]: the best sequence of each row, filled up with `pad_id`.

  Args:
    step: (cache, tokens int32[B * K]) -> (logits [B * K, V] of the next token, cache).
    logits_BxV: of the first token.
    cache: of the prompts, B rows.
    before: what the answers continue, B rows: the tokens seen and the history that `processed` takes.
  """
  rows, vocabulary = logits_BxV.shape
  beams, length = sampling.num_beams, sampling.max_new_tokens
  empty = jnp.full((rows, beams, length), sampling.pad_id, jnp.int32)
  first = jnp.where(jnp.arange(beams) == 0, 0.0, _LOW)  # all beams are the same until the first token
  state: State = {
    "count": jnp.int32(0),
    "cache": take_rows(cache, jnp.repeat(jnp.arange(rows), beams)),
    "logits": jnp.repeat(logits_BxV.astype(jnp.float32), beams, axis=0),
    "running": empty,
    "running_scores": jnp.broadcast_to(first, (rows, beams)),
    "finished": empty,
    "finished_scores": jnp.full((rows, beams), _LOW),
    "is_finished": jnp.zeros((rows, beams), bool),
    "can_improve": jnp.ones(rows, bool),
    "seen": jnp.repeat(before[0], beams, axis=0),
    "history": jnp.repeat(before[1], beams, axis=0),
  }

  def is_going(state: State) -> jax.Array:
    going = (state["count"] < length) & state["can_improve"].any()
    return going & ~state["is_finished"].all() if sampling.early_stopping else going

  def one(state: State) -> State:
    count = state["count"]
    state, tokens, parents = _extend(state, sampling, vocabulary)
    at = (jnp.arange(rows)[:, None] * beams + parents).reshape(-1)
    seen, history = with_token(state["seen"][at], state["history"][at], tokens.reshape(-1), count, sampling)
    logits, cache = step(take_rows(state["cache"], at), tokens.reshape(-1))
    return {**state, "cache": cache, "logits": logits.astype(jnp.float32), "seen": seen, "history": history}

  return jax.lax.while_loop(is_going, one, state)["finished"][:, 0]


def _extend(state: State, sampling: Sampling, vocabulary: int) -> tuple[State, jax.Array, jax.Array]:
  """(state with one token more, the tokens [B, K] of the beams that go on, the beams [B, K] they continue)."""
  rows, beams, length = state["running"].shape
  count = state["count"]
  candidates = max(2, 1 + len(sampling.eos_ids)) * beams  # enough that `beams` of them do not end
  log_probs = jax.nn.log_softmax(state["logits"], axis=-1)
  log_probs = processed(log_probs, state["seen"], state["history"], count, sampling)
  total = (log_probs.reshape(rows, beams, vocabulary) + state["running_scores"][:, :, None]).reshape(rows, -1)
  scores_BxC, at = jax.lax.top_k(total, candidates)
  parents, tokens = at // vocabulary, (at % vocabulary).astype(jnp.int32)
  sequences_BxCxN = _pick(state["running"], parents).at[:, :, count].set(tokens)
  is_end = (tokens[:, :, None] == jnp.asarray(sampling.eos_ids, jnp.int32)).any(axis=-1) | (count + 1 == length)

  scores, kept = jax.lax.top_k(jnp.where(is_end, scores_BxC + _LOW, scores_BxC), beams)
  state = {**state, **_set_aside(state, sequences_BxCxN, scores_BxC, is_end, sampling)}
  state |= {"running": _pick(sequences_BxCxN, kept), "running_scores": scores, "count": count + 1}
  state["can_improve"] = _can_improve(state, sampling)
  return state, _pick(tokens, kept), _pick(parents, kept)


def _set_aside(
  state: State, sequences_BxCxN: jax.Array, scores_BxC: jax.Array, is_end: jax.Array, sampling: Sampling
) -> State:
  beams = sampling.num_beams
  ends_here = is_end & (jnp.arange(scores_BxC.shape[1]) < beams)
  closed = ~state["can_improve"]
  if sampling.early_stopping:
    closed |= state["is_finished"].all(axis=1)
  ranked = scores_BxC / (state["count"] + 1.0) ** sampling.length_penalty
  ranked = jnp.where(ends_here & ~closed[:, None], ranked, ranked + _LOW)
  scores, kept = jax.lax.top_k(jnp.concatenate([state["finished_scores"], ranked], axis=1), beams)
  both = jnp.concatenate([state["finished"], sequences_BxCxN], axis=1)
  is_finished = jnp.concatenate([state["is_finished"], ends_here], axis=1)
  return {"finished": _pick(both, kept), "finished_scores": scores, "is_finished": _pick(is_finished, kept)}


def _can_improve(state: State, sampling: Sampling) -> jax.Array:
  best = state["running_scores"][:, 0] / state["count"].astype(jnp.float32) ** sampling.length_penalty
  worst = jnp.where(state["is_finished"], state["finished_scores"].min(axis=1, keepdims=True), _LOW)
  return state["can_improve"] & (best[:, None] > worst).any(axis=1)


def _pick(values_BxC: jax.Array, at_BxK: jax.Array) -> jax.Array:
  at = at_BxK.reshape(*at_BxK.shape, *(1,) * (values_BxC.ndim - 2))
  return jnp.take_along_axis(values_BxC, at, axis=1)
