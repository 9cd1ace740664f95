"""A run's folder: its config, and whether the run in it is this one, another one, or finished."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from peftjax import config as config_lib
from peftjax import outputs
from peftjax.errors import UserError
from peftjax.files import read_json, write_text
from peftjax.masks import flatten
from peftjax.methods import METHODS

KIND = "run"  # of output; a run lists none of its files
CONFIG, SUMMARY, LOCK = "config.json", "summary.json", ".lock"
_RUN = ("checkpoints", "metrics.jsonl", "timing.jsonl")  # what a run has, and no study
# Names of what a run writes after its config.json
_WRITTEN = ("metrics.jsonl", "timing.jsonl", "compiled.json", "metrics.csv", "best.json", "eval.json",
            "predictions-*.npz", "generations-*.jsonl", "transcripts-*.jsonl", "examples-*.png", "confusion-*.png",
            "detections-*.png", "samples/*.png")  # fmt: skip
_STUDY = ("results.jsonl", "claims.json", "search.json", "leases")  # what a study has, and no run

# Fields that may change when a run goes on: they do not decide what is computed.
MAY_CHANGE = (
  "mesh.",
  "hosts.",
  "compare.",
  "guide.",
  "sweep",
  "data.code_changed",
  "data.workers",
  "train.keep",
  "train.save_every",
  "train.tensorboard",
  "train.writers",
  "writers",
)


def write_config(folder: Path, config: ConfigDict, resolved: Mapping[str, Any]) -> None:
  """Writes ``config.json``: every section of the config, and "resolved", what its open fields became."""
  text = json.dumps({**config.to_dict(), "resolved": resolved}, indent=2, default=list)
  write_text(folder / CONFIG, text + "\n")


@dataclasses.dataclass(frozen=True)
class Resolved:
  """What the open fields of a run's config became: the section "resolved" of its ``config.json``."""

  task: str
  label_names: tuple[str, ...]
  head: str
  num_labels: int
  problem_type: str = ""
  fields: tuple[str, ...] = ()
  label_kind: str = ""  # of the data; earlier versions wrote neither, nor
  data_label_names: tuple[str, ...] | None = None  # the data's own, which the task's need not be


def read_config(folder: Path) -> tuple[ConfigDict, Resolved]:
  """(config, resolved) of the run in a folder; fields that it lacks, as those of earlier versions do, are the defaults.

  Raises:
    UserError: there is no run in it, or its ``config.json`` holds what no config may.
  """
  path = folder / CONFIG
  if not path.is_file():
    raise UserError(f"{folder} holds no run: no {CONFIG} in it")
  saved = _saved(path)
  found = saved.pop("resolved", None)
  if not isinstance(found, Mapping):
    raise UserError(f'{path} is no run\'s: it has no section "resolved"')
  task, labels = found.get("task"), found.get("label_names")
  if not isinstance(task, str) or not isinstance(labels, tuple) or not all(isinstance(one, str) for one in labels):
    raise UserError(f"{path}: resolved.task and resolved.label_names: expected a text and a list of texts")
  head, count = found.get("head", task), found.get("num_labels", max(len(labels), 1))  # earlier versions wrote neither
  fields = found.get("fields", ())
  if not isinstance(fields, tuple) or not all(isinstance(one, str) for one in fields):
    raise UserError(f"{path}: resolved.fields: expected a list of texts")
  own = found.get("data_label_names")
  if own is not None and (not isinstance(own, tuple) or not all(isinstance(one, str) for one in own)):
    raise UserError(f"{path}: resolved.data_label_names: expected a list of texts")
  if not isinstance(head, str) or not isinstance(count, int) or count < 0:
    raise UserError(f"{path}: resolved.head and resolved.num_labels: expected a text and a number of classes")
  kinds = (str(found.get("problem_type", "")), fields, str(found.get("label_kind", "")), own)
  return _config(path, saved), Resolved(task, labels, head, count, *kinds)


def stored_config(path: Path) -> ConfigDict:
  """The config that a study or a run wrote, with the default of every field that it lacks.

  Raises:
    UserError: it holds what no config may.
  """
  return _config(path, _without_resolved(_saved(path)))


def _saved(path: Path) -> dict[str, Any]:
  saved: dict[str, Any] = _with_tuples(read_json(path))
  return saved


def _config(path: Path, saved: Mapping[str, Any]) -> ConfigDict:
  try:
    config = config_lib.fill(config_lib.of_json(saved))
    config_lib.check(config)
  except UserError as error:
    raise UserError(f"{path}: {error}") from None
  return config


def differing_fields(folder: Path, config: ConfigDict) -> list[str]:
  """ "field: saved -> given" for every field in which the run in the folder is another one than this config's."""
  path = folder / CONFIG
  if not path.is_file():
    return []
  saved, given = (
    flatten(_config(path, one).to_dict()) for one in (_without_resolved(_saved(path)), _as_json(config.to_dict()))
  )
  for one in (saved, given):
    one["data.name"] = one["data.name"] or config_lib.DEFAULT_DATA
  names = sorted(name for name in saved.keys() | given.keys() if saved.get(name) != given.get(name))
  return [
    f"{name}: {_shown(name, saved)} -> {_shown(name, given)}" for name in names if not name.startswith(MAY_CHANGE)
  ]


def _shown(name: str, fields: Mapping[str, Any]) -> str:
  """A field's value; of one that is left out, what the method takes for it."""
  if name in fields:
    return repr(fields[name])
  method = METHODS.get(str(fields.get("method.name")))
  known = {f"method.{one.name}": one.default for one in dataclasses.fields(method)} if method else {}
  has_default = known.get(name, dataclasses.MISSING) is not dataclasses.MISSING
  return f"{known[name]!r} (the default)" if has_default else "not set"


def check_same_run(folder: Path, config: ConfigDict) -> None:
  """Raises `UserError`, naming the fields, if the folder holds checkpoints or the summary of another config's run.

  Raises it too if the folder is a study's, its config.json no run's, or a file of no run has the name of one.
  """
  saved = folder / CONFIG
  if study := next((name for name in _STUDY if (folder / name).exists()), ""):
    raise UserError(f"{folder} holds a study ({study}), which a run would write over; choose another folder")
  outputs.check_own(folder, (CONFIG,), whose="run's", kind=KIND, is_own=_has_resolved)
  if not saved.is_file():
    if has_checkpoints(folder) or (folder / SUMMARY).is_file():
      raise UserError(f"{folder} holds a run without its config.json: nobody can tell which; choose another folder")
    outputs.check_own(folder, _WRITTEN, whose="run's", kind=KIND)  # of a run, config.json comes first
  if not has_checkpoints(folder) and not (folder / SUMMARY).is_file():
    return
  if changed := differing_fields(folder, config):
    more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
    raise UserError(f"{folder} holds a run of another config ({'; '.join(changed[:4])}{more}); choose another folder")


def is_run(folder: Path) -> bool:
  """Whether a training run, finished or not, lies in the folder."""
  if any((folder / name).exists() for name in _RUN):
    return True
  return _has_resolved(folder / CONFIG)


def _has_resolved(config: Path) -> bool:
  """Whether a file is a run's config.json."""
  return config.is_file() and "resolved" in read_json(config)


def has_checkpoints(folder: Path) -> bool:
  """Whether there is a finished checkpoint in the folder."""
  return any(path.name.isdigit() for path in (folder / "checkpoints").glob("*"))


def config_hash(config: Mapping[str, Any]) -> str:
  """A hash of all fields that decide what is computed: ``summary.json`` says with it which config it belongs to.

  Args:
    config: as a dict, of this process or read from ``config.json``.
  """
  fields = flatten(_without_resolved(_as_json(config)))
  decisive = {name: value for name, value in fields.items() if not name.startswith(MAY_CHANGE)}
  return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def read_summary(folder: Path) -> dict[str, Any]:
  """The ``summary.json`` of a run; see `peftjax.train.summary.summarize` for what is in it.

  Raises:
    UserError: there is none, or what every summary has is not in it.
  """
  path = folder / SUMMARY
  summary = read_json(path)
  metrics, train = summary.get("metrics"), summary.get("train")
  step, config = summary.get("step"), summary.get("config", "")
  scores = [*metrics.values(), train] if isinstance(metrics, Mapping) else [None]
  is_step = isinstance(step, int) and not isinstance(step, bool) and 0 <= step < 2**63
  if not is_step or not isinstance(summary.get("main_metric"), str) or not isinstance(config, str):
    raise UserError(f"{path}: step, main_metric and config: expected a whole number and two texts")
  if not all(isinstance(one, Mapping) for one in scores):
    raise UserError(f"{path}: metrics and train: expected the numbers of each split, by their names")
  if not isinstance(summary.get("code", {}), Mapping):
    raise UserError(f"{path}: code: expected a digest of each of the user's own names")
  return summary


def finished_summary(folder: Path) -> dict[str, Any] | None:
  """The summary of the finished run in a folder, or None if there is none.

  Raises:
    UserError: a summary without the checkpoint that it speaks of, or of another config than is in the folder.
  """
  path = folder / SUMMARY
  if not path.is_file():
    return None
  summary = read_summary(folder)
  again = f"remove {path} to train again, or choose another folder"
  made_with = summary.get("config", "")  # earlier versions wrote none
  if made_with and made_with != config_hash(_saved(folder / CONFIG)):
    raise UserError(f"{path} belongs to another config than {folder / CONFIG}; {again}")
  if not (folder / "checkpoints" / str(summary.get("step"))).is_dir():
    raise UserError(f"{folder} holds a finished run whose checkpoint of step {summary.get('step')} is gone; {again}")
  return summary


@contextlib.contextmanager
def only_run(folder: Path, first: bool = True) -> Iterator[None]:
  """Makes the folder and holds it, so that two runs never train in one; leaves none where nothing came into it.

  Args:
    first: of the run's processes, the one that holds it.

  Raises:
    UserError: another run holds it, or it cannot be made.
  """
  path = folder / LOCK
  made = [one for one in (folder, *folder.parents) if not one.exists()]
  try:
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
  except OSError as error:
    raise UserError(f"cannot write the folder {folder}: {error.strerror}") from None
  with os.fdopen(lock, "r+"):
    if first and not _locked(lock, path):
      raise UserError(f"another process is training in {folder}")
    try:
      yield
    finally:
      with contextlib.suppress(OSError):  # another process has come, or put something beside
        if first and made and [one.name for one in folder.iterdir()] == [LOCK]:
          path.unlink()
          for one in made:
            one.rmdir()


def _locked(lock: int, path: Path) -> bool:
  """Whether this process now holds the lock, and its file is still the folder's."""
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return os.path.samestat(os.fstat(lock), path.stat())
  except (BlockingIOError, FileNotFoundError):
    return False


def _as_json(config: Mapping[str, Any]) -> dict[str, Any]:
  """A config as its ``config.json`` gives it back."""
  made: dict[str, Any] = _with_tuples(json.loads(json.dumps(config, default=list)))
  return made


def _without_resolved(saved: Mapping[str, Any]) -> dict[str, Any]:
  return {name: value for name, value in saved.items() if name != "resolved"}


def _with_tuples(value: Any) -> Any:
  """JSON's lists as the tuples that configs have."""
  if isinstance(value, Mapping):
    return {name: _with_tuples(one) for name, one in value.items()}
  return tuple(_with_tuples(one) for one in value) if isinstance(value, list) else value
