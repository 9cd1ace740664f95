"""Any change of weights as a LoRA, by singular value decomposition; the best approximation of its rank.

ΔW = U S Vᵀ,  A = U_r,  B = S_r V_rᵀ        error = ‖ΔW - A B‖_F / ‖ΔW‖_F
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.adapters import lora_form
from peftjax.adapters.abilities import check
from peftjax.adapters.adapter import disabled
from peftjax.adapters.merging import acts_on_one_use, deltas
from peftjax.errors import UserError
from peftjax.methods.base import Leaves
from peftjax.sites import Site
from peftjax.vocabulary import untied

if TYPE_CHECKING:
  from peftjax.model import Model

_TABLES = ("kernel", "embedding")


@dataclasses.dataclass(frozen=True)
class Converted:
  """A LoRA in place of another method.

  Attributes:
    model: the base with the LoRA, which has scale 1.
    errors: dotted path of each changed leaf -> ‖ΔW - A B‖ / ‖ΔW‖, of Frobenius norms, one for each layer of a stack.
    ranks: the same of how many singular values are kept.
  """

  model: Model
  errors: Mapping[str, np.ndarray]
  ranks: Mapping[str, np.ndarray]


def to_lora(model: Model, rank: int = 0, energy: float = 0.0) -> Converted:
  """The model with a LoRA that does what its methods do, as well as a rank allows.

  Args:
    rank: of every module; or
    energy: share of each module's squared singular values to keep, in (0, 1]: the smallest rank that does. Layers of a
      stack have as many columns as the largest of them needs, the others' are zero.

  Raises:
    UserError: a method is not a change of the base's weights; the rank or the share is out of range.
  """
  if not model.bound:
    raise UserError("the model has no adapter to convert")
  if bool(rank) == bool(energy) or rank < 0 or not 0.0 <= energy <= 1.0:
    raise UserError(f"give either a rank, at least 1, or the energy to keep, in (0, 1]; got {rank=} and {energy=}")
  check(model.methods, "convert")
  is_split = acts_on_one_use(model)
  base = untied(disabled(model)) if is_split else disabled(model)
  return from_deltas(base, deltas(model, own_output=is_split), rank, energy)


def from_deltas(
  base: Model, changes: Mapping[str, jax.Array], rank: int = 0, energy: float = 0.0, clamp: float | None = None
) -> Converted:
  """The base with a LoRA for float32 changes of its leaves, by their dotted path.

  Args:
    clamp: both factors are cut off at this quantile of all their values.
  """
  found: dict[str, tuple[Site, Leaves]] = {}
  errors: dict[str, np.ndarray] = {}
  ranks: dict[str, np.ndarray] = {}
  for path, site in _sites(base, changes).items():
    own = {role: leaf for role in (*_TABLES, "bias") if (leaf := site.leaf(role)) in changes}
    folded = site.folded({role: changes[leaf] for role, leaf in own.items()})
    role = next((role for role in _TABLES if role in own), "")
    bias = folded.get("bias")
    if role:
      table = own[role]
      leaves, errors[table], ranks[table] = _decomposed(folded[role], site, rank, energy, clamp, table)
    else:
      leaves = {
        "lora_a": jnp.zeros((*site.lead, *site.shape[:-1], 1)),
        "lora_b": jnp.zeros((*site.lead, 1, site.shape[-1])),
      }
    found[path] = (site, leaves if bias is None else {**leaves, "lora_b_bias": bias})
  return Converted(lora_form.filled(base, found), errors, ranks)


def _sites(base: Model, changes: Mapping[str, jax.Array]) -> dict[str, Site]:
  """{module's path: its site} of the modules that changed."""
  owners: dict[str, list[Site]] = {}
  for site in base.sites:
    for role in (*_TABLES, "bias"):
      if site.kind != "bias":  # of a program of the user's own
        owners.setdefault(site.leaf(role), []).append(site)
  found = {}
  for path in changes:
    sites = [site for site in owners.get(path, []) if site.method == "__call__"]
    if not sites:
      raise UserError(
        f"{path!r} changes, and LoRA has no place for it: it acts on kernels, embeddings and their biases"
      )
    if sites[0].leaf("embedding") == path and len(owners[path]) > 1:
      raise UserError(f"{path!r} changes, and is also the output layer, where a LoRA on embeddings does not act")
    found[".".join(sites[0].path)] = sites[0]
  return found


def _decomposed(
  change: jax.Array, site: Site, rank: int, energy: float, clamp: float | None, path: str
) -> tuple[Leaves, np.ndarray, np.ndarray]:
  """(factors, error of each layer, rank of each layer) of a change as methods see it."""
  features = site.shape[-1]
  matrix = change.reshape(*site.lead, -1, features)
  limit = min(matrix.shape[-2:])
  if site.groups > 1:
    raise UserError(f"{path!r} changes, and the update of a LoRA mixes the {site.groups} groups of its convolution")
  if rank > limit:
    raise UserError(f"rank {rank} exceeds the {limit} singular values of {path!r}; {limit} is exact")
  u, s, vt = jnp.linalg.svd(matrix, full_matrices=False)
  if rank:
    kept = np.full(site.lead, rank)
  else:
    sums = np.cumsum(np.square(np.asarray(s, np.float64)), axis=-1)
    kept = np.minimum((sums < energy * sums[..., -1:] * (1.0 - 1e-7)).sum(axis=-1) + 1, limit)
  most = int(kept.max())
  s = jnp.where(jnp.arange(most) < jnp.asarray(kept)[..., None], s[..., :most], 0.0)
  a, b = u[..., :most] * (s[..., None, :] > 0), s[..., None] * vt[..., :most, :]
  if clamp is not None:
    a, b = site.mapped(functools.partial(_clamped, quantile=clamp))(a, b)
  norm = jnp.linalg.norm(matrix, axis=(-2, -1))
  error = jnp.linalg.norm(matrix - a @ b, axis=(-2, -1)) / jnp.where(norm > 0, norm, 1.0)
  a = a.reshape(*site.lead, *site.shape[:-1], most)
  return {"lora_a": a, "lora_b": b}, np.asarray(error), kept


def _clamped(a: jax.Array, b: jax.Array, quantile: float) -> tuple[jax.Array, jax.Array]:
  limit = jnp.quantile(jnp.concatenate([b.reshape(-1), a.reshape(-1)]), quantile)
  return jnp.clip(a, -limit, limit), jnp.clip(b, -limit, limit)
