"""Several adapters of one base as one, as Hugging Face PEFT's `add_weighted_adapter` combines LoRAs.

On LoRA's factors, exact for `cat` alone:

    cat      A = [w₁ s₁ A₁, w₂ s₂ A₂ ...], B = [B₁; B₂ ...]                the rank is the sum
    linear   A = Σ ±√|wᵢ sᵢ| Aᵢ, B = Σ √|wᵢ sᵢ| Bᵢ          and so ties, dare_linear, dare_ties and magnitude_prune

On the changes of the weights themselves, of any method that has them:

    svd, ties_svd, dare_linear_svd, dare_ties_svd, magnitude_prune_svd      ΔW, then a LoRA of a given rank
    the same with into="base"                                               ΔW added to the base, exact
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from peftjax import masks
from peftjax.adapters import arithmetic, lora_form
from peftjax.adapters.abilities import check
from peftjax.adapters.adapter import Adapter, alike, check_one_base, checked_weights, take
from peftjax.adapters.converting import from_deltas
from peftjax.adapters.merging import acts_on_one_use, deltas
from peftjax.errors import UserError, nearest
from peftjax.methods.base import Leaves
from peftjax.methods.bound import Bound
from peftjax.methods.lora import LoRA
from peftjax.quantize_model import dequantize_leaves
from peftjax.sites import BASE_LEAVES, Site
from peftjax.vocabulary import untied

if TYPE_CHECKING:
  from peftjax.model import Model

ON_FACTORS = ("cat", *arithmetic.KINDS)
ON_WEIGHTS = ("svd", *(f"{kind}_svd" for kind in arithmetic.KINDS if kind != "linear"))
INTO = ("lora", "base")


def combine(
  models: Sequence[Model],
  weights: Sequence[float] = (),
  how: str = "svd",
  *,
  rank: int = 0,
  density: float | None = None,
  majority_sign: str = "total",
  clamp: float | None = None,
  key: jax.Array | None = None,
  into: str = "lora",
  along: int | None = None,
) -> Model:
  """The base of all models with one adapter for theirs.

  Args:
    models: one base, each with its adapter.
    weights: of each, of any sign; default 1.
    how: one of `ON_FACTORS` or `ON_WEIGHTS`.
    rank: of the LoRA that a kind of `ON_WEIGHTS` ends in; 0: the largest of the LoRAs'.
    density: share of the elements that ties, dare and magnitude_prune keep, in [0, 1].
    majority_sign: how ties elects a sign: total or frequency.
    clamp: quantile of all values at which the factors of a decomposition are cut off.
    key: of dare's draws; default `jax.random.key(0)`.
    into: "lora", or with a kind of `ON_WEIGHTS` "base": the merged model without an adapter.
    along: whose head, biases and whole modules are kept, where models trained such and differ in them.

  Raises:
    UserError: the models have different bases, ranks that a kind cannot combine, or a method without a change of
      weights; a setting is out of range.
  """
  if not models:
    raise UserError("no adapters to combine; expected at least one")
  weights = checked_weights(weights, len(models))
  _check(models, how, density, majority_sign, into)
  models = alike(models)
  base = _with_along(check_one_base(models), models, along)
  key = jax.random.key(0) if key is None else key
  kind = "linear" if how in ("svd", "cat") else how.removesuffix("_svd")
  share = 1.0 if density is None else density
  if how in ON_WEIGHTS:
    return _on_weights(base, models, weights, kind, rank, share, majority_sign, clamp, key, into)
  adapters = [take(model) for model in models]
  parts = [(_lora_of(adapter), adapter) for adapter in adapters]
  tying = _tying(parts)
  if how == "cat":
    return lora_form.filled(base, _concatenated(parts, weights), ensure_weight_tying=tying)
  factors = _by_factor(parts, weights, kind, share, majority_sign, key)
  return lora_form.filled(base, factors, ensure_weight_tying=tying)


def _check(models: Sequence[Model], how: str, density: float | None, sign: str, into: str) -> None:
  if how not in (*ON_FACTORS, *ON_WEIGHTS):
    raise UserError(f"how: unknown {how!r}; {nearest(how, (*ON_FACTORS, *ON_WEIGHTS))}")
  if sign not in arithmetic.SIGNS:
    raise UserError(f"majority_sign: unknown {sign!r}; {nearest(sign, arithmetic.SIGNS)}")
  prunes = how.removesuffix("_svd") in arithmetic.KINDS and how != "linear"
  if prunes and (density is None or not 0.0 <= density <= 1.0):
    raise UserError(f"density: {how} keeps a share of the elements, in [0, 1]; got {density}")
  if density is not None and not prunes:
    raise UserError(f"density: {how} prunes nothing; leave it out")
  if into not in INTO or (into == "base" and how not in ON_WEIGHTS):
    raise UserError(f"into={into!r} with how={how!r}: expected lora, or base with one of {', '.join(ON_WEIGHTS)}")
  for model in models:
    if not model.bound:
      raise UserError("a model has no adapter to combine")
    check(model.methods, "combine")


def _with_along(base: Model, models: Sequence[Model], along: int | None) -> Model:
  each = [take(model).along for model in models]
  flat = masks.flatten(base.params)
  for path in sorted({path for one in each for path in one}) if along is None else ():
    values = [one.get(path, flat[path]) for one in each]
    if any(value is not values[0] and not bool((value == values[0]).all()) for value in values):
      raise UserError(
        f"the models trained {path!r} each for itself, which has no combination; say by `along` whose is kept"
      )
  return base if along is None else base.with_params(masks.unflatten({**flat, **each[along]}))


def _lora_of(adapter: Adapter) -> Bound:
  adding = [one for one in adapter.bound if one.method.leaf_names]
  if len(adding) != 1 or type(adding[0].method) is not LoRA:
    names = ", ".join(one.method.name for one in adding)
    raise UserError(f"this combines LoRA's factors, and an adapter is {names}; use one of {', '.join(ON_WEIGHTS)}")
  return adding[0]


Parts = Sequence[tuple[Bound, Adapter]]


def _tying(parts: Parts) -> bool:
  """Whether LoRAs on word embeddings act on the output layer that is tied to them too."""
  on_table = [one for one, _ in parts if any(site.kind == "embedding" for site in one.sites)]
  found = {any(site.kind == "unembedding" for site in one.sites) for one in on_table}
  if len(found) > 1:
    kinds = ", ".join(ON_WEIGHTS)
    raise UserError(f"the adapters differ in ensure_weight_tying: their factors have no sum; use one of {kinds}")
  return found == {True}


def _concatenated(parts: Parts, weights: Sequence[float]) -> dict[str, tuple[Site, Leaves]]:
  found: dict[str, tuple[Site, Leaves]] = {}
  for (one, adapter), weight in zip(parts, weights):
    for path, (site, leaves) in lora_form.factors(one, adapter).items():
      leaves = {name: leaf * weight if name != "lora_a" else leaf for name, leaf in leaves.items()}
      if path not in found:
        found[path] = (site, leaves)
        continue
      held = found[path][1]
      held["lora_a"] = jnp.concatenate([held["lora_a"], leaves["lora_a"]], axis=-1)
      held["lora_b"] = jnp.concatenate([held["lora_b"], leaves["lora_b"]], axis=-2)
      if "lora_b_bias" in leaves:
        held["lora_b_bias"] = held.get("lora_b_bias", 0.0) + leaves["lora_b_bias"]
  return found


def _by_factor(
  parts: Parts, weights: Sequence[float], kind: str, density: float, sign: str, key: jax.Array
) -> dict[str, tuple[Site, Leaves]]:
  sites = {".".join(site.leaf_path): site for one, _ in parts for site in one.sites}
  found: dict[str, tuple[Site, Leaves]] = {}
  for path, site in sites.items():
    if site.kind == "unembedding":
      continue  # has the leaves of its embedding
    held = [(one, adapter.leaves, weight) for (one, adapter), weight in zip(parts, weights) if site in one.sites]
    if any(f"{path}.lora_a_init" in leaves for _, leaves, _ in held):
      raise UserError(f"{kind} on factors: a LoRA acts from its start's A₀ and B₀; use cat, or one of {ON_WEIGHTS}")
    ranks = {leaves[f"{path}.lora_b"].shape[-2] for _, leaves, _ in held}
    if len(ranks) > 1:
      raise UserError(f"{kind} on factors needs one rank, and {path!r} has {sorted(ranks)}; use cat or svd")
    products = [weight * lora_form.scale_of(one, site) for one, _, weight in held]
    roots = [abs(product) ** 0.5 for product in products]
    signed = [root if product >= 0 else -root for root, product in zip(roots, products)]
    own: Leaves = {}
    for index, (name, factor_weights) in enumerate((("lora_a", signed), ("lora_b", roots))):
      tensors = [leaves[f"{path}.{name}"] for _, leaves, _ in held]
      own[name] = _mapped(site, tensors, factor_weights, kind, density, sign, jax.random.fold_in(key, index))
    biases = [product * leaves[f"{path}.lora_b_bias"] for product, (_, leaves, _) in zip(products, held)
              if f"{path}.lora_b_bias" in leaves]  # fmt: skip
    if biases:
      own["lora_b_bias"] = sum(biases[1:], biases[0])
    found[path] = (site, own)
  return found


def layer_keys(key: jax.Array, site: Site, count: int) -> jax.Array:
  """Random keys [*stack, count]: one for each layer, by its name, and adapter."""
  each = [jax.random.split(jax.random.fold_in(key, zlib.crc32(name.encode())), count) for name in site.names]
  return jnp.stack(each).reshape(*site.stack, count) if site.stack else each[0]


def _mapped(
  site: Site,
  tensors: Sequence[jax.Array],
  weights: Sequence[float],
  kind: str,
  density: float,
  sign: str,
  key: jax.Array,
) -> jax.Array:
  """The tensors combined, each layer by itself."""

  def one(keys: jax.Array, *layer: jax.Array) -> jax.Array:
    return arithmetic.combined(layer, weights, kind, density, sign, keys)

  result: jax.Array = site.mapped(one)(layer_keys(key, site, len(tensors)), *tensors)
  return result


def _on_weights(
  base: Model, models: Sequence[Model], weights: Sequence[float], kind: str, rank: int, density: float, sign: str,
  clamp: float | None, key: jax.Array, into: str,
) -> Model:  # fmt: skip
  is_split = any(acts_on_one_use(model) for model in models)
  base = untied(base) if is_split else base
  each = [deltas(model, own_output=is_split) for model in models]
  places = {site.leaf(role): (site, role) for site in base.sites if site.method == "__call__" and site.kind != "bias"
            for role in BASE_LEAVES}  # fmt: skip
  total: dict[str, Any] = {}
  for path in {path: None for one in each for path in one}:
    held = [(one[path], weight) for one, weight in zip(each, weights) if path in one]
    site, role = places[path]
    used = "linear" if role == "bias" else kind
    tensors, own = [change for change, _ in held], [weight for _, weight in held]
    if site.places:
      tensors = [site.folded({role: change})[role] for change in tensors]
    total[path] = _mapped(site, tensors, own, used, density, sign, key)
    if site.places:
      total[path] = site.unfolded({role: total[path]})[role]
  if into == "base":
    flat = masks.flatten(dequantize_leaves(base.params, jnp.float32))
    for path, change in total.items():
      flat[path] = (flat[path].astype(jnp.float32) + change).astype(flat[path].dtype)
    return dataclasses.replace(base, params=masks.unflatten(flat), quantization_errors={}, is_altered=True)
  return from_deltas(base, total, rank or _largest_rank(models), clamp=clamp).model


def _largest_rank(models: Sequence[Model]) -> int:
  found = []
  for model in models:
    adapter = take(model)
    if not any(type(one.method) is LoRA for one in adapter.bound):
      raise UserError("rank: not all adapters are LoRA, so that none follows from them; give one, or into='base'")
    for one in adapter.bound:
      if type(one.method) is LoRA:
        found += [lora_form.rank_of(leaves) for _, leaves in lora_form.factors(one, adapter).values()]
  return max(found)
