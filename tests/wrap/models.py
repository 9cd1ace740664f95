"""Models as users write them, one for each library and each way of using a weight, tiny and of odd sizes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

VOCAB, HIDDEN, INNER, HEADS, SIZE, LAYERS, EXPERTS, LENGTH = 11, 12, 7, 2, 5, 3, 4, 6


def tokens(batch: int = 2, seed: int = 1) -> jax.Array:
  """int[batch, LENGTH]."""
  return jax.random.randint(jax.random.key(seed), (batch, LENGTH), 0, VOCAB)


class Draw:
  """Normal arrays, one after another."""

  def __init__(self, seed: int = 0) -> None:
    self.key = jax.random.key(seed)

  def __call__(self, *shape: int, scale: float = 0.3) -> jax.Array:
    self.key, key = jax.random.split(self.key)
    return scale * jax.random.normal(key, shape)


# A plain function with einsums, scan under remat, experts, a convolution and tied embeddings ------------------------


def function_params() -> dict[str, Any]:
  """Lists, dicts and tuples."""
  draw = Draw()
  block = lambda: {  # noqa: E731
    "ln": {"scale": 1.0 + draw(HIDDEN), "bias": draw(HIDDEN)},
    "attn": {"q": {"kernel": draw(HIDDEN, HEADS, SIZE)}, "k": {"kernel": draw(HIDDEN, HEADS, SIZE)},
             "v": {"kernel": draw(HIDDEN, HEADS, SIZE)}, "o": {"kernel": draw(HEADS, SIZE, HIDDEN)}},
  }  # fmt: skip
  return {
    "embed": draw(VOCAB, HIDDEN, scale=1.0),
    "blocks": [block(), block()],
    "mlp": {"up": {"w": draw(LAYERS, HIDDEN, INNER), "b": draw(LAYERS, INNER)}, "down": draw(LAYERS, INNER, HIDDEN)},
    "experts": (draw(EXPERTS, HIDDEN, INNER), draw(INNER, EXPERTS, HIDDEN)),
    "conv": {"kernel": draw(3, HIDDEN, HIDDEN), "bias": draw(HIDDEN)},
    "proj": draw(HIDDEN, HIDDEN),
  }


def norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
  """Layer normalisation."""
  centred = x - x.mean(-1, keepdims=True)
  return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * scale + bias


def function(params: Any, x: jax.Array) -> dict[str, jax.Array]:
  """ids int[B, T] -> logits."""
  h = params["embed"][x]
  for block in params["blocks"]:
    n, attn = norm(h, **block["ln"]), block["attn"]
    q, k, v = (jnp.einsum("bti,inh->btnh", n, attn[name]["kernel"]) for name in "qkv")
    weights = jax.nn.softmax(jnp.einsum("btnh,bsnh->bnts", q, k) / SIZE**0.5)
    h = h + jnp.einsum("btnh,nhd->btd", jnp.einsum("bnts,bsnh->btnh", weights, v), attn["o"]["kernel"])

  @jax.checkpoint
  def layer(h: jax.Array, mlp: Any) -> tuple[jax.Array, None]:
    return h + jax.nn.relu(h @ mlp["up"]["w"] + mlp["up"]["b"]) @ mlp["down"], None

  h, _ = jax.lax.scan(layer, h, params["mlp"])
  up, down = params["experts"]
  gate = jax.nn.softmax(h[..., :EXPERTS])
  routed = jnp.einsum("bte,btd->ebtd", gate, h)
  h = h + jnp.einsum("ebtf,fed->btd", jnp.tanh(jnp.einsum("ebtd,edf->ebtf", routed, up)), down)
  numbers = ("NWC", "WIO", "NWC")
  y = jax.lax.conv_general_dilated(h, params["conv"]["kernel"], (1,), "SAME", dimension_numbers=numbers)
  h = h + (y + params["conv"]["bias"])
  h = jax.jit(lambda h, w: h @ w)(h, params["proj"])
  return {"logits": h @ params["embed"].T, "hidden": h}


# NNX ----------------------------------------------------------------------------------------------------------------


class NnxBlock(nnx.Module):
  """Attention and an MLP behind layer normalisations, of flax's own layers."""

  def __init__(self, rngs: nnx.Rngs):
    self.ln1, self.ln2 = nnx.LayerNorm(HIDDEN, rngs=rngs), nnx.LayerNorm(HIDDEN, rngs=rngs)
    self.attn = nnx.MultiHeadAttention(HEADS, HIDDEN, qkv_features=10, decode=False, rngs=rngs)
    self.up, self.down = nnx.Linear(HIDDEN, INNER, rngs=rngs), nnx.Linear(INNER, HIDDEN, rngs=rngs)
    self.drop = nnx.Dropout(0.2, deterministic=True, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    x = x + self.attn(self.ln1(x))
    return x + self.drop(self.down(jax.nn.gelu(self.up(self.ln2(x)))))


class NnxTransformer(nnx.Module):
  """Token embeddings, blocks, and an output layer of their own weights."""

  def __init__(self, rngs: nnx.Rngs):
    self.embed = nnx.Embed(VOCAB, HIDDEN, rngs=rngs)
    self.blocks = nnx.List([NnxBlock(rngs) for _ in range(2)])
    self.ln = nnx.RMSNorm(HIDDEN, rngs=rngs)
    self.head = nnx.Linear(HIDDEN, 3, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    h = self.embed(x)
    for block in self.blocks:
      h = block(h)
    return self.head(self.ln(h).mean(axis=1))


# Linen --------------------------------------------------------------------------------------------------------------


class LinenViT(nn.Module):
  """A small ViT: a convolution into patches, attention modules, an MLP, batch statistics."""

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    x = nn.Conv(HIDDEN, (3, 3), strides=(3, 3), name="patches")(images)
    x = x.reshape(x.shape[0], -1, HIDDEN)
    x = x + self.param("positions", nn.initializers.normal(0.3), (1, x.shape[1], HIDDEN))
    for layer in range(2):
      y = nn.LayerNorm(name=f"ln_{layer}")(x)
      y = nn.MultiHeadDotProductAttention(HEADS, qkv_features=10, name=f"attn_{layer}")(y)
      x = x + nn.Dropout(0.2, deterministic=not train)(y)
      y = nn.Dense(INNER, name=f"up_{layer}")(x)
      x = x + nn.DenseGeneral(HIDDEN, name=f"down_{layer}")(nn.gelu(y))
    x = nn.BatchNorm(use_running_average=True, name="bn")(x)
    return nn.Dense(3, name="head")(x.mean(axis=1))


def linen_vit() -> tuple[Any, Any, dict[str, Any]]:
  """(module, variables, inputs)."""
  module, images = LinenViT(), Draw(3)(2, 9, 6, 3)
  return module, module.init(jax.random.key(0), images), {"images": images}


# Equinox and Haiku --------------------------------------------------------------------------------------------------


def equinox_mlp() -> tuple[Any, Any, dict[str, Any]]:
  """(function over a batch, module, inputs)."""
  import equinox as eqx

  net = eqx.nn.MLP(HIDDEN, 4, INNER, 2, key=jax.random.key(0))  # RoAd turns pairs: of an even number of outputs
  return (lambda net, x: jax.vmap(net)(x)), net, {"x": Draw(2)(5, HIDDEN)}


def equinox_vit() -> tuple[Any, Any, dict[str, Any]]:
  """(function over a batch, module, inputs): a convolution, attention, layer normalisation, a token embedding."""
  import equinox as eqx

  class ViT(eqx.Module):
    patches: eqx.nn.Conv2d
    attn: list[eqx.nn.MultiheadAttention]
    norms: list[eqx.nn.LayerNorm]
    kinds: eqx.nn.Embedding
    head: eqx.nn.Linear

    def __init__(self, key: jax.Array):
      keys = jax.random.split(key, 6)
      self.patches = eqx.nn.Conv2d(3, HIDDEN, 3, 3, key=keys[0])
      self.attn = [eqx.nn.MultiheadAttention(HEADS, HIDDEN, use_query_bias=True, key=one) for one in keys[1:3]]
      self.norms = [eqx.nn.LayerNorm(HIDDEN), eqx.nn.LayerNorm(HIDDEN)]
      self.kinds = eqx.nn.Embedding(VOCAB, HIDDEN, key=keys[3])
      self.head = eqx.nn.Linear(HIDDEN, 3, key=keys[4])

    def __call__(self, image: jax.Array, kind: jax.Array) -> jax.Array:
      x = self.patches(image).reshape(HIDDEN, -1).T + self.kinds(kind)
      for attn, ln in zip(self.attn, self.norms):
        y = jax.vmap(ln)(x)
        x = x + attn(y, y, y)
      return self.head(x.mean(axis=0))

  net = ViT(jax.random.key(0))
  inputs = {"image": Draw(2)(5, 3, 9, 6), "kind": jnp.arange(5) % VOCAB}
  return (lambda net, image, kind: jax.vmap(net)(image, kind)), net, inputs


def haiku_transformer() -> tuple[Any, Any, dict[str, Any]]:
  """(transform, parameters, inputs)."""
  import haiku as hk

  def forward(x: jax.Array) -> jax.Array:
    h = hk.Embed(VOCAB, HIDDEN, name="embed")(x)
    for layer in range(2):
      n = hk.LayerNorm(-1, True, True, name=f"ln_{layer}")(h)
      init = hk.initializers.VarianceScaling(1.0)
      h = h + hk.MultiHeadAttention(HEADS, SIZE, w_init=init, model_size=HIDDEN, name=f"attn_{layer}")(n, n, n)
      h = h + hk.Linear(HIDDEN, name=f"down_{layer}")(jax.nn.relu(hk.Linear(INNER, name=f"up_{layer}")(h)))
    return hk.Linear(3, name="head")(h.mean(axis=1))

  transform = hk.transform(forward)
  return transform, transform.init(jax.random.key(0), tokens()), {"x": tokens()}
