"""EVA: LoRA started from the data (Paischer et al. 2024, arXiv 2410.07170).

    A's columns = leading principal directions of what enters a module on the user's own batches;  B = 0

and, with ρ > 1, the budget of ranks goes where directions explain the largest share of a module's variance: of the
first ρ r of every module the best (r on average) over all modules are kept. B = 0, so the model starts as the base.

    model = eva.add(model, peftjax.methods.LoRA(rank=8, targets=("query", "value")), batches)
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from peftjax import masks
from peftjax.buffers import variables_of
from peftjax.errors import UserError
from peftjax.methods import LoRA
from peftjax.methods.inject import acting
from peftjax.model import Model
from peftjax.wrap.family import is_wrapped

# Number of rows, their sum and the sum of their outer products.
Moments = tuple[jax.Array, jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class Directions:
  """Principal directions of a module's inputs: components [k, in], singular values [k], share of the variance [k]."""

  components: np.ndarray
  singular_values: np.ndarray
  explained: np.ndarray


def add(
  model: Model,
  method: LoRA,
  batches: Iterable[Mapping[str, Any]],
  key: jax.Array | None = None,
  *,
  rho: float = 2.0,
  whiten: bool = False,
) -> Model:
  """The model with `method` added, its A set from the batches.

  Args:
    method: LoRA on linear sites; its rank is the average one. The scale stays α / r whatever rank a module gets, which
      is PEFT's `adjust_scaling_factors`.
    batches: the model's inputs; vectors that their stream's mask leaves out (`sites.Stream`) do not count. The moments
      of every targeted module are held at once, in² floats each.
    rho: ρ ≥ 1; a module gets a rank of at most ρ r. 1 leaves all ranks as they are.
    whiten: divide each direction by the root of its singular value.

  Raises:
    UserError: ρ below 1, a site that is not linear, no batch, or fewer rows than ranks.
  """
  if rho < 1.0:
    raise UserError(f"eva: rho: expected at least 1, got {rho}")
  if is_wrapped(model):
    raise UserError("eva watches the modules of this package's families; a model of your own has none")
  bound = method.bind(model.context)
  plain = model.unrolled()
  chosen = [site for site in bound.candidates(plain.context) if bound.wants(site.name, site, plain.context)]
  for site in chosen:
    if site.kind != "linear":
      raise UserError(f"eva acts on linear modules, and {site.name} is of kind {site.kind}")
  moments = collect(plain, [site.name for site in chosen], batches)
  found = {name: principal(one, name) for name, one in moments.items()}
  asked = {name: bound.settings(name)[0] for name in found}
  ranks = allocate(found, asked, rho) if rho > 1.0 else asked
  kept = {name: rank for name, rank in ranks.items() if rank}
  plainly = dataclasses.replace(method, init="kaiming")
  added = model.add(_with_ranks(method, bound, kept) if kept != asked else plainly, key)
  flat = dict(masks.flatten(added.params))
  for path in flat:
    if path.rpartition(".")[2] == "lora_a" and not path.startswith(f"{bound.name}."):
      names = [name.rpartition(".")[0] for name in masks.layer_names(path, added.stacks)]
      if all(name in found for name in names):
        columns = [_columns(found[name], flat[path].shape[-1], whiten) for name in names]
        value = np.stack(columns) if len(flat[path].shape) == 3 else columns[0]
        flat[path] = jnp.asarray(value, flat[path].dtype)
  return added.with_params(masks.unflatten(flat))


def collect(model: Model, names: Iterable[str], batches: Iterable[Mapping[str, Any]]) -> dict[str, Moments]:
  """Moments of what enters the named modules of an unrolled model, over all batches."""
  module = model.module
  assert isinstance(module, nn.Module)
  streams = {site.name: site.streams for site in model.sites}
  every = tuple(stream for site in model.sites if site.kind == "model" for stream in site.streams)
  wanted = {name: [stream.mask for stream in (*streams.get(name, ()), *every)] for name in names}

  @jax.jit
  def one(params: masks.Tree, batch: Mapping[str, Any]) -> dict[str, Moments]:
    held: dict[str, Moments] = {}
    with nn.intercept_methods(_watch(wanted, batch, held)), acting(model.bound, params) as whole:
      module.apply(variables_of(whole), **batch)
    return held

  total: dict[str, Moments] | None = None
  for batch in batches:
    moments = one(model.params, {name: jnp.asarray(value) for name, value in batch.items()})
    total = moments if total is None else jax.tree.map(jnp.add, total, moments)
  if total is None:
    raise UserError("eva: there is no batch to take directions from")
  return total


def _watch(
  wanted: Mapping[str, Sequence[str]], batch: Mapping[str, Any], held: dict[str, Moments]
) -> Callable[..., Any]:
  """An interceptor that notes the moments of the modules in `wanted`: name -> inputs that may be their stream's mask;
  the first counts that has an entry for each vector."""

  def watch(next_fun: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    name = ".".join(context.module.path) if context.module.scope is not None else ""
    if context.method_name == "__call__" and name in wanted:
      x = args[0].astype(jnp.float32)
      rows = x.reshape(-1, x.shape[-1])
      masks_of = [batch[mask] for mask in wanted[name] if mask in batch and batch[mask].shape == x.shape[:-1]]
      counts = masks_of[0].reshape(-1).astype(jnp.float32) if masks_of else jnp.ones(rows.shape[0])
      weighted = rows * counts[:, None]
      held[name] = (counts.sum(), weighted.sum(axis=0), rows.T @ weighted)
    return next_fun(*args, **kwargs)

  return watch


def principal(moments: Moments, name: str = "") -> Directions:
  """Principal directions from moments, by falling variance; each one's largest element is positive."""
  count, total, products = (np.asarray(value, np.float64) for value in moments)
  if count < 2:
    raise UserError(f"eva: {name} saw fewer than two rows")
  scatter = products - np.outer(total, total) / count
  values, vectors = np.linalg.eigh(scatter)
  values, vectors = np.maximum(values[::-1], 0.0), vectors.T[::-1]
  signs = np.sign(vectors[np.arange(len(vectors)), np.abs(vectors).argmax(axis=1)])
  return Directions(vectors * signs[:, None], np.sqrt(values), values / max(values.sum(), np.finfo(np.float64).tiny))


def allocate(found: Mapping[str, Directions], asked: Mapping[str, int], rho: float) -> dict[str, int]:
  """Ranks by name, as many in all as asked for: the directions that explain most among the first ρ r of each module."""
  shares = [
    (-share, index, name)
    for name, directions in found.items()
    for index, share in enumerate(directions.explained[: round(asked[name] * rho)])
  ]
  best = sorted(shares)[: sum(asked.values())]
  return {name: sum(owner == name for _, _, owner in best) for name in found}


def _with_ranks(method: LoRA, bound: LoRA, kept: Mapping[str, int]) -> LoRA:
  """The method on the modules that keep a rank, each with the scale it would have had."""
  root = 0.5 if method.rslora else 1.0
  alphas = {name: bound.settings(name)[1] * rank**root for name, rank in kept.items()}
  return dataclasses.replace(
    method,
    targets=tuple(kept),
    exclude=(),
    layers=(),
    init="kaiming",
    rank_pattern={re.escape(name): rank for name, rank in kept.items()},
    alpha_pattern={re.escape(name): alpha for name, alpha in alphas.items()},
  )


def _columns(directions: Directions, rank: int, whiten: bool) -> np.ndarray:
  columns = directions.components[:rank].T
  if columns.shape[1] < rank:
    raise UserError(f"eva: a module of {columns.shape[0]} inputs has no {rank} directions")
  return columns / np.sqrt(directions.singular_values[:rank]) if whiten else columns
