"""The GGUF container, version 2 and 3: typed fields and tensors, each checked before it is used.

A file is the magic "GGUF", a version, the numbers of tensors and fields, the fields (key, type, value), the tensors'
names, shapes, types and offsets, and after padding the tensors' bytes; all little-endian
(github.com/ggml-org/ggml, docs/gguf.md). Values are read when asked for: a tokenizer is most of a small file's head.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np

from peftjax.errors import UserError, nearest
from peftjax.kinds import Kind, value_of

MOST_FIELDS = 2**16
MOST_TENSORS = 2**20
MOST_ENTRIES = 2**22  # of an array; the largest vocabularies have 2^18 tokens
_MOST_AXES = 4
_SCALARS = "BbHhIif?0[Qqd"  # by type; 8 is a string, 9 an array
_STRING, _ARRAY = 8, 9
_DEFAULT_ALIGNMENT = 32


class _Damaged(ValueError):
  """What is wrong with the file."""


@dataclasses.dataclass(frozen=True)
class _Place:
  """Where a field's value is.

  Attributes:
    kind: its type, of an array that of its entries.
    start: its first byte.
    count: entries of an array; None: it is none.
  """

  kind: int
  start: int
  count: int | None


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor as it is stored.

  Attributes:
    shape: outermost axis first.
    kind: ggml's number of its type.
    start, size: its bytes in the file.
  """

  shape: tuple[int, ...]
  kind: int
  start: int
  size: int


class GGUFFile:
  """A GGUF file, mapped.

  Attributes:
    path: the file.
    data: its bytes.
    tensors: name -> tensor.

  Raises:
    UserError: no whole GGUF file, or two fields or tensors of one name.
  """

  def __init__(self, path: Path):
    self.path = path
    self.tensors: dict[str, Tensor] = {}
    self._fields: dict[str, _Place] = {}
    try:
      if not path.stat().st_size:
        raise _Damaged("it is empty")
      self.data = np.memmap(path, np.uint8, "r")
      self._bytes = memoryview(self.data)  # type: ignore[arg-type]
      self._read_head()
    except (OSError, struct.error, _Damaged) as error:
      reason = "it ends early" if isinstance(error, struct.error) else error
      raise UserError(f"{path} is no whole GGUF file: {reason}") from None

  def has(self, key: str) -> bool:
    """Whether the file has a field."""
    return key in self._fields

  def field(self, key: str, kind: Kind, *default: Any) -> Any:
    """A field's value, or the default if there is one.

    Raises:
      UserError: it is missing and has no default, or is of another kind.
    """
    if key not in self._fields:
      if default:
        return default[0]
      raise UserError(f"{self.path}: no field {key!r}; {nearest(key, self._fields, 1)}")
    return value_of(str(self.path), key, self._value(key), kind)

  def stored(self, name: str) -> np.ndarray:
    """A tensor's bytes [rows of the first axis, bytes of a row], or [bytes] where it has one axis."""
    tensor = self.tensors[name]
    raw = self.data[tensor.start : tensor.start + tensor.size]
    return raw.reshape(tensor.shape[0], -1) if len(tensor.shape) > 1 else raw

  def _value(self, key: str) -> Any:
    place = self._fields[key]
    if place.count is None:
      return self._scalar(place.kind, place.start)[0]
    if place.kind != _STRING:
      return list(struct.unpack_from(f"<{place.count}{_SCALARS[place.kind]}", self._bytes, place.start))
    found, start = [], place.start
    for _ in range(place.count):
      one, start = self._scalar(_STRING, start)
      found.append(one)
    return found

  def _scalar(self, kind: int, start: int) -> tuple[Any, int]:
    """(value, where the next starts)."""
    if kind == _STRING:
      end = self._string_end(start)
      try:
        return bytes(self._bytes[start + 8 : end]).decode(), end
      except UnicodeDecodeError:
        raise UserError(f"{self.path}: a text at byte {start + 8} is not UTF-8") from None
    (value,) = struct.unpack_from(f"<{_SCALARS[kind]}", self._bytes, start)
    return value, start + struct.calcsize(_SCALARS[kind])

  def _string_end(self, start: int) -> int:
    end: int = start + 8 + struct.unpack_from("<Q", self._bytes, start)[0]
    if end > len(self._bytes):
      raise _Damaged(f"a text of {end - start - 8} bytes at byte {start + 8} of {len(self._bytes)}")
    return end

  def _read_head(self) -> None:
    magic, version, tensors, fields = struct.unpack_from("<4sIQQ", self._bytes)
    if magic != b"GGUF":
      raise _Damaged(f"it starts with {magic!r}")
    if version not in (2, 3):
      raise _Damaged(f"version {version}; expected 2 or 3, little-endian")
    if fields > MOST_FIELDS or tensors > MOST_TENSORS:
      raise _Damaged(f"{fields} fields and {tensors} tensors")
    at = struct.calcsize("<4sIQQ")
    for _ in range(fields):
      key, at = self._scalar(_STRING, at)
      if key in self._fields:
        raise _Damaged(f"the field {key[:80]!r} is there twice")
      self._fields[key], at = self._placed(key, at)
    self._read_tensors(tensors, at)

  def _placed(self, key: str, at: int) -> tuple[_Place, int]:
    (kind,) = struct.unpack_from("<I", self._bytes, at)
    if kind != _ARRAY:
      return self._checked(key, _Place(kind, at + 4, None))
    kind, count = struct.unpack_from("<IQ", self._bytes, at + 4)
    if count > MOST_ENTRIES:
      raise _Damaged(f"the field {key[:80]!r} has {count:,} entries, and at most {MOST_ENTRIES:,} are read")
    return self._checked(key, _Place(kind, at + 16, count))

  def _checked(self, key: str, place: _Place) -> tuple[_Place, int]:
    count = 1 if place.count is None else place.count
    if place.kind >= len(_SCALARS) or place.kind == _ARRAY:
      raise _Damaged(f"the field {key[:80]!r} has type {place.kind}")
    end = place.start
    if place.kind == _STRING:
      for _ in range(count):
        end = self._string_end(end)
    else:
      end += count * struct.calcsize(_SCALARS[place.kind])
    if end > len(self._bytes):
      raise _Damaged(f"the field {key[:80]!r} ends behind the file")
    return place, end

  def _read_tensors(self, count: int, at: int) -> None:
    found: list[tuple[str, tuple[int, ...], int, int]] = []
    for _ in range(count):
      name, at = self._scalar(_STRING, at)
      (axes,) = struct.unpack_from("<I", self._bytes, at)
      if not 1 <= axes <= _MOST_AXES:
        raise _Damaged(f"{name[:80]!r} has {axes} axes; expected 1 to {_MOST_AXES}")
      shape = struct.unpack_from(f"<{axes}Q", self._bytes, at + 4)
      kind, offset = struct.unpack_from("<IQ", self._bytes, at + 4 + 8 * axes)
      at += 16 + 8 * axes
      found.append((name, tuple(reversed(shape)), kind, offset))
    alignment = self._alignment()
    start, end = -(-at // alignment) * alignment, 0
    for name, shape, kind, offset in sorted(found, key=lambda one: one[-1]):
      size = _bytes_of(name, shape, kind)
      if name in self.tensors:
        raise _Damaged(f"the tensor {name[:80]!r} is there twice")
      if offset < end or offset % alignment or start + offset + size > len(self._bytes):
        raise _Damaged(f"{name[:80]!r} does not fill a place of its own in it")
      self.tensors[name], end = Tensor(shape, kind, start + offset, size), offset + size

  def _alignment(self) -> int:
    place = self._fields.get("general.alignment")
    if place is None:
      return _DEFAULT_ALIGNMENT
    value = self._value("general.alignment")
    if type(value) is not int or not 8 <= value <= 2**20 or value & (value - 1):
      raise _Damaged(f"general.alignment={value!r:.40}; expected a power of two from 8")
    return value


def _bytes_of(name: str, shape: tuple[int, ...], kind: int) -> int:
  from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

  try:
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
  except (KeyError, ValueError):
    raise _Damaged(f"{name[:80]!r} has type {kind}, which is not known") from None
  if not all(shape) or math.prod(shape) >= 2**63 or shape[-1] % block:
    raise _Damaged(f"{name[:80]!r} has shape {shape}, of blocks of {block}")
  return math.prod(shape) // block * size
