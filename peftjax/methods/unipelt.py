"""UniPELT (Mao et al. 2022, arXiv 2110.07577): LoRA, a prefix and an adapter, each behind a learned gate.

    q, v    y = x W + G · (α / r) (x A) B             G = mean over tokens of σ(x g + c), one number a text
    prefix  softmax(q [G P_k ; K]ᵀ / √D) [G P_v ; V]
    mlp     branch ← branch + G · (act(branch D + d) U + u)

A gate reads the input of what it gates: each query's and value's own for LoRA, the attention sublayer's for the prefix,
the feed-forward sublayer's for the adapter. Padding is left out of the mean. B, U and u start at zero; the prefix is
what keeps the model from starting as the base.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from peftjax import masks
from peftjax.errors import UserError, nearest
from peftjax.methods import targets as default_targets
from peftjax.methods.base import MAY_BE_ZERO, Call, Context, Leaves, Targeted, layer_index
from peftjax.methods.bottleneck import ACTIVATIONS, hidden_of, near_zero
from peftjax.methods.prefix import attend_to_prefix, torch_linear
from peftjax.methods.virtual_tokens import check_room, longest, shifted
from peftjax.placement import matmul
from peftjax.sites import Site


@dataclasses.dataclass(frozen=True, kw_only=True)
class UniPELT(Targeted):
  """Three gated methods as one; 0 leaves one of them out.

  Attributes:
    targets: the linear modules that get LoRA; left out: attention's query and value.
    rank, alpha: of LoRA; rank 0 leaves it out.
    num_virtual_tokens: of the prefix; 0 leaves it out.
    bottleneck_dim, activation: of the adapter; 0 leaves it out.
    dropout: rate on LoRA's input and behind the adapter's activation while training.
  """

  name: ClassVar[str] = "unipelt"
  kinds: ClassVar[tuple[str, ...]] = ("linear",)
  leaf_names: ClassVar[tuple[str, ...]] = (
    "lora_a",
    "lora_b",
    "prefix_k",
    "prefix_v",
    "down_kernel",
    "down_bias",
    "up_kernel",
    "up_bias",
    "gate_kernel",
    "gate_bias",
  )
  learning_rate: ClassVar[float] = 5e-4

  rank: int = dataclasses.field(default=8, metadata=MAY_BE_ZERO)
  alpha: float = 16.0
  num_virtual_tokens: int = dataclasses.field(default=10, metadata=MAY_BE_ZERO)
  bottleneck_dim: int = dataclasses.field(default=48, metadata=MAY_BE_ZERO)
  activation: str = "relu"
  dropout: float = 0.0

  def __post_init__(self) -> None:
    if self.activation not in ACTIVATIONS:
      raise UserError(f"{self.name}.activation: unknown {self.activation!r}; {nearest(self.activation, ACTIVATIONS)}")
    if min(self.rank, self.num_virtual_tokens, self.bottleneck_dim) < 0:
      raise UserError(f"{self.name}: rank, num_virtual_tokens and bottleneck_dim are 0 or positive")
    if self.rank + self.num_virtual_tokens + self.bottleneck_dim == 0:
      raise UserError(f"{self.name}: rank, num_virtual_tokens and bottleneck_dim are all 0; nothing is left")

  def default_targets(self, model_type: str) -> masks.Patterns:
    return default_targets.ATTENTION.get(model_type, ())

  def select(self, context: Context) -> list[Site]:
    """LoRA's linear sites, attention, both sublayers, and the model, whose attention mask the gates need."""
    chosen = super().select(context) if self.rank else []
    for site in context.sites:
      wanted = {
        "attention": bool(self.num_virtual_tokens),
        "sublayer": bool(self._sublayer(site)),
        "model": True,
      }
      layers = [not self.layers or layer_index(name) in self.layers for name in site.names]
      if wanted.get(site.kind) and (site.kind == "model" or all(layers)):
        chosen.append(site)
      elif wanted.get(site.kind) and any(layers):
        raise masks.LayersDiffer(f"{self.name} treats the layers of {site.names[0]} differently")
    return chosen

  def _sublayer(self, site: Site) -> str:
    if site.method == "attention_branch" and self.num_virtual_tokens:
      return "prefix"
    return "adapter" if site.method == "mlp_branch" and self.bottleneck_dim else ""

  def create(self, key: jax.Array, site: Site, base: Leaves) -> Leaves:
    del base
    key_gate, key_a, key_b = jax.random.split(key, 3)
    if site.kind == "linear":
      bound = site.shape[0] ** -0.5
      a = jax.random.uniform(key_a, (site.shape[0], self.rank), minval=-bound, maxval=bound)
      return {"lora_a": a, "lora_b": jnp.zeros((self.rank, site.shape[1])), **_gate(key_gate, site.shape[0])}
    if site.kind == "attention":
      shape = (self.num_virtual_tokens, *site.shape[1:])
      return {"prefix_k": jax.random.normal(key_a, shape), "prefix_v": jax.random.normal(key_b, shape)}
    if site.kind == "model":
      return {}
    gate = _gate(key_gate, site.shape[0])
    if self._sublayer(site) == "prefix":
      return gate
    return {
      "down_kernel": near_zero(key_a, (site.shape[0], self.bottleneck_dim)),
      "down_bias": jnp.zeros(self.bottleneck_dim),
      "up_kernel": jnp.zeros((self.bottleneck_dim, site.shape[0])),
      "up_bias": jnp.zeros(site.shape[0]),
      **gate,
    }

  def before(self, leaves: Leaves, x: Any, site: Site, call: Call) -> Any:
    if site.kind == "model":
      for stream in site.streams:
        call.notes[stream.embeds] = x.get(stream.mask)
      if self.num_virtual_tokens:
        check_room(self.name, call.module, longest(x, site), self.num_virtual_tokens)
        return shifted(x, call.module, self.num_virtual_tokens, site.streams)
    if site.kind == "sublayer" and self._sublayer(site) == "prefix":
      call.notes["gate"] = gate_of(leaves, hidden_of(x), site, call)  # read in the attention that this sublayer calls
    if site.kind == "attention":
      gate = call.notes["gate"][..., None]
      return attend_to_prefix(x, gate * leaves["prefix_k"], gate * leaves["prefix_v"], call.module)
    return x

  def after(self, leaves: Leaves, x: Any, y: Any, site: Site, call: Call) -> Any:
    if site.kind == "model":
      call.notes.clear()
    if site.kind == "linear":
      a, b = leaves["lora_a"].astype(y.dtype), leaves["lora_b"].astype(y.dtype)
      update = matmul(matmul(call.dropout(x.astype(y.dtype), self.dropout), a), b)
      return y + self.alpha / self.rank * gate_of(leaves, x, site, call).astype(y.dtype) * update
    if site.kind == "sublayer" and self._sublayer(site) == "adapter":
      down_kernel, down_bias, up_kernel, up_bias = (
        leaves[name].astype(y.dtype) for name in ("down_kernel", "down_bias", "up_kernel", "up_bias")
      )
      hidden = call.dropout(ACTIVATIONS[self.activation](matmul(y, down_kernel) + down_bias), self.dropout)
      return y + gate_of(leaves, hidden_of(x), site, call).astype(y.dtype) * (matmul(hidden, up_kernel) + up_bias)
    return y


def gate_of(leaves: Leaves, x: jax.Array, site: Site, call: Call) -> jax.Array:
  """float32[B, 1, 1]: the mean over a text's tokens of σ(x g + c)."""
  logits = x.astype(jnp.float32) @ leaves["gate_kernel"] + leaves["gate_bias"]
  opened = jax.nn.sigmoid(logits)[..., 0]
  mask = call.notes.get(site.streams[0].embeds) if site.streams else None
  if mask is None or mask.shape != opened.shape:
    return opened.mean(axis=-1)[:, None, None]
  mask = mask.astype(jnp.float32)
  return ((opened * mask).sum(axis=-1) / jnp.maximum(mask.sum(axis=-1), 1.0))[:, None, None]


def _gate(key: jax.Array, features: int) -> Leaves:
  kernel, bias = torch_linear(key, features, 1)
  return {"gate_kernel": kernel, "gate_bias": bias}
