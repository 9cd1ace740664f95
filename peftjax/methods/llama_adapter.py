"""LLaMA-Adapter (Zhang et al. 2023, arXiv 2303.16199): adaption prompts behind a gate that starts at zero.

    y = softmax(q Kᵀ / √D) V + g · softmax(q K_Pᵀ / √D) V_P        K_P = P W_k, V_P = P W_v

in the attention of the last layers, before the output projection. P: [n, hidden] passes the layer's own key and value
projections but gets no rotation; the gate g, one number a layer, keeps the model as the base at the start. Hugging Face
PEFT's ADAPTION_PROMPT is the same function where the output projection has no bias.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from peftjax.errors import UserError
from peftjax.masks import Patterns
from peftjax.methods.base import Call, Context, Leaves, Targeted, layer_index
from peftjax.sites import Site

_PROJECTIONS = (("k_proj", "v_proj"), ("key", "value"), ("k", "v"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaAdapter(Targeted):
  """Gated attention to learned prompts.

  Attributes:
    num_virtual_tokens: n (PEFT's `adapter_len`).
    adapter_layers: how many layers, counted from the last; 0: all.
  """

  name: ClassVar[str] = "llama_adapter"
  kinds: ClassVar[tuple[str, ...]] = ("attention",)
  leaf_names: ClassVar[tuple[str, ...]] = ("adaption_prompt", "adaption_gate")
  learning_rate: ClassVar[float] = 9e-3

  num_virtual_tokens: int = 10
  adapter_layers: int = 0

  def default_targets(self, model_type: str) -> Patterns:
    del model_type
    return ("*",)

  def bind(self, context: Context) -> Self:
    sites = self.candidates(context)
    if not sites:
      raise UserError(f"method {self.name!r} needs attention layers, and this model declares none")
    method = super().bind(context)
    if not self.adapter_layers:
      return method
    if self.layers:
      raise UserError(f"{self.name}: give layers or adapter_layers, not both")
    known = sorted({layer for site in sites for name in site.names if (layer := layer_index(name)) is not None})
    if self.adapter_layers > len(known):
      raise UserError(f"{self.name}.adapter_layers: {self.adapter_layers} of a model of {len(known)} layers")
    return dataclasses.replace(method, layers=tuple(known[-self.adapter_layers :]), adapter_layers=0)

  def create(self, key: jax.Array, site: Site, base: Leaves) -> Leaves:
    del base
    hidden = site.hidden or math.prod(site.shape[::2])
    prompt = jax.random.normal(key, (self.num_virtual_tokens, hidden))
    return {"adaption_prompt": prompt, "adaption_gate": jnp.zeros(1)}

  def after(self, leaves: Leaves, x: dict[str, Any], y: jax.Array, site: Site, call: Call) -> jax.Array:
    k, v = _project(leaves["adaption_prompt"].astype(y.dtype)[None], call.module, site)
    heads, kv_heads, size = site.shape
    batch, length = x["q"].shape[:2]
    q = x["q"].reshape(batch, length, kv_heads, heads // kv_heads, size)
    logits = jnp.einsum("blkgd,nkd->bkgln", q, k, preferred_element_type=jnp.float32) / math.sqrt(size)
    weights = leaves["adaption_gate"] * jax.nn.softmax(logits, axis=-1)
    return y + jnp.einsum("bkgln,nkd->blkgd", weights.astype(y.dtype), v).reshape(y.shape)


def _project(prompt: jax.Array, module: Any, site: Site) -> tuple[jax.Array, jax.Array]:
  """Keys and values [n, K, D] of a prompt [1, n, hidden] by the attention module's own projections.

  These are its `keys_and_values(hidden)` if it has that method, and otherwise modules of usual names.
  """
  shape = (prompt.shape[1], *site.shape[1:])
  if hasattr(module, "keys_and_values"):
    k, v = module.keys_and_values(prompt)
    return k.reshape(shape), v.reshape(shape)
  for names in _PROJECTIONS:
    if all(hasattr(module, name) for name in names):
      k, v = (getattr(module, name)(prompt) for name in names)
      return k.reshape(shape), v.reshape(shape)
  raise UserError(f"llama_adapter finds no key and value projections in {type(module).__name__}")
