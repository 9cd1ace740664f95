"""LoRA: Low-Rank Adaptation (Hu et al. 2021, arXiv 2106.09685).

    y = x W + s · (x A) B        A: [in, r], B: [r, out], s = α / r, or α / √r rank-stabilised (arXiv 2312.03732)

Of a convolution, A is one to r channels with the base's window, A: [*window, in, r], and B a pointwise one; where the
base has groups, B has too, B: [r / groups, out], and A reads all channels. B starts at zero, so the model starts as the
base. PiSSA (arXiv 2404.02948) and OLoRA (arXiv 2406.01775) start from the principal part A₀B₀ of W and act on the
residual W - s·A₀B₀. Here the base is never changed: A₀ and B₀ are kept as frozen leaves and
y = x W + s · ((x A) B - (x A₀) B₀), which is the same function.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from peftjax import masks
from peftjax.errors import UserError, nearest
from peftjax.methods.base import Call, Context, Leaves
from peftjax.methods.linear import LinearMethod, by_pattern
from peftjax.methods.loftq import loftq, principal_product
from peftjax.placement import matmul
from peftjax.sites import Site

INITS = ("kaiming", "gaussian", "orthogonal", "pissa", "olora", "loftq")
_FROM_WEIGHT = ("pissa", "olora")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRA(LinearMethod):
  """Low-rank updates of linear, embedding and convolution sites.

  Attributes:
    rank: r.
    alpha: α; the update is scaled by α / r.
    dropout: rate on the update's input while training.
    rslora: scale by α / √r.
    init: kaiming (uniform ±1/√in, as published and in PEFT), gaussian (N(0, 1/r²)), orthogonal, pissa, olora, loftq
      (on a quantised base; see `loftq.py`).
    loftq_iterations: T of LoftQ.
    rank_pattern, alpha_pattern: name pattern -> value, for modules that differ; a regular expression for the end of the
      name.
    lora_bias: B has a bias, scaled like the update.
    ensure_weight_tying: where the output layer is tied to the word embeddings, what acts on these acts on it too, not
      on one use of the table alone; and `modules_to_save` trains the table itself, not a copy.
    freeze_a: LoRA-FA (arXiv 2308.03303): A stays as drawn.
    lr_ratio: LoRA+ (arXiv 2402.12354): B's learning rate over A's.
  """

  name: ClassVar[str] = "lora"
  kinds: ClassVar[tuple[str, ...]] = ("linear", "embedding", "conv")
  windows: ClassVar[tuple[int, ...]] = (1, 2, 3)
  grouped: ClassVar[bool] = True
  leaf_names: ClassVar[tuple[str, ...]] = ("lora_a", "lora_b", "lora_b_bias")
  buffer_names: ClassVar[tuple[str, ...]] = ("lora_a_init", "lora_b_init", "lora_scale")
  patterns: ClassVar[tuple[str, ...]] = ("rank_pattern", "alpha_pattern")
  learning_rate: ClassVar[float] = 1e-3
  free: ClassVar[tuple[str, ...]] = ("rank", "alpha")

  rank: int = 8
  alpha: float = 8.0
  dropout: float = 0.0
  rslora: bool = False
  init: str = "kaiming"
  loftq_iterations: int = 1
  rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
  alpha_pattern: Mapping[str, float] = dataclasses.field(default_factory=dict)
  lora_bias: bool = False
  ensure_weight_tying: bool = False
  freeze_a: bool = False
  lr_ratio: float = 1.0

  def __post_init__(self) -> None:
    if self.init not in INITS:
      raise UserError(f"{self.name}.init: unknown {self.init!r}; {nearest(self.init, INITS)}")
    if self.init == "orthogonal" and self.rank % 2:
      raise UserError(f"{self.name}.rank: orthogonal initialisation needs an even rank, got {self.rank}")
    if self.init == "loftq" and self.name != "lora":
      raise UserError(f"{self.name}.init='loftq': LoftQ is defined for lora alone")
    if self.lora_bias and self.init in _FROM_WEIGHT:
      raise UserError(f"{self.name}.lora_bias cannot go with init={self.init!r}")

  def bind(self, context: Context) -> Self:
    if self.ensure_weight_tying and not any(site.kind == "unembedding" for site in context.sites):
      raise UserError(f"{self.name}.ensure_weight_tying: the model has no output layer that is tied to word embeddings")
    return super().bind(context)

  @property
  def needs_original(self) -> bool:
    return self.init == "loftq"

  def settings(self, name: str) -> tuple[int, float]:
    """(rank, scale) at a module."""
    rank = by_pattern(self.rank_pattern, name, self.rank)
    alpha = by_pattern(self.alpha_pattern, name, self.alpha)
    return rank, alpha / (rank**0.5 if self.rslora else rank)

  def scale(self, leaves: Leaves, site: Site) -> Any:
    """s at a module: of its settings, or of the leaf that says it."""
    return leaves.get("lora_scale", self.settings(site.names[0])[1])

  def free_leaves(self, site: Site) -> Leaves:
    return {"lora_scale": jnp.float32(self.settings(site.names[0])[1])}

  def reaches(self, site: Site) -> bool:
    is_tied = site.kind == "unembedding" and self.ensure_weight_tying and "embedding" in self.kinds
    return is_tied or super().reaches(site)

  def at_convolution(self, site: Site) -> Site:
    return dataclasses.replace(site, groups=1) if site.in_weights else site  # a change of the kernel as it is stored

  def refuses(self, site: Site) -> str:
    rank = self.settings(site.names[0])[0]
    if site.groups > 1 and (self.init in _FROM_WEIGHT or rank % site.groups):
      return f"a convolution of {site.groups} groups: they must divide the rank {rank}, and init be drawn"
    return super().refuses(site)

  def create(self, key: jax.Array, site: Site, base: Leaves) -> Leaves:
    if site.kind == "unembedding":
      return {}  # the leaves at its embedding site
    rank, scale = self.settings(site.names[0])
    *window, channels_in, features_out = site.shape
    channels_in *= site.groups
    features_in = math.prod(window) * channels_in
    if site.kind == "embedding":
      # PEFT draws the embedding's B and zeroes its A.
      return {"lora_a": jnp.zeros((features_in, rank)), "lora_b": jax.random.normal(key, (rank, features_out))}
    if self.init in _FROM_WEIGHT:
      kernel = base["kernel"].astype(jnp.float32).reshape(features_in, features_out)
      a, b = _principal(self.init, kernel, rank, scale)
      a = a.reshape(*window, channels_in, rank)
      return {"lora_a": a, "lora_b": b, "lora_a_init": a, "lora_b_init": b}
    if "original" in base:
      kernel, a, b = loftq(base["original"], base["quantized"], rank, scale, self.loftq_iterations)
      return {"lora_a": a, "lora_b": b} | ({"kernel": kernel} if self.loftq_iterations > 1 else {})
    leaves = _fresh(self.init, key, features_in, features_out, rank)
    leaves["lora_a"] = leaves["lora_a"].reshape(*window, channels_in, rank)
    leaves["lora_b"] = leaves["lora_b"][: rank // site.groups]
    if self.lora_bias:
      leaves["lora_b_bias"] = jnp.zeros(features_out)
    return leaves

  def after(self, leaves: Leaves, x: Any, y: jax.Array, site: Site, call: Call) -> jax.Array:
    return y + self.update(leaves, x, y.dtype, site, call)

  def update(self, leaves: Leaves, x: Any, dtype: Any, site: Site, call: Call) -> jax.Array:
    """The scaled low-rank part of the output."""
    if site.kind == "unembedding":  # x (A B)ᵀ
      a, b = (call.base(name).astype(dtype) for name in ("lora_a", "lora_b"))
      return jnp.asarray(self.scale(leaves, site), dtype) * matmul(matmul(x.astype(dtype), b.T), a.T)
    dropped = x if site.kind == "embedding" else call.dropout(x.astype(dtype), self.dropout)
    total = _raised(_image(dropped, leaves["lora_a"], dtype, site, call), leaves["lora_b"].astype(dtype), site.groups)
    if "lora_a_init" in leaves:
      total -= matmul(_image(x, leaves["lora_a_init"], dtype, site, call), leaves["lora_b_init"].astype(dtype))
    if "lora_b_bias" in leaves:
      total += leaves["lora_b_bias"].astype(dtype)
    return jnp.asarray(self.scale(leaves, site), dtype) * total

  def delta(self, leaves: Leaves, base: Leaves, site: Site, shared: Leaves) -> Leaves:
    del shared
    if site.kind == "unembedding":
      return {}  # the same table, changed at its embedding site
    if site.groups > 1:
      raise UserError(f"{self.name} cannot be merged at {site.name}: its update mixes the groups of the convolution")
    scale = self.scale(leaves, site)
    low_rank = leaves["lora_a"] @ leaves["lora_b"]
    if "lora_a_init" in leaves:
      low_rank -= leaves["lora_a_init"] @ leaves["lora_b_init"]
    deltas = {"embedding" if site.kind == "embedding" else "kernel": scale * low_rank}
    if "lora_b_bias" in leaves:
      if "bias" not in base:
        raise UserError(f"{self.name}.lora_bias cannot be merged at {site.name}: the base has no bias")
      deltas["bias"] = scale * leaves["lora_b_bias"]
    return deltas

  def rate_of(self, group: str) -> float:
    return self.learning_rate * (self.lr_ratio if group == "lora_b" else 1.0)

  def mask(self, name: str, leaf: Any) -> str:
    group = super().mask(name, leaf)
    if name.endswith(".lora_a") and self.freeze_a:
      return masks.FROZEN
    if name.endswith((".lora_b", ".lora_b_bias")) and self.lr_ratio != 1.0:
      return "lora_b"
    return group


def _fresh(init: str, key: jax.Array, features_in: int, features_out: int, rank: int) -> Leaves:
  if init == "orthogonal":
    # Rows of one orthogonal matrix, alternating, make A B = 0 with both factors nonzero.
    key_q, key_a, key_b = jax.random.split(key, 3)
    q = jnp.linalg.qr(jax.random.normal(key_q, (rank, rank)))[0]
    a = jax.random.normal(key_a, (features_in, rank // 2)) @ q[0::2] / 10.0
    b = (jax.random.normal(key_b, (features_out, rank // 2)) @ q[1::2]).T / 10.0
    return {"lora_a": a, "lora_b": b}
  if init == "gaussian":
    a = jax.random.normal(key, (features_in, rank)) / rank
  else:
    bound = features_in**-0.5
    a = jax.random.uniform(key, (features_in, rank), minval=-bound, maxval=bound)
  return {"lora_a": a, "lora_b": jnp.zeros((rank, features_out))}


def _principal(init: str, kernel: jax.Array, rank: int, scale: float) -> tuple[jax.Array, jax.Array]:
  if rank > min(kernel.shape):
    raise UserError(f"lora.rank={rank}: init={init!r} has at most {min(kernel.shape)} directions of a kernel to take")
  if init == "olora":
    q, r = jnp.linalg.qr(kernel.T)
    return r[:rank].T, q[:, :rank].T
  return principal_product(kernel, rank, scale)


def _image(x: jax.Array, a: jax.Array, dtype: Any, site: Site, call: Call) -> jax.Array:
  """x A, with r features: (x A) B stays two thin products."""
  if site.kind == "embedding":
    return jnp.take(a, x, axis=0).astype(dtype)
  if site.kind == "linear":
    return matmul(x.astype(dtype), a.astype(dtype))
  if site.groups > 1:
    return call.product(x, a, feature_group_count=1).astype(dtype)
  if call.rerun is None:
    raise UserError(f"lora cannot act on {site.name}: the convolution takes no other kernel")
  return call.rerun({"kernel": a}, x).astype(dtype)


def _raised(x: jax.Array, b: jax.Array, groups: int) -> jax.Array:
  """x B; of several groups, each group's features from its share of the rank."""
  if groups == 1:
    return matmul(x, b)
  rank, features = b.shape
  parts = jnp.einsum("...gr,rgo->...go", x.reshape(*x.shape[:-1], groups, rank), b.reshape(rank, groups, -1))
  return parts.reshape(*x.shape[:-1], features)
