"""Models of Linen's own modules, with kernels of more than two axes, as families of one's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from peftjax import masks
from peftjax.loading import from_config
from peftjax.model import Model
from peftjax.models.family import Architecture, Family

LAYERS, HIDDEN, EXPERTS = 2, 12, 3


class Block(nn.Module):
  """Attention and a feed-forward network, both of maps over several axes."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = x + nn.MultiHeadDotProductAttention(num_heads=3, name="attn")(nn.LayerNorm(name="norm1")(x))
    wide = nn.gelu(nn.DenseGeneral((4, 6), name="fc1")(nn.LayerNorm(name="norm2")(x)))
    return x + nn.DenseGeneral(HIDDEN, axis=(-2, -1), name="fc2")(wide)


class TinyViT(nn.Module):
  """13 linear maps outside the head: one of patches, six a block."""

  @nn.compact
  def __call__(self, pixels: jax.Array) -> dict[str, jax.Array]:
    x = nn.Einsum((4, 3, HIDDEN), "bpxc,xcd->bpd", name="patches")(pixels)
    for index in range(LAYERS):
      x = Block(name=f"blocks_{index}")(x)
    return {"logits": nn.Dense(5, name="head")(x.mean(axis=1))}


class Einsums(nn.Module):
  """Queries, keys and values from one kernel, their axis first; an ellipsis; transposed convolutions of both kinds."""

  @nn.compact
  def __call__(self, pixels: jax.Array) -> dict[str, jax.Array]:
    q, k, v = nn.Einsum((3, 4, HIDDEN, 2), "BTD,SNDH->SBTNH", name="qkv")(pixels.reshape(*pixels.shape[:2], -1))
    y = nn.Einsum((4, 2, HIDDEN), "...NH,NHD->...D", name="out")(q * jnp.tanh(k) + v)
    y = nn.ConvTranspose(8, (3,), strides=(2,), name="up")(y)
    y = nn.ConvTranspose(6, (2,), transpose_kernel=True, name="turned")(jnp.tanh(y))
    return {"logits": nn.Dense(5, name="head")(y.mean(axis=1))}


class Normed(nn.Module):
  """A convolution whose outputs are normalised by statistics that were counted before."""

  @nn.compact
  def __call__(self, pixels: jax.Array) -> dict[str, jax.Array]:
    x = nn.Conv(8, (3,), name="conv")(pixels.reshape(*pixels.shape[:2], -1))
    x = nn.relu(nn.BatchNorm(use_running_average=True, name="bn")(x))
    return {"logits": nn.Dense(5, name="head")(nn.Dense(HIDDEN, name="dense")(x).mean(axis=1))}


class Convs(nn.Module):
  """A convolution of each kind, called by its kind."""

  @nn.compact
  def __call__(self, pixels: jax.Array) -> dict[str, jax.Array]:
    x = nn.Conv(12, (3, 3), name="2-D")(nn.Conv(4, (1, 1), name="stem")(pixels))
    x = nn.Conv(12, (3, 3), feature_group_count=3, name="grouped")(x)
    x = nn.Conv(4, (3, 3, 1), name="3-D")(x[..., None, :])[..., 0, :]
    x = nn.ConvTranspose(4, (2, 2), name="transposed")(x)
    return {"logits": nn.Dense(5, name="head")(nn.Conv(4, (3,), name="1-D")(x.mean(axis=2)).mean(axis=1))}


def family(module: Callable[[], nn.Module], untransposed: tuple[str, ...] = ()) -> Family:
  """One's own family of one architecture."""
  return Family(
    model_types=("mine",),
    parse=lambda hf_config: (),
    architectures={"Mine": Architecture(lambda config, runtime: module(), "classification", head=("head",))},
    stacks=lambda config: {},
    untransposed=untransposed,
    inputs=lambda config: {"pixels": jax.ShapeDtypeStruct((1, 6, 4, 3), jnp.float32)},
  )


class Mixture(nn.Module):
  """Experts that all see every token: one kernel for all of them in each of three maps, mixed by a router."""

  @nn.compact
  def __call__(self, pixels: jax.Array) -> dict[str, jax.Array]:
    x = nn.Dense(HIDDEN, name="patches")(pixels.reshape(*pixels.shape[:2], -1))
    gates = nn.softmax(nn.Dense(EXPERTS, name="router")(x))
    wide = jnp.broadcast_to(x, (EXPERTS, *x.shape))
    wide = jnp.tanh(nn.DenseGeneral((2, 4), axis=-1, batch_dims=(0,), name="first")(wide))
    wide = nn.gelu(nn.Einsum((EXPERTS, 2, 4, 20), "ebtnh,enhf->btef", name="second")(wide))
    y = nn.Einsum((EXPERTS, HIDDEN, 20), "BTEF,EDF->BTED", use_bias=False, name="third")(wide)
    return {"logits": nn.Dense(5, name="head")(jnp.einsum("bted,bte->bd", y, gates))}


CONVS = family(Convs)
FAMILIES = {module: family(module) for module in (TinyViT, Einsums, Normed, Mixture)}
PIXELS = jnp.asarray(np.random.default_rng(0).normal(size=(3, 6, 4, 3)), jnp.float32)


def make(module: type[nn.Module], own: Family | None = None) -> Model:
  """The model with random leaves."""
  model = from_config({"model_type": "mine"}, family=own or FAMILIES[module])
  random = np.random.default_rng(7)

  def draw(path: str, leaf: Any) -> jax.Array:
    noise = random.normal(size=leaf.shape).astype(np.float32)
    return jnp.asarray(1.0 + 0.1 * np.abs(noise) if path.endswith(("scale", "var")) else 0.3 * noise)

  return model.with_params(masks.unflatten({path: draw(path, x) for path, x in masks.flatten(model.params).items()}))
