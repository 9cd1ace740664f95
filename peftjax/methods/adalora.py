"""AdaLoRA: adaptive budget allocation (Zhang et al. 2023, arXiv 2303.10512).

    y = x W + s · ((x A) ⊙ e) B        A: [in, r], e: [r], B: [r, out], s = α / r
    loss + γ · mean of ‖Aᵀ A - I‖_F and ‖B Bᵀ - I‖_F over all sites

Training starts with rank `init_r` everywhere. As it goes on, the singular values e of the least important triplets are
set to zero, over all sites at once, until `target_r` is left on average:

    I ← |w · ∇w|,  Ī ← β₁ Ī + (1 - β₁) I,  U ← β₂ U + (1 - β₂) |I - Ī|,  importance = Ī U
    triplet k: importance of e_k + mean importance of A's column k + mean importance of B's row k
    budget(t) = target + (init - target) (1 - (t - tinit) / (T - tfinal - tinit))³

The pruning is part of the optimizer (`transform`); nobody has to call it. e starts at zero, so the model starts as the
base, bitwise.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax

from peftjax import masks
from peftjax.errors import UserError
from peftjax.methods import targets as default_targets
from peftjax.methods.base import Call, Context, Leaves
from peftjax.methods.linear import LinearMethod
from peftjax.placement import matmul
from peftjax.sites import Site

_LEAVES = ("lora_a", "lora_b", "lora_e")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaLoRA(LinearMethod):
  """Low-rank updates in the form of a singular value decomposition, pruned while training.

  Attributes:
    init_r: rank at the start.
    target_r: average rank at the end.
    alpha: α.
    dropout: rate on the update's input while training.
    tinit: updates before pruning starts.
    tfinal: updates at the end in which the ranks stay.
    delta_t: updates between two prunings.
    beta1, beta2: of the moving averages of sensitivity and of its uncertainty.
    orth_reg_weight: γ.
  """

  name: ClassVar[str] = "adalora"
  kinds: ClassVar[tuple[str, ...]] = ("linear", "conv")
  windows: ClassVar[tuple[int, ...]] = (2,)
  grouped: ClassVar[bool] = False
  leaf_names: ClassVar[tuple[str, ...]] = _LEAVES
  learning_rate: ClassVar[float] = 1e-3

  init_r: int = 12
  target_r: int = 8
  alpha: float = 8.0
  dropout: float = 0.0
  tinit: int = 0
  tfinal: int = 0
  delta_t: int = 1
  beta1: float = 0.85
  beta2: float = 0.85
  orth_reg_weight: float = 0.5
  modules: int = dataclasses.field(default=0, repr=False)

  def __post_init__(self) -> None:
    if self.target_r > self.init_r:
      raise UserError(f"adalora.target_r: expected at most init_r={self.init_r}, got {self.target_r}")
    for field in ("beta1", "beta2"):
      if not 0.0 < getattr(self, field) < 1.0:
        raise UserError(f"adalora.{field}: expected a number between 0 and 1, got {getattr(self, field)}")

  def default_targets(self, model_type: str) -> masks.Patterns:
    return default_targets.ADALORA.get(model_type, ()) or super().default_targets(model_type)

  def bind(self, context: Context) -> Self:
    bound = super().bind(context)
    return dataclasses.replace(bound, modules=sum(len(site.names) for site in bound.select(context)))

  def create(self, key: jax.Array, site: Site, base: Leaves) -> Leaves:
    del base
    key_a, key_b = jax.random.split(key)
    return {
      "lora_a": 0.02 * jax.random.normal(key_a, (site.shape[0], self.init_r)),
      "lora_b": 0.02 * jax.random.normal(key_b, (self.init_r, site.shape[1])),
      "lora_e": jnp.zeros(self.init_r),
    }

  def after(self, leaves: Leaves, x: jax.Array, y: jax.Array, site: Site, call: Call) -> jax.Array:
    a, b, e = (leaves[name].astype(y.dtype) for name in _LEAVES)
    return y + matmul(call.product(call.dropout(x.astype(y.dtype), self.dropout), a) * (self._scale * e), b)

  def delta(self, leaves: Leaves, base: Leaves, site: Site, shared: Leaves) -> Leaves:
    del base, shared
    return {"kernel": (leaves["lora_a"] * (self._scale * leaves["lora_e"])) @ leaves["lora_b"]}

  def penalty(self, leaves: Leaves, site: Site) -> jax.Array:
    a, b = leaves["lora_a"], leaves["lora_b"]
    distances = jnp.linalg.norm(a.T @ a - jnp.eye(self.init_r)) + jnp.linalg.norm(b @ b.T - jnp.eye(self.init_r))
    return self.orth_reg_weight * distances / (2 * self.modules)

  def transform(self, optimizer: optax.GradientTransformation, total_steps: int) -> optax.GradientTransformation:
    if self.tinit >= total_steps - self.tfinal:
      raise UserError(
        f"adalora: tinit={self.tinit} and tfinal={self.tfinal} leave none of {total_steps} steps for pruning"
      )
    return _pruned(self, optimizer, total_steps)

  @property
  def _scale(self) -> float:
    # PEFT adds the 1e-5 to the rank.
    return self.alpha / (self.init_r + 1e-5)

  def budgets(self, total_steps: int) -> np.ndarray:
    """int32[total_steps + 1]: triplets that are left after each update, counted from 0."""
    first, last = self.init_r * self.modules, self.target_r * self.modules
    final = total_steps - self.tfinal
    share = 1.0 - (np.arange(total_steps + 1) - self.tinit) / (final - self.tinit)
    budget = ((first - last) * np.clip(share, 0.0, 1.0) ** 3 + last).astype(np.int32)
    return np.where(np.arange(total_steps + 1) <= self.tinit, first, budget)


class PruningState(NamedTuple):
  """Of `_pruned`: updates so far, the inner state, moving averages and kept triplets, by dotted name."""

  step: jax.Array
  inner: Any
  sensitivity: dict[str, jax.Array]
  uncertainty: dict[str, jax.Array]
  kept: dict[str, jax.Array]


def _pruned(method: AdaLoRA, inner: optax.GradientTransformation, total_steps: int) -> optax.GradientTransformation:
  budgets, final = jnp.asarray(method.budgets(total_steps)), total_steps - method.tfinal

  def init(params: masks.Tree) -> PruningState:
    own = _own(params)
    zeros = {name: jnp.zeros_like(leaf, jnp.float32) for name, leaf in own.items()}
    kept = {name: jnp.ones(leaf.shape, bool) for name, leaf in own.items() if name.endswith("lora_e")}
    return PruningState(jnp.zeros((), jnp.int32), inner.init(params), zeros, zeros, kept)

  def update(gradients: masks.Tree, state: PruningState, params: masks.Tree) -> tuple[masks.Tree, PruningState]:
    updates, inner_state = inner.update(gradients, state.inner, params)
    own, slopes, new = _own(params), masks.flatten(gradients), masks.flatten(optax.apply_updates(params, updates))
    learns = state.step < final
    sensitivity, uncertainty = {}, {}
    for name in own:
      now = jnp.abs(new[name] * slopes[name]).astype(jnp.float32)
      mean = method.beta1 * state.sensitivity[name] + (1.0 - method.beta1) * now
      spread = method.beta2 * state.uncertainty[name] + (1.0 - method.beta2) * jnp.abs(now - mean)
      sensitivity[name] = jnp.where(learns, mean, state.sensitivity[name])
      uncertainty[name] = jnp.where(learns, spread, state.uncertainty[name])
    importance = {name: sensitivity[name] * uncertainty[name] for name in own}
    dropped = method.init_r * method.modules - budgets[jnp.minimum(state.step, total_steps)]
    prunes = (state.step > method.tinit) & (learns & (state.step % method.delta_t == 0) | (state.step == final))
    pruned = _most_important(importance, dropped)
    kept = {name: jnp.where(prunes, pruned[name], state.kept[name]) for name in state.kept}
    flat = masks.flatten(updates)
    for name, mask in kept.items():
      applies = mask | ~(prunes | (state.step > final))
      flat[name] = jnp.where(applies, flat[name], -own[name]).astype(flat[name].dtype)
    return masks.unflatten(flat), PruningState(state.step + 1, inner_state, sensitivity, uncertainty, kept)

  return optax.GradientTransformation(init, update)


def _own(tree: masks.Tree) -> dict[str, jax.Array]:
  """The leaves of modules that have singular values."""
  flat = masks.flatten(tree)
  modules = [name.removesuffix("lora_e") for name in flat if name.endswith(".lora_e")]
  return {f"{module}{leaf}": flat[f"{module}{leaf}"] for module in modules for leaf in _LEAVES}


def _most_important(importance: dict[str, jax.Array], dropped: jax.Array) -> dict[str, jax.Array]:
  """Which triplets are left when the `dropped` least important ones of all sites go, ties with the last included."""
  scores = {}
  for name, own in importance.items():
    if name.endswith("lora_e"):
      module = name.removesuffix("lora_e")
      scores[name] = own + importance[f"{module}lora_a"].mean(axis=-2) + importance[f"{module}lora_b"].mean(axis=-1)
  ranked = jnp.sort(jnp.concatenate([score.reshape(-1) for score in scores.values()]))
  threshold = jnp.where(dropped > 0, ranked[jnp.maximum(dropped - 1, 0)], -jnp.inf)
  return {name: score > threshold for name, score in scores.items()}
