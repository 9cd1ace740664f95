"""DoRA: Weight-Decomposed Low-Rank Adaptation (Liu et al. 2024, arXiv 2402.09353).

    y = x W' + b,  W' = m ⊙ (W + s·A B) / ‖W + s·A B‖        m: [out], the norm is of each output's column

Of a convolution the norm is that of all weights of an output channel. m starts as W's norms and B at zero, so the model
starts as the base. The norm takes no gradient (section 4.3), and is never that of a formed matrix:

    ‖W + s·A B‖²_j = ‖W_j‖² + 2 s (Wᵀ A)_j · B_j + s² B_jᵀ (Aᵀ A) B_j        a thin product and an r×r Gram matrix

While training with dropout only the low-rank path is dropped; PEFT also drops the base's input, a second full product.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from peftjax.errors import UserError
from peftjax.methods.base import Call, Leaves
from peftjax.methods.lora import LoRA
from peftjax.sites import Site


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoRA(LoRA):
  """LoRA on the direction of each output's weights, with their magnitude learned apart."""

  name: ClassVar[str] = "dora"
  kinds: ClassVar[tuple[str, ...]] = ("linear", "conv")
  grouped: ClassVar[bool] = False
  leaf_names: ClassVar[tuple[str, ...]] = ("lora_a", "lora_b", "lora_magnitude")
  learning_rate: ClassVar[float] = 1e-3

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.lora_bias:
      raise UserError("dora.lora_bias: the bias has no place in the norm; use lora for it")

  def create(self, key: jax.Array, site: Site, base: Leaves) -> Leaves:
    kernel = base["kernel"].astype(jnp.float32)
    magnitude = jnp.sqrt(jnp.sum(jnp.square(kernel), axis=tuple(range(kernel.ndim - 1))))
    return {**super().create(key, site, base), "lora_magnitude": magnitude}

  def after(self, leaves: Leaves, x: jax.Array, y: jax.Array, site: Site, call: Call) -> jax.Array:
    kernel, bias = call.base("kernel"), call.base("bias")
    gain = (leaves["lora_magnitude"] / self._norm(leaves, kernel, site)).astype(y.dtype)
    update = self.update(leaves, x, y.dtype, site, call)
    product = y if bias is None else y - bias.astype(y.dtype)
    return y + (gain - 1.0) * product + gain * update

  def delta(self, leaves: Leaves, base: Leaves, site: Site, shared: Leaves) -> Leaves:
    kernel = base["kernel"]
    direction = kernel + super().delta(leaves, base, site, shared)["kernel"]
    return {"kernel": direction * (leaves["lora_magnitude"] / self._norm(leaves, kernel, site)) - kernel}

  def _norm(self, leaves: Leaves, kernel: jax.Array, site: Site) -> jax.Array:
    """‖W + s·A B‖ of each output, float32[out]."""
    a, b = leaves["lora_a"], leaves["lora_b"]
    if "lora_a_init" in leaves:
      a = jnp.concatenate([a, leaves["lora_a_init"]], axis=-1)
      b = jnp.concatenate([b, -leaves["lora_b_init"]], axis=0)
    a, b = (jax.lax.stop_gradient(leaf.astype(jnp.float32)) for leaf in (a, b))
    b *= self.scale(leaves, site)
    a, kernel = a.reshape(-1, a.shape[-1]), kernel.reshape(-1, kernel.shape[-1])
    cross = jnp.einsum("io,ir->ro", kernel, a.astype(kernel.dtype), preferred_element_type=jnp.float32)
    square = jnp.sum(jnp.square(kernel.astype(jnp.float32)), axis=0)
    return jnp.sqrt(square + jnp.sum((2.0 * cross + (a.T @ a) @ b) * b, axis=0))
