"""Rotary position embeddings (Su et al. 2021, arXiv 2104.09864) and how they are stretched to longer contexts.

    q'ᵢ = qᵢ cos(p θⱼ) - qᵢ₊D/₂ sin(p θⱼ),   θⱼ = base^(-2j/D)

Kinds: default; linear (arXiv 2306.15595); dynamic (NTK-aware, base grows with the sequence); llama3 (long wavelengths
divided by a factor, short ones kept); yarn (arXiv 2309.00071).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.errors import UserError, nearest
from peftjax.kinds import FLAG, NAME, SETTINGS
from peftjax.models.config_fields import POSITIONS, POSITIVE, REAL, SHARE, Field, Table

KINDS = ("default", "linear", "dynamic", "llama3", "yarn")


@dataclasses.dataclass(frozen=True)
class Rope:
  """The frequencies' settings; names are those of config.json's `rope_parameters`.

  Attributes:
    dim: rotated features of a head.
    max_position_embeddings: config.json's own, from which `dynamic` starts to stretch.
  """

  dim: int
  rope_type: str = "default"
  rope_theta: float = 10000.0
  factor: float = 1.0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_max_position_embeddings: int = 0
  max_position_embeddings: int = 2048
  attention_factor: float | None = None
  mscale: float = 0.0
  mscale_all_dim: float = 0.0
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  truncate: bool = True


TABLE = Table(
  read={
    "max_position_embeddings": Field(POSITIONS, 2048),
    "rope_parameters": Field(SETTINGS.or_null),
    "rope_scaling": Field(SETTINGS.or_null),
    "rope_theta": Field(POSITIVE.or_null),
    "original_max_position_embeddings": Field(POSITIONS.or_null),
  },
)
"""The fields of config.json that rotary positions are set by."""

_ENTRY = Table(
  read={
    "rope_type": Field(NAME.or_null),
    "type": Field(NAME.or_null),
    "rope_theta": Field(POSITIVE.or_null),
    "partial_rotary_factor": Field(SHARE.or_null),
    "factor": Field(POSITIVE.or_null),
    "low_freq_factor": Field(POSITIVE.or_null),
    "high_freq_factor": Field(POSITIVE.or_null),
    "original_max_position_embeddings": Field(POSITIONS.or_null),
    "attention_factor": Field(POSITIVE.or_null),
    "mscale": Field(REAL.or_null),
    "mscale_all_dim": Field(REAL.or_null),
    "beta_fast": Field(POSITIVE.or_null),
    "beta_slow": Field(POSITIVE.or_null),
    "truncate": Field(FLAG.or_null),
  },
)
_NEEDED = {
  "default": (),
  "linear": ("factor",),
  "dynamic": ("factor",),
  "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
  "yarn": ("factor",),
}


def settings(values: Mapping[str, Any]) -> dict[str, Any]:
  """The `rope_parameters` of a config.json, whose old name is `rope_scaling`, from the values of a table."""
  return dict(values["rope_scaling"] or values["rope_parameters"] or {})


def parse_rope(
  entry: Mapping[str, Any], values: Mapping[str, Any], head_dim: int, theta: float, *, partial: bool = False
) -> Rope:
  """The settings of one entry of `rope_parameters`, in the old or the new spelling.

  Args:
    values: config.json's fields by `TABLE`.
    theta: the base where neither says one.
    partial: the model may rotate a part of each head.

  Raises:
    UserError: a kind that is not known, a setting out of range or missing, a part of heads that cannot be rotated.
  """
  if any(isinstance(value, Mapping) for value in entry.values()):
    raise UserError("config.json: rope_parameters has entries by layer type, which this model does not take")
  found = _ENTRY.values(entry)
  kind = found["rope_type"] or found["type"] or "default"
  if kind not in KINDS:
    raise UserError(f"config.json: unknown rope_type {kind!r}; {nearest(kind, KINDS)}")
  missing = [name for name in _NEEDED[kind] if found[name] is None]
  if missing:
    raise UserError(f"config.json: rope_type {kind!r} needs a {missing[0]}")
  share = 1.0 if found["partial_rotary_factor"] is None else found["partial_rotary_factor"]
  if share != 1.0 and not partial:
    raise UserError(f"config.json: partial_rotary_factor={share:g}: this model rotates whole heads; expected 1")
  limit = values["max_position_embeddings"]
  known = {field.name for field in dataclasses.fields(Rope)} - {"dim", "rope_type", "max_position_embeddings"}
  given = {name: value for name, value in found.items() if name in known and value is not None}
  given.setdefault("rope_theta", values["rope_theta"] or theta)
  if values["original_max_position_embeddings"] is not None:
    given["original_max_position_embeddings"] = values["original_max_position_embeddings"]
  given.setdefault("original_max_position_embeddings", limit)
  rope = Rope(int(head_dim * share), kind, max_position_embeddings=limit, **given)
  _check(rope, head_dim)
  return rope


def _check(rope: Rope, head_dim: int) -> None:
  if rope.dim == head_dim and head_dim % 2:
    raise UserError(f"config.json: heads of {head_dim} features cannot be rotated in pairs")
  if rope.rope_type == "dynamic" and rope.dim == 2:
    raise UserError("config.json: rope_type 'dynamic' is not defined for 2 rotated features a head")
  if rope.rope_type == "llama3" and rope.high_freq_factor <= rope.low_freq_factor:
    raise UserError(
      f"config.json: high_freq_factor={rope.high_freq_factor:g}: expected more than low_freq_factor, "
      f"{rope.low_freq_factor:g}"
    )
  if rope.rope_type == "yarn" and rope.rope_theta <= 1.0:
    raise UserError(f"config.json: rope_theta={rope.rope_theta:g}: rope_type 'yarn' needs a base above 1")


def rotations(rope: Rope, positions_BxL: jax.Array) -> jax.Array:
  """[2, B, L, dim / 2] float32: cosines and sines of every position's angles."""
  if rope.rope_type == "dynamic":
    frequencies, scale = _dynamic(rope, positions_BxL.max() + 1), 1.0
  else:
    table, scale = _static(rope)
    frequencies = jnp.asarray(table)
  angles = positions_BxL[..., None].astype(jnp.float32) * frequencies
  return jnp.stack([jnp.cos(angles), jnp.sin(angles)]) * scale


def rotate(x_BxLxHxD: jax.Array, rotations_2xBxLxF: jax.Array) -> jax.Array:
  """Rotates the pairs (i, i + F) of the first 2F features of every head; the others pass."""
  half = rotations_2xBxLxF.shape[-1]
  cos, sin = rotations_2xBxLxF.astype(x_BxLxHxD.dtype)[:, :, :, None, :]
  first, second, rest = x_BxLxHxD[..., :half], x_BxLxHxD[..., half : 2 * half], x_BxLxHxD[..., 2 * half :]
  rotated = (first * cos - second * sin, second * cos + first * sin)
  return jnp.concatenate([*rotated, rest] if rest.shape[-1] else rotated, axis=-1)


def rotate_neighbours(x_BxLxHxD: jax.Array, rotations_2xBxLxF: jax.Array) -> jax.Array:
  """Rotates the pairs (2i, 2i + 1) of the first 2F features of every head; the others pass (GPT-J)."""
  half = rotations_2xBxLxF.shape[-1]
  cos, sin = rotations_2xBxLxF.astype(x_BxLxHxD.dtype)[:, :, :, None, :]
  even, odd = x_BxLxHxD[..., : 2 * half : 2], x_BxLxHxD[..., 1 : 2 * half : 2]
  rotated = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
  return jnp.concatenate([rotated.reshape(*even.shape[:-1], 2 * half), x_BxLxHxD[..., 2 * half :]], axis=-1)


def _exponents(rope: Rope) -> np.ndarray:
  return np.arange(0, rope.dim, 2, dtype=np.float32) / np.float32(rope.dim)


def _static(rope: Rope) -> tuple[np.ndarray, float]:
  """(frequencies [dim / 2], factor of cosine and sine), in float32 as Hugging Face computes them."""
  powers = np.float32(rope.rope_theta) ** _exponents(rope)
  frequencies = np.float32(1.0) / powers
  if rope.rope_type == "linear":
    return frequencies / np.float32(rope.factor), 1.0
  if rope.rope_type == "llama3":
    return _llama3(rope, frequencies), 1.0
  if rope.rope_type == "yarn":
    return _yarn(rope, frequencies), _yarn_scale(rope)
  return frequencies, 1.0


def _dynamic(rope: Rope, length: jax.Array) -> jax.Array:
  limit = rope.max_position_embeddings
  stretch = rope.factor * jnp.maximum(length, limit) / limit - (rope.factor - 1)
  theta = rope.rope_theta * stretch ** (rope.dim / (rope.dim - 2))
  return 1.0 / theta ** jnp.asarray(_exponents(rope))


def _llama3(rope: Rope, frequencies: np.ndarray) -> np.ndarray:
  old = rope.original_max_position_embeddings
  wavelengths = 2 * math.pi / frequencies
  smooth = (old / wavelengths - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
  between = (1 - smooth) * frequencies / rope.factor + smooth * frequencies
  is_long = wavelengths > old / rope.low_freq_factor
  is_short = wavelengths < old / rope.high_freq_factor
  return np.where(is_long, frequencies / rope.factor, np.where(is_short, frequencies, between)).astype(np.float32)


def _yarn(rope: Rope, frequencies: np.ndarray) -> np.ndarray:
  def feature(turns: float) -> float:
    ratio = rope.original_max_position_embeddings / (turns * 2 * math.pi)
    return rope.dim * math.log(ratio) / (2 * math.log(rope.rope_theta))

  low, high = feature(rope.beta_fast), feature(rope.beta_slow)
  if rope.truncate:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, rope.dim - 1)
  width = high - low if high != low else 0.001
  ramp = np.clip((np.arange(rope.dim // 2, dtype=np.float32) - low) / width, 0, 1)
  return (frequencies / rope.factor * ramp + frequencies * (1 - ramp)).astype(np.float32)


def _yarn_scale(rope: Rope) -> float:
  def growth(scale: float, mscale: float = 1.0) -> float:
    return 1.0 if scale <= 1 else 0.1 * mscale * math.log(scale) + 1.0

  if rope.attention_factor is not None:
    return rope.attention_factor
  if rope.mscale and rope.mscale_all_dim:
    return growth(rope.factor, rope.mscale) / growth(rope.factor, rope.mscale_all_dim)
  return growth(rope.factor)
