"""The protocol of a writer: where the numbers of a run go beside metrics.jsonl, as they come."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ml_collections import ConfigDict

from peftjax.config.checking import check_like, own_settings
from peftjax.errors import UserError, nearest
from peftjax.extras import require
from peftjax.files import read_json, write_text
from peftjax.registry import resolve


@dataclasses.dataclass(frozen=True)
class Begun:
  """A run whose numbers are about to come.

  Attributes:
    folder: the run's.
    start: the step that it goes on after; numbers of later ones come anew, and so do evaluations of this one.
    config: every field, and "resolved", what the open ones became, as in ``config.json``.
  """

  folder: Path
  start: int
  config: Mapping[str, Any]

  def kept(self, name: str) -> Path:
    """Where a writer keeps what it has to know when the run goes on."""
    return self.folder / f"{name}_run.json"


class Writer:
  """Takes the numbers of one run, in the first of its processes. `write` says how; the rest has defaults.

  A run goes on without a writer whose service fails, and says so; a `UserError` of `write` or `flush` ends it.

  Attributes:
    name: in `config.train.writers`, and as a section of `config.writers`.
    settings: fields of that section -> their defaults.
    package: that must be installed; pip installs it with the extra of the writer's name.
    begun: the run.
    options: the settings with what the config says.
  """

  name: ClassVar[str]
  settings: ClassVar[Mapping[str, Any]] = {}
  package: ClassVar[str] = ""

  def __init__(self, begun: Begun, options: ConfigDict):
    self.begun, self.options = begun, options

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Takes the numbers of a step by name: "train/loss", "validation/accuracy", "timing/step_seconds"."""
    raise NotImplementedError

  def flush(self) -> None:
    """Brings what was written to where it stays."""

  def close(self, failed: bool) -> None:
    """Ends it; `failed` if an error ended the run."""
    del failed


def options_of(kind: type[Writer], config: ConfigDict) -> ConfigDict:
  """A writer's settings with what ``config.writers.NAME`` says.

  Raises:
    UserError: a field that it has not, a value of another type, or a package that is not installed.
  """
  section = f"writers.{kind.name}"
  options = own_settings(section, config.writers.get(kind.name, {}), kind.settings, kind)
  for field, default in kind.settings.items():
    check_like(f"{section}.{field}", options[field], default)
  if kind.package:
    require(f"train.writers: {kind.name}", kind.package, kind.name)
  return options


def chosen(config: ConfigDict, table: Mapping[str, str]) -> dict[str, type[Writer]]:
  """Name -> writer, of those that a config asks for; "tensorboard" is `train.tensorboard` too.

  Raises:
    UserError: no such writer; as `options_of`.
  """
  names = dict.fromkeys((*(("tensorboard",) if config.train.tensorboard else ()), *config.train.writers))
  kinds = {name: resolve("train.writers", name, table) for name in names}
  for name, kind in kinds.items():
    if not (isinstance(kind, type) and issubclass(kind, Writer)) or not isinstance(getattr(kind, "name", None), str):
      raise UserError(
        f"train.writers={name!r}: expected a class derived from peftjax.train.writers.Writer, with a name"
      )
    options_of(kind, config)
  known = {kind.name for kind in kinds.values()}
  for name in config.writers:
    if name not in known:
      raise UserError(f"writers.{name}: no such writer in train.writers; {nearest(name, known)}")
  return kinds


def remembered(path: Path) -> dict[str, Any]:
  """What a writer has kept at a place; {} if nothing yet."""
  return read_json(path) if path.is_file() else {}


def remember(path: Path, what: Mapping[str, Any]) -> None:
  """Keeps what a writer has to know when the run goes on."""
  write_text(path, json.dumps(what) + "\n")
