"""LoReFT: low-rank linear-subspace representation fine-tuning (Wu et al. 2024, arXiv 2404.03592).

    Φ(h) = h + Rᵀ (W h + b - R h)        R: [r, d] with orthonormal rows, W: [r, d], b: [r]

edits the output of whole layers, at the first p and the last s tokens of a text alone; each of the two ends has its own
Φ in every layer. The leaf `rotation` [d, r] is unconstrained: Rᵀ is its orthonormal factor Q with a positive diagonal
of the triangular one, so an orthonormal leaf is Rᵀ itself. DiReFT, the paper's ablation, is h + W₂ᵀ (W₁ h + b).
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from peftjax.errors import UserError, nearest
from peftjax.masks import Patterns
from peftjax.methods import targets as default_targets
from peftjax.methods.base import MAY_BE_ZERO, Call, Context, Leaves, Targeted
from peftjax.placement import matmul
from peftjax.sites import Site

INITS = ("identity", "published")
_ENDS = ("prefix", "suffix")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReFT(Targeted):
  """Interventions on the outputs of layers.

  Attributes:
    rank: r.
    prefix_positions, suffix_positions: p and s; a text of fewer than 2p or 2s tokens is edited at half of them. 0
      leaves that end out.
    init: identity (W = R, b = 0, so that Φ starts as the identity), or published (W drawn as a torch linear layer).
    dropout: rate on the edit while training.
    orthogonal: LoReFT; False: DiReFT, whose W₂ starts at zero.
  """

  name: ClassVar[str] = "reft"
  kinds: ClassVar[tuple[str, ...]] = ("block",)
  leaf_names: ClassVar[tuple[str, ...]] = tuple(
    f"{end}_{leaf}" for end in _ENDS for leaf in ("rotation", "source_kernel", "source_bias")
  )
  learning_rate: ClassVar[float] = 2e-3
  only_notes: ClassVar[bool] = True

  rank: int = 4
  prefix_positions: int = dataclasses.field(default=1, metadata=MAY_BE_ZERO)
  suffix_positions: int = dataclasses.field(default=1, metadata=MAY_BE_ZERO)
  init: str = "identity"
  dropout: float = 0.0
  orthogonal: bool = True

  def __post_init__(self) -> None:
    if self.init not in INITS:
      raise UserError(f"{self.name}.init: unknown {self.init!r}; {nearest(self.init, INITS)}")
    if min(self.prefix_positions, self.suffix_positions) < 0 or not self.prefix_positions + self.suffix_positions:
      raise UserError(
        f"{self.name}: no position to edit; prefix_positions={self.prefix_positions}, "
        f"suffix_positions={self.suffix_positions}, expected two counts of which one is positive"
      )

  def default_targets(self, model_type: str) -> Patterns:
    return default_targets.EDITED.get(model_type, ("*",))

  def bind(self, context: Context) -> Self:
    for site in self.candidates(context):
      if self.rank > site.shape[0]:
        raise UserError(f"{self.name}.rank: {self.rank} exceeds the hidden size {site.shape[0]}")
    return super().bind(context)

  def select(self, context: Context) -> list[Site]:
    """The layers, and the model, whose attention mask tells where a text begins and ends."""
    return [*super().select(context), *(site for site in context.sites if site.kind == "model")]

  @property
  def counts(self) -> dict[str, int]:
    """How many positions are edited at each end."""
    counts = {"prefix": self.prefix_positions, "suffix": self.suffix_positions}
    return {end: count for end, count in counts.items() if count}

  def create(self, key: jax.Array, site: Site, base: Leaves) -> Leaves:
    del base
    if site.kind != "block":
      return {}
    leaves: Leaves = {}
    for index, end in enumerate(self.counts):
      key_rotation, key_kernel, key_bias = jax.random.split(jax.random.fold_in(key, index), 3)
      (size,) = site.shape
      rotation = orthonormal(jax.random.normal(key_rotation, (size, self.rank)))
      bound = size**-0.5
      kernel, bias = rotation, jnp.zeros(self.rank)
      if self.init == "published" or not self.orthogonal:
        kernel = jax.random.uniform(key_kernel, (size, self.rank), minval=-bound, maxval=bound)
      if self.init == "published":
        bias = jax.random.uniform(key_bias, (self.rank,), minval=-bound, maxval=bound)
      if not self.orthogonal and self.init == "identity":
        rotation = jnp.zeros_like(rotation)
      leaves |= {f"{end}_rotation": rotation, f"{end}_source_kernel": kernel, f"{end}_source_bias": bias}
    return leaves

  def before(self, leaves: Leaves, x: dict[str, Any], site: Site, call: Call) -> dict[str, Any]:
    if site.kind == "model":
      for stream in site.streams:
        call.notes[stream.embeds] = x.get(stream.mask)
    return x

  def after(self, leaves: Leaves, x: dict[str, Any], y: Any, site: Site, call: Call) -> Any:
    if site.kind == "model":
      call.notes.clear()  # later passes over one new token, from a cache, are not edited
      return y
    hidden, *rest = y
    mask = call.notes.get(site.streams[0].embeds) if site.streams else None
    if mask is not None and mask.shape != hidden.shape[:2]:
      raise UserError(f"{self.name}: the mask of {mask.shape[1]} tokens does not fit layers over {hidden.shape[1]}")
    for end, count in self.counts.items():
      positions = end_positions(mask, hidden.shape[:2], end, count)
      held = {name.removeprefix(f"{end}_"): leaf for name, leaf in leaves.items() if name.startswith(end)}
      hidden = _edit(hidden, positions, lambda h, held=held: self.network(held, h, call))
    return (hidden, *rest)

  def network(self, leaves: Leaves, h: jax.Array, call: Call) -> jax.Array:
    """Φ(h) - h."""
    rotation, kernel = leaves["rotation"].astype(jnp.float32), leaves["source_kernel"].astype(h.dtype)
    edit = matmul(h, kernel) + leaves["source_bias"].astype(h.dtype)
    if self.orthogonal:
      rotation = orthonormal(rotation)
      edit -= matmul(h, rotation.astype(h.dtype))
    return call.dropout(matmul(edit, rotation.astype(h.dtype).T), self.dropout)


def orthonormal(matrix: jax.Array) -> jax.Array:
  """The factor Q of [d, r] = Q U with U upper triangular and of positive diagonal, by Cholesky of the Gram matrix."""
  gram = matrix.T @ matrix
  lower = jnp.linalg.cholesky(gram)
  return jax.scipy.linalg.solve_triangular(lower, matrix.T, lower=True).T


def end_positions(mask: jax.Array | None, shape: tuple[int, int], end: str, count: int) -> jax.Array:
  """int[B, count]: the first or last `count` tokens, at most half of a text's; the sequence's length for none."""
  length = shape[1]
  mask = jnp.ones(shape, jnp.int32) if mask is None else mask.astype(jnp.int32)
  total = mask.sum(axis=1, keepdims=True)
  rank = jnp.where(mask > 0, jnp.cumsum(mask, axis=1) - 1, length)  # of each token among the text's
  wanted = jnp.arange(count)[None] if end == "prefix" else total - 1 - jnp.arange(count)[None]
  within = jnp.arange(count)[None] < jnp.minimum(total // 2, count)
  hit = rank[:, None, :] == wanted[:, :, None]  # [B, count, L]
  return jnp.where(within & hit.any(axis=-1), hit.argmax(axis=-1), length)


def _edit(hidden: jax.Array, positions: jax.Array, network: Any) -> jax.Array:
  """`hidden` [B, L, d] with network(h) added at `positions` [B, n]; those out of range are dropped."""
  safe = jnp.minimum(positions, hidden.shape[1] - 1)
  edit = network(jnp.take_along_axis(hidden, safe[..., None], axis=1)).astype(hidden.dtype)
  rows = jnp.arange(hidden.shape[0])[:, None]
  return hidden.at[rows, positions].add(edit, mode="drop")
