"""Trainable tokens: some rows of the word embeddings, such as those of new tokens.

    e(t) ← R_i        for the i-th of the chosen tokens t

The leaf R [tokens, hidden] starts as the base's rows, so the model starts as the base, bitwise. Where the output layer
is tied to the embeddings, its rows change with them. The same leaf as Hugging Face PEFT's TRAINABLE_TOKENS.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Self

import jax
import jax.numpy as jnp

from peftjax.errors import UserError
from peftjax.masks import Patterns
from peftjax.methods.base import Call, Context, Leaves, Targeted
from peftjax.sites import Site


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainableTokens(Targeted):
  """Other rows in place of single ones of an embedding table.

  Attributes:
    token_indices: the tokens' ids.
    targets: embedding modules; left out: the model's word embeddings.
    init_random: start from rows of N(0, 1) instead of the base's (PEFT's init_weights=False).
  """

  name: ClassVar[str] = "trainable_tokens"
  kinds: ClassVar[tuple[str, ...]] = ("embedding", "unembedding")
  leaf_names: ClassVar[tuple[str, ...]] = ("token_rows",)
  learning_rate: ClassVar[float] = 1e-3

  token_indices: tuple[int, ...] = ()
  init_random: bool = False

  def __post_init__(self) -> None:
    if not self.token_indices:
      raise UserError(f"{self.name}.token_indices is empty; give the ids of the tokens to train")
    repeated = sorted({token for token in self.token_indices if self.token_indices.count(token) > 1})
    if repeated:
      raise UserError(f"{self.name}.token_indices: {repeated[0]} is given twice")

  def bind(self, context: Context) -> Self:
    method = self if self.targets else dataclasses.replace(self, targets=_word_embeddings(context))
    bound = super(TrainableTokens, method).bind(context)
    for site in bound.select(context):
      if site.kind == "embedding" and not all(0 <= token < site.shape[0] for token in self.token_indices):
        wrong = next(token for token in self.token_indices if not 0 <= token < site.shape[0])
        raise UserError(f"{self.name}.token_indices: {wrong} is outside {site.name}, which has {site.shape[0]} rows")
    return bound

  def create(self, key: jax.Array, site: Site, base: Leaves) -> Leaves:
    if site.kind == "unembedding":
      return {}
    if self.init_random:
      return {"token_rows": jax.random.normal(key, (len(self.token_indices), site.shape[1]))}
    return {"token_rows": base["embedding"][jnp.asarray(self.token_indices)].astype(jnp.float32)}

  def after(self, leaves: Leaves, x: jax.Array, y: jax.Array, site: Site, call: Call) -> jax.Array:
    if site.kind == "unembedding":
      chosen = jnp.asarray(self.token_indices)
      # The difference is exactly zero at the start, and so is what it adds.
      change = (call.base("token_rows") - call.base("embedding")[chosen]).astype(y.dtype)
      return y.at[..., chosen].add(x.astype(y.dtype) @ change.T)
    order = sorted(range(len(self.token_indices)), key=lambda index: self.token_indices[index])
    tokens = jnp.asarray([self.token_indices[index] for index in order])
    slot = jnp.clip(jnp.searchsorted(tokens, x), 0, len(order) - 1)
    rows = leaves["token_rows"].astype(y.dtype)[jnp.asarray(order)[slot]]
    return jnp.where((tokens[slot] == x)[..., None], rows, y)

  def delta(self, leaves: Leaves, base: Leaves, site: Site, shared: Leaves) -> Leaves:
    del shared
    if site.kind == "unembedding":
      return {}  # the same table, changed at its embedding site
    chosen = jnp.asarray(self.token_indices)
    change = leaves["token_rows"] - base["embedding"][chosen]
    return {"embedding": jnp.zeros_like(base["embedding"]).at[chosen].set(change)}


def _word_embeddings(context: Context) -> Patterns:
  tables = {site.path for site in context.sites if site.kind == "embedding"}
  paths = {".".join(site.base_path) for site in context.sites if site.kind == "model" and site.base_path in tables}
  if not paths:
    raise UserError("trainable_tokens: this model declares no word embeddings; set targets=(...)")
  return tuple(sorted(paths))
