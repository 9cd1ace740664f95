"""ONNX files, written here field by field as onnx.proto3 says, and what is none."""

from __future__ import annotations

import numpy as np
import pytest

from peftjax.errors import UserError
from peftjax.models import dinov2_onnx
from peftjax.models.onnx_file import read_onnx


def varint(value):
  out = bytearray()
  while True:
    value, low = value >> 7, value & 0x7F
    out.append(low | (0x80 if value else 0))
    if not value:
      return bytes(out)


def part(number, content):
  return varint(number << 3 | 2) + varint(len(content)) + content


def tensor(name, array, packed):
  sizes = part(1, b"".join(map(varint, array.shape))) if packed else b"".join(
    varint(1 << 3) + varint(size) for size in array.shape
  )  # fmt: skip
  kind = {"float32": 1, "int64": 7}[str(array.dtype)]
  return part(5, sizes + varint(2 << 3) + varint(kind) + part(8, name.encode()) + part(9, array.tobytes()))


def node(name, kind, inputs):
  texts = b"".join(part(1, one.encode()) for one in inputs)
  return part(1, texts + part(2, b"out") + part(3, name.encode()) + part(4, kind.encode()))


@pytest.mark.parametrize("packed", [True, False])
def test_tensors_and_nodes(tmp_path, packed):
  arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "long": np.array([-3, 2**40])}
  graph = b"".join(tensor(name, one, packed) for name, one in arrays.items()) + node("/x/MatMul", "MatMul", ["in", "a"])
  path = tmp_path / "m.onnx"
  path.write_bytes(varint(1 << 3) + varint(8) + part(2, b"pytorch") + part(7, graph))
  found = read_onnx(path)
  for name, one in arrays.items():
    np.testing.assert_array_equal(found.tensors[name], one)
  (only,) = found.nodes
  assert (only.name, only.kind, only.inputs) == ("/x/MatMul", "MatMul", ("in", "a"))


@pytest.mark.parametrize("content", [b"", b"\x3a\xff\xff", b"no protocol buffer", b"\x3a\x02\x2a\x05"])
def test_what_is_no_onnx_takes_one_line(tmp_path, content):
  (tmp_path / "m.onnx").write_bytes(content)
  with pytest.raises(UserError, match="m.onnx is no ONNX file that can be read"):
    read_onnx(tmp_path / "m.onnx")


def test_a_graph_without_an_encoder(tmp_path):
  (tmp_path / "m.onnx").write_bytes(part(7, tensor("a", np.zeros(3, np.float32), True)))
  with pytest.raises(UserError, match="an encoder in DINOv2's layout was expected"):
    dinov2_onnx.encoder_folder(tmp_path, tmp_path / "cache")
