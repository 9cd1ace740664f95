"""Weights that are not where or what they say: overlapping tensors, indices that leave their folder, GGUF files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import peftjax
from peftjax import UserError, loading, masks
from peftjax.models import gguf, pretrained
from peftjax.models.tensor_files import Checkpoint
from tests.test_model import CONFIG


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
  content = path.read_bytes()
  length = int.from_bytes(content[:8], "little")
  header = json.loads(content[8 : 8 + length])
  made = change(header)
  new = made if isinstance(made, bytes) else json.dumps(header).encode()
  path.write_bytes(len(new).to_bytes(8, "little") + new + content[8 + length :])


def edit(key: str, **values: Any) -> Callable[[dict[str, Any]], Any]:
  return lambda header: header[key].update(values)


@pytest.mark.parametrize(
  "change",
  [
    edit("b", data_offsets=[0, 24]),  # the place of a
    edit("b", data_offsets=[20, 44]),  # part of it
    edit("c", data_offsets=[52, 56]),  # a gap before it
    edit("a", data_offsets=[0, 20]),
    edit("a", data_offsets=[24, 0]),
    edit("a", data_offsets=[0]),
    edit("a", data_offsets="0,24"),
    edit("a", shape=[-2, -3]),
    edit("a", shape=[2.0, 3]),
    edit("a", shape=[True, 6]),
    edit("a", shape=[10**30, 6]),
    edit("a", shape={"0": 2}),
    edit("a", shape=[1] * 40 + [6]),
    edit("a", dtype="F3"),
    edit("a", dtype=["F32"]),
    lambda header: header.update(a=[1, 2]),
    lambda header: header["a"].pop("shape"),
    lambda header: b"[" * 500 + b"]" * 500,
    lambda header: b'{"a": ' + b"9" * 9000 + b"}",
    lambda header: b"[1]",
    lambda header: b"\xff\xfe",
  ],
)
def test_a_header_that_contradicts_its_file_is_one_line(change: Callable[..., Any], tmp_path: Path) -> None:
  path = tmp_path / "a.safetensors"
  six = np.arange(6, dtype=np.float32).reshape(2, 3)
  save_file({"a": six, "b": six + 1, "c": np.ones(1, np.float32), "empty": np.ones((0, 3), np.float32)}, path)
  assert Checkpoint([path]).keys()
  rewrite(path, change)
  with pytest.raises(UserError, match=r"a\.safetensors"):
    Checkpoint([path])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
  loading.initialise(loading.from_config(CONFIG), jax.random.key(0)).save(tmp_path / "model")
  (tmp_path / "model" / pretrained.WEIGHTS).rename(tmp_path / "model" / "part.safetensors")
  return tmp_path / "model"


def write_index(folder: Path, name: Any) -> None:
  keys = Checkpoint([folder / "part.safetensors"]).keys()
  (folder / pretrained.index_of("model")).write_text(json.dumps({"weight_map": dict.fromkeys(keys, name)}))


def test_an_index_stays_in_its_folder(folder: Path) -> None:
  outside = folder.parent / "outside"
  outside.mkdir()
  shutil.copy(folder / "part.safetensors", outside / "part.safetensors")
  (folder / "link").symlink_to(outside)
  absolute = str(outside / "part.safetensors")
  for name in ("../outside/part.safetensors", absolute, "link/part.safetensors", "link/../part.safetensors"):
    write_index(folder, name)
    with pytest.raises(UserError, match="which is not in its folder"):
      peftjax.load(folder)
  for name in ("[" * 5000, "a" * 300 + ".safetensors", "a\0.safetensors"):
    write_index(folder, name)
    with pytest.raises(UserError, match="which no file can be called"):
      peftjax.load(folder)
  for name in (3, ["part.safetensors"], None, "config.json"):
    write_index(folder, name)
    with pytest.raises(UserError, match=r"expected an object of tensors|expected a \*\.safetensors file"):
      peftjax.load(folder)
  (folder / pretrained.index_of("model")).write_text('{"weight_map": ["part.safetensors"]}')
  with pytest.raises(UserError, match="weight_map: expected an object"):
    peftjax.load(folder)
  (folder / "here.safetensors").symlink_to(outside / "part.safetensors")  # as in the cache of Hugging Face's hub
  write_index(folder, "here.safetensors")
  assert peftjax.load(folder).architecture == "BertForSequenceClassification"


def test_two_files_with_one_tensor_are_refused(folder: Path) -> None:
  shutil.copy(folder / "part.safetensors", folder / "other.safetensors")
  with pytest.raises(UserError, match="both hold"):
    peftjax.load(folder)


def test_gguf_files_are_told_apart_and_read_by_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  made: list[Path] = []

  def prepare(path: Path, folder: Path) -> None:
    made.append(path)
    folder.mkdir(parents=True)

  monkeypatch.setattr(gguf, "prepare_folder", prepare)
  cache, files = tmp_path / "cache", []
  for place, last in (("a", b"x"), ("b", b"y")):
    (tmp_path / place).mkdir()
    files.append(tmp_path / place / "model.gguf")
    files[-1].write_bytes(b"GGUF" * 1000 + last)
    os.utime(files[-1], (315532800, 315532800))  # as archives and images set it
  first, second = (gguf.prepared_folder(file, cache) for file in files)
  assert first != second
  assert gguf.prepared_folder(files[0], cache) == first and len(made) == 2
  files[0].write_bytes(b"GGUF" * 1000 + b"z")
  os.utime(files[0], (315532800, 315532800))
  assert gguf.prepared_folder(files[0], cache) != first
  (tmp_path / "snapshots").mkdir()
  link = tmp_path / "snapshots" / "model.gguf"
  link.symlink_to("../b/model.gguf")
  assert gguf.prepared_folder(link, cache) == second
  monkeypatch.undo()
  monkeypatch.setattr(gguf, "read_config", lambda path: {})
  monkeypatch.setattr(gguf, "tokenizer_files", lambda path: {})
  gguf.prepare_folder(link, tmp_path / "prepared")
  assert (tmp_path / "prepared" / "model.gguf").read_bytes() == files[1].read_bytes()


def test_a_head_of_other_labels_is_named_and_drawn_anew_where_asked(folder: Path) -> None:
  (folder / "part.safetensors").rename(folder / pretrained.WEIGHTS)
  says = r"the head's 'classifier\.bias' is for 4 labels, and 7 are wanted; model\.new_head=True draws a new head"
  with pytest.raises(UserError, match=says):
    peftjax.load(folder, num_labels=7)
  old, new = peftjax.load(folder), peftjax.load(folder, num_labels=7, new_head=True)
  assert set(new.drawn) == {"classifier.kernel", "classifier.bias"}
  assert new.params["classifier"]["kernel"].shape == (12, 7)
  assert float(np.abs(new.params["classifier"]["kernel"]).max()) > 0
  for path, leaf in masks.flatten(old.params).items():
    if not path.startswith("classifier"):
      np.testing.assert_array_equal(leaf, masks.flatten(new.params)[path])
  again = peftjax.load(folder, num_labels=4, new_head=True)
  assert not np.array_equal(again.params["classifier"]["kernel"], old.params["classifier"]["kernel"])
