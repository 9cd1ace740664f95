"""Looks over a prepared TFDS folder before TFDS reads it: such a folder may name code to import and files elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftjax.errors import UserError
from peftjax.files import read_json

_OURS = re.compile(r"tensorflow_datasets\.core\.features(\.[a-z_0-9]+)*\.[A-Za-z]+", re.ASCII)
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type", "proto_cls")
_PLAIN = re.compile(r"[\w.+-]{1,200}", re.ASCII)
_TEMPLATE = re.compile(r"[\w.+{}-]{1,300}", re.ASCII)


def check_folder(folder: Path) -> None:
  """Checks what a folder's features.json and dataset_info.json make TFDS do.

  Raises:
    UserError: a feature's class is not TFDS's own, a name holds a path, or a link leaves the folder.
  """
  for path in sorted(folder.iterdir()):
    if not path.resolve().is_relative_to(folder.resolve()):
      raise UserError(f"{path} is a link out of the data set's folder")
  features, info = folder / "features.json", folder / "dataset_info.json"
  if features.is_file():
    for key, name in _strings(read_json(features)):
      if key in _CLASS_KEYS and not _OURS.fullmatch(name):
        raise UserError(
          f"{features}: a feature of the class {name!r:.80}; only TFDS's own are read, no other code is run"
        )
  if info.is_file():
    _check_names(info, read_json(info))


def check_below(root: Path, name: str) -> None:
  """Checks every prepared version of a data set under `root`, as `check_folder` does.

  Raises:
    UserError: also if the name is that of a community's data set, whose code TFDS would download.
  """
  if ":" in name.partition("/")[0]:
    raise UserError(f"data.name=tfds:{name}: only data sets of TFDS's own catalogue are opened by name")
  folder = root / re.split(r"[/:]", name)[0]
  if _PLAIN.fullmatch(folder.name) and folder.is_dir():
    for info in sorted({*folder.rglob("features.json"), *folder.rglob("dataset_info.json")}):
      check_folder(info.parent)


def _check_names(path: Path, info: dict[str, Any]) -> None:
  splits = info.get("splits", [])
  if not isinstance(splits, list) or not all(isinstance(one, dict) for one in splits):
    raise UserError(f"{path}: splits={splits!r:.60}, expected a list of objects")
  names = [(name, info.get(name, "")) for name in ("name", "version", "configName", "config_name")]
  names += [("a split's name", one.get("name", "")) for one in splits]
  for what, name in names:
    if not isinstance(name, str) or (name and (not _PLAIN.fullmatch(name) or ".." in name)):
      raise UserError(f"{path}: {what} is {name!r:.60}, which is no plain name")
  for one in splits:
    template = one.get("filepathTemplate", one.get("filepath_template", ""))
    if not isinstance(template, str) or (template and (not _TEMPLATE.fullmatch(template) or ".." in template)):
      raise UserError(f"{path}: filepathTemplate={template!r:.60}, expected the name of a file in the folder")


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
  """(key, text) of all texts in a JSON value."""
  if isinstance(value, str):
    yield key, value
  elif isinstance(value, dict):
    for name, one in value.items():
      yield from _strings(one, name)
  elif isinstance(value, list):
    for one in value:
      yield from _strings(one, key)
