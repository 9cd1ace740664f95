"""Safetensors files read in blocks of rows, so that a tensor never stands in memory twice.

A file is 8 bytes of header length, a JSON header {name: {"dtype", "shape", "data_offsets"}}, and the tensors one after
the other, little-endian. Blocks are read rather than mapped: mapped pages would count as the process's memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from peftjax.errors import UserError
from peftjax.files import parse_json

BLOCK_BYTES = 2**24
MAX_HEADER_BYTES = 10**8  # as the safetensors library has it
_ALIGNMENT = 64  # of arrays that XLA takes over without a copy
_DTYPES: dict[str, Any] = {
  "F64": np.float64,
  "F32": np.float32,
  "F16": np.float16,
  "BF16": ml_dtypes.bfloat16,
  "F8_E4M3": ml_dtypes.float8_e4m3fn,
  "F8_E5M2": ml_dtypes.float8_e5m2,
  "I64": np.int64,
  "I32": np.int32,
  "I16": np.int16,
  "I8": np.int8,
  "U8": np.uint8,
  "BOOL": np.bool_,
}

Block = tuple[slice, np.ndarray]
"""Rows of a tensor's first axis, and their values."""


class Tensors(Protocol):
  """The tensors of a model's files."""

  def keys(self) -> list[str]:
    """All tensor names."""

  def shape(self, key: str) -> tuple[int, ...]:
    """A tensor's shape, without reading it."""

  def blocks(self, key: str) -> Iterator[Block]:
    """A tensor with at least one axis, some rows at a time."""


class _Place(NamedTuple):
  path: Path
  dtype: np.dtype[Any]
  shape: tuple[int, ...]
  offset: int


class Checkpoint:
  """The tensors of one or several safetensors files by key, read on demand.

  Raises:
    UserError: a file is not whole.
  """

  def __init__(self, files: list[Path]):
    self._places: dict[str, _Place] = {}
    for path in files:
      for key, place in _places(path).items():
        if key in self._places:
          raise UserError(f"{path} and {self._places[key].path} both hold {key!r}")
        self._places[key] = place

  def keys(self) -> list[str]:
    """All tensor names."""
    return list(self._places)

  def shape(self, key: str) -> tuple[int, ...]:
    """A tensor's shape, without reading it."""
    return self._places[key].shape

  def dtype(self, key: str) -> np.dtype[Any]:
    """A tensor's dtype."""
    return self._places[key].dtype

  def blocks(self, key: str) -> Iterator[Block]:
    """A tensor's rows, up to `BLOCK_BYTES` at a time; of a scalar, one row."""
    place = self._places[key]
    rows, *rest = place.shape or (1,)
    width = math.prod(rest) * place.dtype.itemsize
    step = max(1, BLOCK_BYTES // max(width, 1))
    with place.path.open("rb", buffering=0) as file:
      file.seek(place.offset)
      for start in range(0, rows, step):
        some = slice(start, min(start + step, rows))
        block = np.empty((some.stop - some.start, *rest), place.dtype)
        _read_into(file, block)
        yield some, block

  def part(self, key: str, index: tuple[slice, ...]) -> np.ndarray:
    """A tensor's values at some slices; only the pages that hold them are read."""
    place = self._places[key]
    if not math.prod(place.shape):
      return np.zeros(place.shape, place.dtype)[index]
    mapped = np.memmap(place.path, np.uint8, "r", place.offset, (math.prod(place.shape) * place.dtype.itemsize,))
    return np.array(mapped.view(place.dtype).reshape(place.shape)[index])

  def read(self, key: str) -> np.ndarray:
    """A tensor as it is stored: its own dtype and shape."""
    place = self._places[key]
    value = np.empty(place.shape or (1,), place.dtype)
    for rows, block in self.blocks(key):
      value[rows] = block
    return value.reshape(place.shape)


def _read_into(file: Any, block: np.ndarray) -> None:
  view = memoryview(block.reshape(-1).view(np.uint8).data)
  while len(view):
    count = file.readinto(view)
    if not count:
      raise UserError(f"{file.name} ends early; it changed while it was read")
    view = view[count:]


def _places(path: Path) -> dict[str, _Place]:
  try:
    size = path.stat().st_size
    with path.open("rb") as file:
      length = int.from_bytes(file.read(8), "little")
      if length > min(size - 8, MAX_HEADER_BYTES):
        raise ValueError(f"a header of {length} bytes in a file of {size}")
      content = file.read(length)
    header = _header(content, str(path))
    start, end, places = 8 + length, 0, {}
    for key, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
      first, last = entry["data_offsets"]
      if first != end:
        raise ValueError(f"{key!r} starts at byte {first}, and the tensor before it ends at {end}")
      dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"])
      if last - first != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{key!r} does not fill its place")
      places[key], end = _Place(path, dtype, shape, start + first), last
    if start + end != size:
      raise ValueError(f"{size} bytes, expected {start + end}")
  except (OSError, ValueError) as error:
    raise UserError(f"{path} is no whole safetensors file: {error}") from None
  return {key: places[key] for key in header}


def _header(content: bytes, where: str) -> dict[str, dict[str, Any]]:
  """The entries of a header, each with a dtype that is known, a shape and offsets of whole numbers from 0."""
  header = parse_json(content, where)
  if not isinstance(header, dict):
    raise ValueError("the header is no JSON object")
  header.pop("__metadata__", None)
  for key, entry in header.items():
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= set(entry):
      raise ValueError(f"{key!r} has no dtype, shape and data_offsets")
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in _DTYPES:
      raise ValueError(f"{key!r} has dtype {entry['dtype']!r}; known: {', '.join(_DTYPES)}")
    for name in ("shape", "data_offsets"):
      values = entry[name]
      if not isinstance(values, list) or not all(type(one) is int and 0 <= one < 2**63 for one in values):
        raise ValueError(f"{key!r}: {name}: expected whole numbers from 0")
    if len(entry["data_offsets"]) != 2 or len(entry["shape"]) > 32:
      raise ValueError(f"{key!r}: expected two offsets, and at most 32 axes")
  return header


def empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
  """An uninitialised array that `as_leaf` turns into a JAX array without a copy."""
  dtype = np.dtype(dtype)
  count = math.prod(shape) * dtype.itemsize
  raw = np.empty(count + _ALIGNMENT, np.uint8)
  start = -raw.ctypes.data % _ALIGNMENT
  return raw[start : start + count].view(dtype).reshape(shape)


def as_leaf(array: np.ndarray) -> jax.Array:
  """A JAX array of an `empty` array that has been filled and is not written again."""
  return jax.device_put(array) if array.size else jnp.asarray(array)


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
  """Writes a safetensors file.

  Raises:
    UserError: there is no space, or no permission.
  """
  try:
    save_file(dict(tensors), str(path), {"format": "pt"})  # Hugging Face refuses files without it
  except (SafetensorError, OSError) as error:
    raise UserError(f"cannot write {path.name}: {error}") from None
