"""The weights in an ONNX file, read without the ONNX library: the few fields of its protocol buffers that hold them.

Field numbers are those of onnx.proto3: ModelProto.graph 7; GraphProto.node 1, initializer 5; NodeProto.input 1, name 3,
op_type 4; TensorProto.dims 1, data_type 2, float_data 4, name 8, raw_data 9, external_data 13.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from peftjax.errors import UserError

_DTYPES = {1: np.float32, 6: np.int32, 7: np.int64, 10: np.float16, 11: np.float64}
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5


@dataclasses.dataclass(frozen=True)
class Node:
  """One operation of the graph."""

  name: str
  kind: str
  inputs: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class OnnxFile:
  """What an ONNX file holds.

  Attributes:
    tensors: initialiser's name -> its array.
    nodes: the operations, in order.
  """

  tensors: Mapping[str, np.ndarray]
  nodes: tuple[Node, ...]


def read_onnx(path: Path) -> OnnxFile:
  """Reads a file whose tensors are inside it.

  Raises:
    UserError: it cannot be read, is no ONNX, or keeps its tensors elsewhere.
  """
  try:
    content = memoryview(path.read_bytes())
    (graph,) = _parts(content, 7)
    tensors = dict(_tensor(one, path) for one in _parts(graph, 5))
    nodes = tuple(_node(one) for one in _parts(graph, 1))
  except OSError as error:
    raise UserError(f"cannot read {path}: {error.strerror}") from None
  except (IndexError, ValueError, TypeError, KeyError) as error:
    raise UserError(f"{path} is no ONNX file that can be read: {error or 'it ends too early'}") from None
  return OnnxFile(tensors, nodes)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
  """(field number, value) of a message: an integer, or the bytes of what has a length."""
  at = 0
  while at < len(message):
    tag, at = _varint(message, at)
    kind = tag & 7
    if kind == _VARINT:
      value, at = _varint(message, at)
      yield tag >> 3, value
      continue
    size, at = (8, at) if kind == _EIGHT else (4, at) if kind == _FOUR else _varint(message, at)
    if kind not in (_EIGHT, _FOUR, _BYTES) or at + size > len(message):
      raise ValueError(f"a field of kind {kind} at byte {at}")
    yield tag >> 3, message[at : at + size]
    at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
  value = shift = 0
  while True:
    byte = message[at]
    at += 1
    value |= (byte & 0x7F) << shift
    if byte < 0x80:
      return value, at
    shift += 7
    if shift > 63:
      raise ValueError(f"a number of more than 64 bits before byte {at}")


def _parts(message: memoryview, number: int) -> list[memoryview]:
  """What a message holds under a number, of fields that have a length."""
  return [value for at, value in _fields(message) if at == number and isinstance(value, memoryview)]


def _text(message: memoryview, number: int) -> str:
  return bytes((_parts(message, number) or [memoryview(b"")])[-1]).decode()


def _integers(message: memoryview, number: int) -> list[int]:
  """A repeated integer, packed or not."""
  found: list[int] = []
  for at, value in _fields(message):
    if at != number:
      continue
    if isinstance(value, int):
      found.append(value)
      continue
    place = 0
    while place < len(value):
      one, place = _varint(value, place)
      found.append(one)
  return found


def _tensor(message: memoryview, path: Path) -> tuple[str, np.ndarray]:
  if _parts(message, 13):
    raise UserError(f"{path} keeps its tensors in other files")
  (kind,) = _integers(message, 2)
  raw = b"".join(bytes(one) for number in (4, 9) for one in _parts(message, number))
  return _text(message, 8), np.frombuffer(raw, _DTYPES[kind]).reshape(_integers(message, 1))


def _node(message: memoryview) -> Node:
  return Node(_text(message, 3), _text(message, 4), tuple(bytes(one).decode() for one in _parts(message, 1)))
