"""LoRA adapters as their factors with the scale in them, and the LoRA that given factors are.

ΔW = A B     with B ← s B, and for PiSSA and OLoRA  A ← [A, A₀],  B ← s [B; -B₀]
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from peftjax import masks
from peftjax.adapters.adapter import Adapter
from peftjax.errors import UserError
from peftjax.interop import targeting
from peftjax.methods.base import Leaves
from peftjax.methods.bound import Bound
from peftjax.methods.lora import LoRA
from peftjax.sites import Site

if TYPE_CHECKING:
  from peftjax.model import Model

Factors = dict[str, tuple[Site, Leaves]]
"""Dotted module path -> (site, {"lora_a": [..., in, r], "lora_b": [..., r, out], maybe "lora_b_bias": [..., out]})."""


def factors(one: Bound, adapter: Adapter) -> Factors:
  """The factors of a LoRA's sites, layers stacked.

  Raises:
    UserError: the method is not LoRA.
  """
  if type(one.method) is not LoRA:
    raise UserError(f"{one.method.name} has no factors of LoRA's; convert it by adapters.to_lora")
  found: Factors = {}
  trained = _trained(one, adapter)
  for site in one.sites:
    if site.kind == "unembedding":
      continue  # has the leaves of its embedding
    prefix = ".".join(site.leaf_path)
    held = _times(trained[prefix], scale_of(one, site))
    a, b = held["lora_a"], held["lora_b"]
    if "lora_a_init" in held:
      a = jnp.concatenate([a, held["lora_a_init"]], axis=-1)
      b = jnp.concatenate([b, -held["lora_b_init"]], axis=-2)
    leaves = {"lora_a": a, "lora_b": b}
    if "lora_b_bias" in held:
      leaves["lora_b_bias"] = held["lora_b_bias"]
    found[prefix] = (site, leaves)
  return found


def scale_of(one: Bound, site: Site) -> float:
  """α / r, or α / √r, times the bound's factor."""
  method: Any = one.method
  return float(one.scale * method.settings(site.names[0])[1])


def padded(leaves: Leaves, rank: int) -> Leaves:
  """The factors with zeros up to a rank."""
  extra = rank - leaves["lora_b"].shape[-2]
  a, b = leaves["lora_a"], leaves["lora_b"]
  return {
    **leaves,
    "lora_a": jnp.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, extra)]),
    "lora_b": jnp.pad(b, [(0, 0)] * (b.ndim - 2) + [(0, extra), (0, 0)]),
  }


def rank_of(leaves: Leaves) -> int:
  """The rank r of a LoRA's leaves, `lora_b` being [..., r, out]."""
  return int(leaves["lora_b"].shape[-2])


def method_for(model: Model, found: Mapping[str, tuple[Site, Leaves]], **settings: Any) -> LoRA:
  """The LoRA, of scale 1, whose leaves are these factors."""
  sites = [site for site, _ in found.values()]
  ranks = {name: rank_of(leaves) for name, (_, leaves) in found.items()}
  most = max(ranks.values())
  pattern = {_pattern(site): ranks[name] for name, (site, _) in found.items() if ranks[name] != most}
  return LoRA(
    rank=most,
    alpha=float(most),
    rank_pattern=pattern,
    alpha_pattern={name: float(rank) for name, rank in pattern.items()},
    targets=targets_for(model, sites),
    lora_bias=any("lora_b_bias" in leaves for _, leaves in found.values()),
    **settings,
  )


def targets_for(model: Model, sites: Iterable[Site]) -> masks.Patterns:
  """Patterns that choose these modules alone: their last names where that is enough."""
  chosen = {name for site in sites for name in site.names}
  names = [name for site in model.sites if site.kind in LoRA.kinds for name in site.names]
  tails = tuple(sorted({_tail(name) for name in chosen}))
  if {name for name in names if masks.matches(tails, name) and not model.context.in_head(name)} == chosen:
    return tails
  return targeting.exact_patterns(chosen, names)


def _tail(name: str) -> str:
  """What follows the last layer's number."""
  return re.split(r"\.\d+\.", name)[-1]


def _pattern(site: Site) -> str:
  """A `rank_pattern` key for the site's modules, one in each layer."""
  name = re.escape(site.names[0])
  return re.sub(r"\\\.\d+\\\.", lambda hit: r"\.\d+\.", name) if site.stack else name


def filled(base: Model, found: Mapping[str, tuple[Site, Leaves]], **settings: Any) -> Model:
  """The base with a LoRA of these factors."""
  model = base.add(method_for(base, found, **settings), jax.random.key(0))
  flat = masks.flatten(model.params)
  for path in model.adapter_paths():
    prefix, _, leaf = path.rpartition(".")
    leaves = found[prefix][1]
    value = leaves.get(leaf)
    flat[path] = jnp.zeros_like(flat[path]) if value is None else value.astype(flat[path].dtype)
  return model.with_params(masks.unflatten(flat))


def stacked(
  base: Model, held: Sequence[tuple[Bound, Adapter]], members: tuple[int, ...]
) -> tuple[Bound, dict[str, Any]]:
  """(one LoRA, {path: leaves of all}) of LoRAs that may differ in rank, scale and modules.

  It scales as the first does; of one that scales otherwise B takes the ratio.
  """
  each = [_trained(one, adapter) for one, adapter in held]
  sites = {".".join(site.leaf_path): site for one, _ in held for site in one.sites}
  trained: Any = held[0][0].method
  first: LoRA = dataclasses.replace(trained, targets=targets_for(base, sites.values()), exclude=(), layers=())
  found: dict[str, Any] = {}
  for prefix, site in sites.items():
    axes = len(site.stack)
    scale = scale_of(Bound(first, ()), site)
    rows = [_times(own[prefix], scale_of(one, site) / scale) if prefix in own else {}
            for own, (one, _) in zip(each, held)]  # fmt: skip
    for name in {name: None for row in rows for name in row}:
      leaves = [row[name] for row in rows if name in row]
      shape = tuple(max(sizes) for sizes in zip(*(leaf.shape for leaf in leaves)))  # ranks alone differ
      values = [_grown(row[name], shape) if name in row else jnp.zeros(shape, leaves[0].dtype) for row in rows]
      found[f"{prefix}.{name}"] = jnp.stack(values, axis=axes)
  return Bound(first, tuple(sites.values()), members=members), found


def _trained(one: Bound, adapter: Adapter) -> dict[str, Leaves]:
  """The leaves of each site as they are."""
  names = (*one.method.leaf_names, *one.method.buffer_names)
  prefixes = [".".join(site.leaf_path) for site in one.sites]
  return {prefix: {name: adapter.leaves[path] for name in names if (path := f"{prefix}.{name}") in adapter.leaves}
          for prefix in prefixes}  # fmt: skip


def _times(leaves: Leaves, ratio: float) -> Leaves:
  """The leaves with B, and what stands beside it, times a number."""
  if ratio == 1.0:
    return leaves
  return {name: ratio * leaf if name.startswith("lora_b") else leaf for name, leaf in leaves.items()}


def _grown(leaf: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  return jnp.pad(leaf, [(0, wanted - size) for wanted, size in zip(shape, leaf.shape)])
