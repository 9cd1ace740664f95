"""Prefix tuning (Li & Liang 2021, arXiv 2101.00190): learned keys and values before those of every attention layer.

    softmax(q [P_k ; K]ᵀ / √D) [P_v ; V]        P_k, P_v: [n, key heads, head size], one pair a layer

The prefix stands before the sequence, so the sequence's positions start at n, as where Hugging Face PEFT gives the
prefix as past keys and values. Reparametrised, all pairs come from one small network,

    [P_k ; P_v of all layers] = tanh(E W₁ + b₁) W₂ + b₂        E: [n, features], W₁: [features, hidden]

which trains in their place and is applied once in a forward pass. A prefix cannot start as the identity: even P_k = 0
draws attention.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from peftjax.errors import UserError, nearest
from peftjax.masks import Patterns, matches
from peftjax.methods import targets as default_targets
from peftjax.methods.base import Call, Context, Leaves, Targeted
from peftjax.methods.prompt import check_ids, encoded
from peftjax.methods.virtual_tokens import check_room, longest, shifted
from peftjax.sites import Site

INITS = ("random", "zero", "text")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prefix(Targeted):
  """Learned keys and values in every attention layer.

  Attributes:
    num_virtual_tokens: n.
    reparametrize: train the network that makes the prefixes instead of them (PEFT's `prefix_projection`).
    encoder_hidden_size: its hidden size; 0: the features of one layer's keys.
    init: random (N(0, 1), as in PEFT), zero (of a network, its last layer), or text: the keys and values that the base
      itself computes for the first n tokens of a text, so that the prefix of a causal model starts as that text.
    init_text: for init="text": the text, of at least n tokens.
    init_ids: its token ids, for who has no tokenizer.
  """

  name: ClassVar[str] = "prefix"
  kinds: ClassVar[tuple[str, ...]] = ("attention",)
  leaf_names: ClassVar[tuple[str, ...]] = (
    "prefix_k",
    "prefix_v",
    "encoder_embedding",
    "encoder_in_kernel",
    "encoder_in_bias",
    "encoder_out_kernel",
    "encoder_out_bias",
  )
  learning_rate: ClassVar[float] = 1e-2

  num_virtual_tokens: int = 20
  reparametrize: bool = False
  encoder_hidden_size: int = 0
  init: str = "random"
  init_text: str = ""
  init_ids: tuple[int, ...] = ()

  def __post_init__(self) -> None:
    if self.init not in INITS:
      raise UserError(f"{self.name}.init: unknown {self.init!r}; {nearest(self.init, INITS)}")
    if self.num_virtual_tokens < 1:
      raise UserError(f"{self.name}.num_virtual_tokens: expected at least 1, got {self.num_virtual_tokens}")
    if self.encoder_hidden_size and not self.reparametrize:
      raise UserError(f"{self.name}.encoder_hidden_size belongs to the network of reparametrize=True")
    if self.init == "text" and self.reparametrize:
      raise UserError(f"{self.name}.init='text' sets the prefix itself, which reparametrize=True leaves to a network")
    if self.init == "text" and not (self.init_ids or self.init_text):
      raise UserError(f"{self.name}.init='text' needs init_text, or init_ids, the token ids of the text")
    if self.init_ids and len(self.init_ids) < self.num_virtual_tokens:
      count = self.num_virtual_tokens
      raise UserError(f"{self.name}: the text has {len(self.init_ids)} tokens, fewer than num_virtual_tokens={count}")

  def default_targets(self, model_type: str) -> Patterns:
    return default_targets.PREFIX.get(model_type, ("*",))

  def bind(self, context: Context) -> Self:
    if not self.candidates(context):
      raise UserError(f"method {self.name!r} needs attention layers, and this model declares none")
    method = self if self.targets else dataclasses.replace(self, targets=_default_targets(self, context))
    if self.init == "text":
      method = dataclasses.replace(method, init_ids=self.init_ids or encoded(self.name, self.init_text, context))
    check_ids(self.name, method.init_ids, context)
    return super(Prefix, method).bind(context)

  def select(self, context: Context) -> list[Site]:
    """The attention sites, and the model's, where the positions of the streams that attend are shifted."""
    chosen = super().select(context)
    return [*chosen, *model_sites(context, chosen)]

  def calibration(self, sites: Sequence[Site]) -> Mapping[str, Any] | None:
    if self.init != "text":
      return None
    stream = next(site.streams[0] for site in sites if site.kind == "model")
    ids = jnp.asarray(self.init_ids)[None]
    return {stream.ids: ids, stream.mask: jnp.ones_like(ids)}

  def observe(self, x: Any, y: Any, site: Site) -> Leaves:
    del y
    if site.kind != "attention":
      return {}
    return {name: x[name][0, : self.num_virtual_tokens].astype(jnp.float32) for name in ("k", "v")}

  def create(self, key: jax.Array, site: Site, base: Leaves) -> Leaves:
    if site.kind != "attention" or self.reparametrize:
      return {}
    shape = (self.num_virtual_tokens, *site.shape[1:])
    if self.init == "text":
      return {"prefix_k": base["k"], "prefix_v": base["v"]}
    if self.init == "zero":
      return {"prefix_k": jnp.zeros(shape), "prefix_v": jnp.zeros(shape)}
    key_k, key_v = jax.random.split(key)
    return {"prefix_k": jax.random.normal(key_k, shape), "prefix_v": jax.random.normal(key_v, shape)}

  def create_shared(self, key: jax.Array, sites: Sequence[Site]) -> Leaves:
    if not self.reparametrize:
      return {}
    attention = [site for site in sites if site.kind == "attention"]
    features = math.prod(attention[0].shape[1:])
    hidden = self.encoder_hidden_size or features
    width = sum(2 * math.prod(site.shape[1:]) * len(site.names) for site in attention)
    key_embedding, key_in, key_out = jax.random.split(key, 3)
    in_kernel, in_bias = torch_linear(key_in, features, hidden)
    out_kernel, out_bias = torch_linear(key_out, hidden, width)
    if self.init == "zero":
      out_kernel, out_bias = jnp.zeros_like(out_kernel), jnp.zeros_like(out_bias)
    return {
      "encoder_embedding": jax.random.normal(key_embedding, (self.num_virtual_tokens, features)),
      "encoder_in_kernel": in_kernel,
      "encoder_in_bias": in_bias,
      "encoder_out_kernel": out_kernel,
      "encoder_out_bias": out_bias,
    }

  def derive(self, shared: Leaves, sites: Sequence[Site]) -> list[Leaves]:
    """The prefixes that the network makes; layer after layer, keys before values."""
    if not self.reparametrize:
      return []
    hidden = jnp.tanh(shared["encoder_embedding"] @ shared["encoder_in_kernel"] + shared["encoder_in_bias"])
    rest = hidden @ shared["encoder_out_kernel"] + shared["encoder_out_bias"]
    derived: list[Leaves] = []
    for site in sites:
      if site.kind != "attention":
        derived.append({})
        continue
      shape = (self.num_virtual_tokens, len(site.names), 2, *site.shape[1:])
      width = math.prod(shape[1:])
      pairs = jnp.moveaxis(rest[:, :width].reshape(shape), 0, 2)  # [layers, 2, n, key heads, head size]
      rest = rest[:, width:]
      pairs = pairs if site.stack else pairs[0]
      derived.append({"prefix_k": pairs[..., 0, :, :, :], "prefix_v": pairs[..., 1, :, :, :]})
    return derived

  def before(self, leaves: Leaves, x: dict[str, Any], site: Site, call: Call) -> dict[str, Any]:
    if site.kind == "model":
      check_room(self.name, call.module, longest(x, site), self.num_virtual_tokens)
      return shifted(x, call.module, self.num_virtual_tokens, site.streams)
    return attend_to_prefix(x, leaves["prefix_k"], leaves["prefix_v"], call.module)


def _default_targets(method: Prefix, context: Context) -> Patterns:
  """The architecture's; all attention where these name a decoder's and the model has an encoder alone."""
  targets = method.default_targets(context.model_type)
  names = [name for site in method.candidates(context) for name in site.names]
  return targets if any(matches(targets, name) for name in names) else ("*",)


def model_sites(context: Context, attention: Sequence[Site]) -> list[Site]:
  """The model sites around attention sites, with the streams that run through these alone."""
  used = [stream for site in attention for stream in site.streams]
  found = [
    dataclasses.replace(site, streams=tuple(stream for stream in site.streams if stream in used))
    for site in context.sites
    if site.kind == "model"
  ]
  return [site for site in found if site.streams]


def attend_to_prefix(x: dict[str, Any], prefix_k: jax.Array, prefix_v: jax.Array, module: Any = None) -> dict[str, Any]:
  """Attention's arguments with n more keys and values before the sequence's, which every query sees.

  Args:
    prefix_k, prefix_v: [n, K, D], or [B, n, K, D] where they differ by example.
    module: its `prefix_bias(n)`, [1, H, 1, n], is what is added to the logits of the prefix; 0 where it has none.
  """
  batch, length = x["k"].shape[:2]
  count = prefix_k.shape[-3]

  def joined(prefix: jax.Array, sequence: jax.Array) -> jax.Array:
    prefix = jnp.broadcast_to(prefix.astype(sequence.dtype), (batch, *prefix.shape[-3:]))
    return jnp.concatenate([prefix, sequence], axis=1)

  def widened(value: jax.Array, fill: Any) -> jax.Array:
    value = jnp.broadcast_to(value, (*value.shape[:-1], length))
    return jnp.concatenate([jnp.full((*value.shape[:-1], count), fill, value.dtype), value], axis=-1)

  extended = {**x, "k": joined(prefix_k, x["k"]), "v": joined(prefix_v, x["v"])}
  if x.get("mask") is not None:
    extended["mask"] = widened(x["mask"], True)
  if x.get("bias") is not None:
    extended["bias"] = widened(x["bias"], 0)
    if hasattr(module, "prefix_bias"):
      shape = (*extended["bias"].shape[:-1], count)
      extended["bias"] = extended["bias"].at[..., :count].set(jnp.broadcast_to(module.prefix_bias(count), shape))
  return extended


def torch_linear(key: jax.Array, features_in: int, features_out: int) -> tuple[jax.Array, jax.Array]:
  """(kernel [in, out], bias [out]) drawn as `torch.nn.Linear` draws them: uniform within ±1/√in."""
  bound = features_in**-0.5
  key_kernel, key_bias = jax.random.split(key)
  kernel = jax.random.uniform(key_kernel, (features_in, features_out), minval=-bound, maxval=bound)
  return kernel, jax.random.uniform(key_bias, (features_out,), minval=-bound, maxval=bound)
