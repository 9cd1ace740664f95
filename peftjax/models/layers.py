"""What the model families share: attention backends, stacks of layers, dropout, the runtime options.

Shapes are in the names: B batch, L query length, S key length, H query heads, K key heads, D head size.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from peftjax.buffers import BATCH_STATS
from peftjax.draws import bernoulli
from peftjax.errors import UserError, nearest
from peftjax.models import cudnn
from peftjax.placement import current, in_rows, product
from peftjax.sites import HasSites

Dtype = Any


def _minimal(primitive: Any, *args: Any, **params: Any) -> bool:
  """Keeps the products with weights, and what the fused kernel of attention gives: it would run once more."""
  if primitive.name.startswith("dot_product_attention_fwd"):
    return True
  return bool(jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *args, **params))


REMAT_POLICIES = {
  "minimal": _minimal,
  "full": jax.checkpoint_policies.nothing_saveable,
}
_LONG = 1024  # tokens from which the weights of all heads at once are what fills a device's memory
ATTENTION_BACKENDS = ("auto", "xla", "heads", "cudnn")


def elementwise(function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
  """The function of each element, of which the backward pass keeps the derivative alone, not what it is made of."""

  @jax.custom_jvp
  def of(x: jax.Array) -> jax.Array:
    return function(x)

  @of.defjvp
  def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (change,) = primals, tangents
    value, derivative = jax.jvp(function, (x,), (jnp.ones_like(x),))
    return value, change * derivative

  return of


_GELU = elementwise(lambda x: nn.gelu(x, approximate=False))
_GELU_TANH = elementwise(lambda x: nn.gelu(x, approximate=True))
_SILU = elementwise(nn.silu)
ACTIVATIONS = {
  "gelu": _GELU,
  "gelu_new": _GELU_TANH,
  "gelu_pytorch_tanh": _GELU_TANH,
  "gelu_fast": _GELU_TANH,
  "mish": elementwise(jax.nn.mish),
  "quick_gelu": elementwise(lambda x: x * nn.sigmoid(1.702 * x)),
  "relu": nn.relu,
  "silu": _SILU,
  "swish": _SILU,
  "tanh": jnp.tanh,
}


@dataclasses.dataclass(frozen=True)
class Runtime:
  """How a model runs, apart from what config.json fixes.

  Attributes:
    dtype: dtype of the base leaves.
    compute_dtype: dtype of activations and matmuls; None: that of the leaves.
    attention: backend, one of `ATTENTION_BACKENDS`.
    remat: "none", or a key of `REMAT_POLICIES`: what the backward pass of each layer recomputes.
    scan_layers: homogeneous layers are one stacked, scanned layer.
    dropout: rate that replaces every rate of config.json; None keeps them.
    trains_as_stored: what trains of the base stays in the dtype of its leaves, in place of float32.
    output_hidden_states: also return the hidden states of all layers, "hidden_states" [layers + 1, B, L, hidden].
  """

  dtype: Dtype = jnp.float32
  compute_dtype: Dtype | None = None
  attention: str = "auto"
  remat: str = "none"
  scan_layers: bool = True
  dropout: float | None = None
  output_hidden_states: bool = False
  trains_as_stored: bool = False

  def __post_init__(self) -> None:
    if self.dropout is not None and not 0.0 <= self.dropout < 1.0:
      raise UserError(f"model.dropout={self.dropout}: expected a rate of at least 0 and below 1")
    if self.attention not in ATTENTION_BACKENDS:
      known = nearest(self.attention, ATTENTION_BACKENDS)
      raise UserError(f"model.attention: unknown backend {self.attention!r}; {known}")
    if self.remat != "none" and self.remat not in REMAT_POLICIES:
      raise UserError(f"model.remat: unknown policy {self.remat!r}; {nearest(self.remat, ['none', *REMAT_POLICIES])}")

  def rate(self, configured: float) -> float:
    """The dropout rate to use where config.json says `configured`."""
    return configured if self.dropout is None else self.dropout

  def dense(self, features: int, use_bias: bool = True, **kwargs: Any) -> nn.Dense:
    """A linear layer in the base's and the compute dtype."""
    dtypes = {"dtype": self.compute_dtype, "param_dtype": self.dtype}
    return nn.Dense(features, use_bias=use_bias, dot_general=product, **dtypes, **kwargs)

  def embed(self, count: int, features: int, **kwargs: Any) -> nn.Embed:
    """An embedding table in the base's and the compute dtype."""
    return Embed(count, features, dtype=self.compute_dtype, param_dtype=self.dtype, **kwargs)

  def layer_norm(self, epsilon: float, **kwargs: Any) -> nn.LayerNorm:
    """Layer normalisation; statistics in float32, output in the compute dtype."""
    dtype = self.compute_dtype
    return nn.LayerNorm(epsilon=epsilon, dtype=dtype, param_dtype=self.dtype, use_fast_variance=False, **kwargs)

  def group_norm(self, groups: int, epsilon: float) -> nn.GroupNorm:
    """Normalisation of groups of channels over all places; statistics in float32, output in the compute dtype."""
    return nn.GroupNorm(
      groups, epsilon=epsilon, dtype=self.compute_dtype, param_dtype=self.dtype, use_fast_variance=False
    )

  def conv(self, features: int, window: int, padding: int | tuple[int, int] = 0, stride: int = 1) -> nn.Conv:
    """A convolution of images [B, H, W, C] with a square window; `padding` on both sides of both axes, or each side."""
    sides = (padding, padding) if isinstance(padding, int) else padding
    dtypes = {"dtype": self.compute_dtype, "param_dtype": self.dtype}
    return nn.Conv(features, (window, window), strides=stride, padding=(sides, sides), **dtypes)

  def rms_norm(self, epsilon: float, offset: bool = False) -> RMSNorm:
    """Root-mean-square normalisation; with `offset` the scale is stored as its distance from one."""
    return RMSNorm(epsilon, offset, self.compute_dtype, self.dtype)


def activation(name: str) -> Any:
  """The activation function that config.json calls `name`."""
  if name not in ACTIVATIONS:
    raise UserError(f"config.json: unknown activation {name!r}; {nearest(name, ACTIVATIONS)}")
  return ACTIVATIONS[name]


class Embed(nn.Embed):
  """An embedding whose rows are chosen, then converted, so that their gradients add up in the table's dtype."""

  def __call__(self, inputs: jax.Array) -> jax.Array:
    """The rows of the table, [..., features] for integers [...]."""
    dtype = self.dtype or self.embedding.dtype
    return jnp.take(self.embedding, inputs, axis=0).astype(dtype)

  def attend(self, query: jax.Array) -> jax.Array:
    """Products [..., rows] of queries [..., features] with the rows of the table: a tied output layer."""
    query, table = nn.dtypes.promote_dtype(query, self.embedding, dtype=self.dtype)
    return in_rows(lambda rows: jnp.dot(rows, table.T), query)


class Dropout(nn.Module):
  """Dropout that is active exactly when the caller gave a "dropout" key."""

  rate: float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    if self.rate == 0.0 or not self.has_rng("dropout"):
      return x
    return dropout(self.make_rng("dropout"), x, self.rate)


def dropout(key: jax.Array, x: jax.Array, rate: float) -> jax.Array:
  """Zeroes each element with probability `rate` and scales the rest by 1 / (1 - rate)."""
  keep = bernoulli(key, 1.0 - rate, x.shape)
  return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


class RMSNorm(nn.Module, HasSites):
  """x / √(mean(x²) + ε) · scale, in float32 (Zhang and Sennrich 2019, arXiv 1910.07467).

  With `offset` the leaf is the scale's distance from one, as Gemma stores it.
  """

  epsilon: float
  offset: bool = False
  dtype: Dtype | None = None
  param_dtype: Dtype = jnp.float32
  sites: ClassVar = {"__call__": "norm"}

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    dtype = self.dtype or jnp.promote_types(x.dtype, self.param_dtype)
    wide = x.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
    if self.offset:
      offset = self.param("scale_offset", nn.initializers.zeros, (x.shape[-1],), self.param_dtype)
      return (normed * (1.0 + offset.astype(jnp.float32))).astype(dtype)
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), self.param_dtype)
    return normed.astype(dtype) * scale.astype(dtype)


# Attention --------------------------------------------------------------------------------------------------------


def padding_mask(attention_mask_BxS: jax.Array) -> jax.Array:
  """[B, 1, 1, S] bool: the keys that may be attended, from 1 for a token and 0 for padding."""
  return attention_mask_BxS.astype(bool)[:, None, None, :]


def attention(
  q_BxLxHxD: jax.Array,
  k_BxSxKxD: jax.Array,
  v_BxSxKxD: jax.Array,
  mask: jax.Array | None,
  *,
  bias: jax.Array | None = None,
  scale: float | None = None,
  softcap: float | None = None,
  backend: str = "auto",
  dropout_rate: float = 0.0,
  dropout_key: jax.Array | None = None,
  recompute: bool = False,
  causal: bool = False,
) -> jax.Array:
  """softmax(q kᵀ · scale + bias) v, grouped-query where K < H, softmax in float32.

  Args:
    mask: bool, broadcastable to [B, H, L, S]; False keys get no weight. None: all attend to all.
    bias: added to the scaled logits, broadcastable to [B, H, L, S].
    scale: default 1/√D.
    softcap: logits become cap · tanh(logits / cap) before bias and mask (Gemma 2).
    backend: "xla" computes all heads at once; "heads" maps over heads, whose smaller temporaries stay in the cache of a
      CPU; "cudnn" is the fused kernel of CUDA devices, where `cudnn.reason` gives none against it, and otherwise as
      "auto", which chooses by platform: "cudnn" where it can.
    dropout_key: drop attention weights at `dropout_rate`; None keeps all.
    recompute: the backward pass computes one head's weights at a time once more, so that those of all heads are never
      held; with "heads", which "auto" then chooses for long sequences on every platform.
    causal: the mask lets no token see a later one; regarded where L = S.

  Returns:
    [B, L, H, D] in q's dtype.
  """
  scale = q_BxLxHxD.shape[-1] ** -0.5 if scale is None else scale
  drop = dropout_rate > 0.0 and dropout_key is not None
  if backend in ("auto", "cudnn"):
    if not cudnn.reason(q_BxLxHxD, k_BxSxKxD, mask, bias, softcap, drop):
      causal = causal and q_BxLxHxD.shape[1] == k_BxSxKxD.shape[1]
      return cudnn.attention(q_BxLxHxD, k_BxSxKxD, v_BxSxKxD, mask, bias, scale, causal)
    shortest = _LONG if recompute else 128 if current().platform == "cpu" else math.inf
    backend = "heads" if q_BxLxHxD.shape[1] >= shortest else "xla"
  if backend == "heads":
    dropped = (dropout_key, dropout_rate) if drop else None
    return _attention_by_head(q_BxLxHxD, k_BxSxKxD, v_BxSxKxD, mask, bias, scale, softcap, recompute, dropped)
  batch, length, heads, size = q_BxLxHxD.shape
  kv_heads = k_BxSxKxD.shape[2]
  q = (q_BxLxHxD * scale).reshape(batch, length, kv_heads, heads // kv_heads, size)
  logits = jnp.einsum("blkgd,bskd->bkgls", q, k_BxSxKxD, preferred_element_type=jnp.float32)
  logits = logits.reshape(batch, heads, length, -1)
  weights = _softmax(logits, mask, bias, softcap)
  if drop:
    assert dropout_key is not None
    weights = dropout(dropout_key, weights, dropout_rate)
  weights = weights.astype(v_BxSxKxD.dtype).reshape(batch, kv_heads, heads // kv_heads, length, -1)
  return jnp.einsum("bkgls,bskd->blkgd", weights, v_BxSxKxD).reshape(batch, length, heads, size)


def attend(
  module: Any, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, rate: float = 0.0, **options: Any
) -> jax.Array:
  """`attention` as the module's runtime wants it, with weights dropped at config.json's `rate` while training."""
  rate = module.runtime.rate(rate)
  key = module.make_rng("dropout") if rate > 0.0 and module.has_rng("dropout") else None
  runtime = module.runtime
  options |= {"backend": runtime.attention, "recompute": runtime.remat == "full"}
  return attention(q, k, v, mask, dropout_rate=rate, dropout_key=key, **options)


def _softmax(
  logits_BxHxLxS: jax.Array, mask: jax.Array | None, bias: jax.Array | None, softcap: float | None
) -> jax.Array:
  if softcap is not None:
    logits_BxHxLxS = softcap * jnp.tanh(logits_BxHxLxS / softcap)
  if bias is not None:
    logits_BxHxLxS = logits_BxHxLxS + bias
  if mask is not None:
    # The lowest finite value rather than -inf: a row with no key at all gives uniform weights instead of NaN.
    logits_BxHxLxS = jnp.where(mask, logits_BxHxLxS, jnp.finfo(jnp.float32).min)
  return jax.nn.softmax(logits_BxHxLxS, axis=-1)


def _attention_by_head(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  mask: jax.Array | None,
  bias: jax.Array | None,
  scale: float,
  softcap: float | None,
  recompute: bool,
  dropped: tuple[Any, float] | None,
) -> jax.Array:
  """`attention`, one head after the other; `dropped`: the key and the rate at which weights are."""
  batch, length, heads, _ = q.shape
  slots, kv_heads = k.shape[1:3]

  def per_head(x: jax.Array | None) -> jax.Array | None:
    return None if x is None or x.shape[1] == 1 else jnp.moveaxis(x, 1, 0)

  shared_mask = mask[:, 0] if mask is not None and mask.shape[1] == 1 else None
  shared_bias = bias[:, 0] if bias is not None and bias.shape[1] == 1 else None

  def one(slices: tuple[Any, ...]) -> jax.Array:
    q_BxLxD, k_BxSxD, v_BxSxD, mask_BxLxS, bias_BxLxS, head = slices
    mask_BxLxS = shared_mask if mask_BxLxS is None else mask_BxLxS
    bias_BxLxS = shared_bias if bias_BxLxS is None else bias_BxLxS
    logits = jnp.einsum("bld,bsd->bls", q_BxLxD * scale, k_BxSxD, preferred_element_type=jnp.float32)
    weights = _softmax(logits, mask_BxLxS, bias_BxLxS, softcap)
    if dropped is not None:
      key, rate = dropped
      keep = bernoulli(key, 1.0 - rate, (batch, heads, length, slots), at=head)
      weights = jnp.where(keep, weights / (1.0 - rate), jnp.zeros_like(weights))
    return jnp.einsum("bls,bsd->bld", weights.astype(v_BxSxD.dtype), v_BxSxD)

  def heads_first(x: jax.Array) -> jax.Array:
    return jnp.moveaxis(x, 2, 0)

  if kv_heads != heads:
    k, v = (jnp.repeat(x, heads // kv_heads, axis=2) for x in (k, v))
  each = jax.checkpoint(one, prevent_cse=False) if recompute else one
  arrays = (heads_first(q), heads_first(k), heads_first(v), per_head(mask), per_head(bias))
  mapped = jax.lax.map(each, (*arrays, jnp.arange(heads)))
  return jnp.moveaxis(mapped, 0, 2)


# Stacks of layers -------------------------------------------------------------------------------------------------

# Variables beside the parameters that a stack holds once a layer: the keys and values of earlier tokens.
CACHE = "cache"


class _Unrolled(nn.Module):
  """Layers one after the other under the names "0", "1", ..., as Hugging Face names them."""

  block: type[nn.Module]
  args: tuple[tuple[Any, ...], ...]
  per_layer: bool

  @nn.compact
  def __call__(self, x: jax.Array, *inputs: Any) -> tuple[jax.Array, Any]:
    outputs = []
    for index, args in enumerate(self.args):
      given = inputs
      if self.per_layer:
        given = (jax.tree.map(lambda leaf, at=index: leaf[at], inputs[0]), *inputs[1:])
      x, output = self.block(*args, name=str(index))(x, *given)
      outputs.append(output)
    stacked = None if outputs[0] is None else jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)
    return x, stacked


def stack_of(
  block: type[nn.Module],
  args: tuple[Any, ...] | Sequence[tuple[Any, ...]],
  length: int,
  runtime: Runtime,
  *,
  per_layer: bool = False,
  alike: bool = True,
) -> nn.Module:
  """`length` layers as one module: scanned over stacked leaves where they are alike, or unrolled.

  A block's call takes (hidden, *inputs) and returns (hidden, per-layer output or None).

  Args:
    args: what every block is made from; where they are not `alike`, a sequence of that for each.
    per_layer: the block has two inputs; the first is a tree whose leaves have a leading layer axis, of which each layer
      gets its own slice. Otherwise all inputs are the same for all layers.
  """
  policy = None if runtime.remat == "none" else REMAT_POLICIES[runtime.remat]
  scanned = runtime.scan_layers and alike
  if policy is not None:
    # Under scan the loop body is compiled once and cannot be merged with its recomputation.
    block = nn.remat(block, policy=policy, prevent_cse=not scanned)
  if not scanned:
    each = tuple(args) if not alike else (tuple(args),) * length
    return _Unrolled(block, each, per_layer)
  stack = nn.scan(
    block,
    variable_axes={"params": 0, BATCH_STATS: 0, CACHE: 0},
    split_rngs={"params": True, "dropout": True},
    in_axes=(0, nn.broadcast) if per_layer else nn.broadcast,
    length=length,
  )
  return stack(*args)
