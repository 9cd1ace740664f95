"""Which runs a study consists of: every row of `config.compare` under every seed, at every size.

A trial is an ordinary training config. It differs from its neighbours only by its row's overrides and its seed, so that
`peftjax train --config=... --config.seed=N` with the same overrides repeats it without the study.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from peftjax.config import OPEN
from peftjax.errors import UserError, nearest

DEFAULT_ROWS = ("full", "head", "bitfit", "lora", "ia3", "houlsby", "prompt")
FROZEN = "frozen"  # a method's name in a study alone: training refuses a method that leaves nothing to train
_MISSING = object()


def is_frozen(config: ConfigDict) -> bool:
  """Whether a trial trains nothing: the base with its head as drawn."""
  return bool(config.method.name == FROZEN)


def buildable(config: ConfigDict) -> ConfigDict:
  """The config; of a frozen row a copy with a method that adds no leaves, so that its model can be built."""
  if not is_frozen(config):
    return config
  changed = copy.deepcopy(config)
  with changed.unlocked():
    changed.method = ConfigDict({"name": "full"})
  return changed


def rows_of(config: ConfigDict) -> dict[str, dict[str, Any]]:
  """Row -> its overrides, of a study's config.

  Raises:
    UserError: `compare.rows` names one that is not there, or a row's overrides are no sections of fields.
  """
  held = config.compare.methods.to_dict() or {name: {} for name in DEFAULT_ROWS}
  wanted = tuple(config.compare.get("rows", ())) or tuple(held)
  for row in wanted:
    if row not in held:
      raise UserError(f"compare.rows={wanted}: {row!r} is no row of compare.methods; {nearest(row, held)}")
  found = {row: held[row] or {} for row in wanted}  # of the command line's {} absl makes ()
  for row, overrides in found.items():
    where = f"compare.methods.{row}"
    if not isinstance(overrides, Mapping):
      raise UserError(f"{where}={overrides!r:.80}: expected sections, such as {{'method': {{'rank': 8}}}}")
    for section, fields in overrides.items():
      if not isinstance(fields, Mapping) and (section == "search" or isinstance(config.get(section), ConfigDict)):
        raise UserError(f"{where}.{section}={fields!r:.80}: expected its fields, such as {{'learning_rate': 1e-3}}")
  return found


@dataclasses.dataclass(frozen=True)
class Trial:
  """One training run of the study."""

  row: str
  seed: int
  config: ConfigDict
  size: int = 0  # training examples, in a study of several sizes

  @property
  def run(self) -> str:
    """The run's id: its folder below ``D/runs``."""
    return "/".join((self.row, *([f"n={self.size}"] if self.size else []), f"seed-{self.seed}"))

  def folder(self, workdir: Path) -> Path:
    return workdir / "runs" / self.run


def trials_of(
  config: ConfigDict, change: Mapping[tuple[str, int], Callable[[ConfigDict], ConfigDict]] | None = None
) -> list[Trial]:
  """The trials of a study, all rows of a seed before the next seed: a study cut short still compares all methods.

  Args:
    config: with the section `compare`.
    change: (row, size) -> what the search made of its config; the size is 0 without `compare.sizes`.

  Raises:
    UserError: a reference or baseline that is no row, a row's name that is no folder name, an override that fits no
      field, a seed or a size given twice.
  """
  study = config.compare
  rows = rows_of(config)
  seeds = tuple(study.seeds)
  if not seeds or len(set(seeds)) != len(seeds) or not all(isinstance(seed, int) and seed >= 0 for seed in seeds):
    raise UserError(f"compare.seeds={seeds}: expected different numbers from 0 on, such as (0, 1, 2)")
  for field in ("reference", "baseline"):
    if study[field] and study[field] not in rows:
      among = "compare.rows" if study.get("rows", ()) else "compare.methods"
      raise UserError(f"compare.{field}={study[field]!r} is no row of {among}; {nearest(study[field], rows)}")
  for row in rows:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", row):
      raise UserError(f"compare.methods: the row {row!r} names a folder; use letters, digits, '.', '_', '+' and '-'")
  first = [row for row in (study.reference, study.baseline) if row]
  order = dict.fromkeys([*first, *rows])  # what others are compared with comes first
  changed = change or {}
  return [
    Trial(row, seed, changed.get((row, size), lambda one: one)(row_config(config, row, rows[row], seed, size)), size)
    for seed in seeds
    for size in sizes_of(config)
    for row in order
  ]


def sizes_of(config: ConfigDict) -> tuple[int, ...]:
  """The study's numbers of training examples, ascending; (0,) if it has but the one of `data.train_examples`.

  Raises:
    UserError: a size that is no positive number, or given twice.
  """
  sizes = tuple(config.compare.get("sizes", ()))
  if len(set(sizes)) != len(sizes) or not all(isinstance(size, int) and size > 0 for size in sizes):
    raise UserError(f"compare.sizes={sizes}: expected different numbers of training examples, such as (32, 128, 512)")
  return tuple(sorted(sizes)) or (0,)


def in_groups(trials: Sequence[Trial], together: int) -> list[list[Trial]]:
  """The trials in the order of their training: `together` seeds of a row and size at once, then the next seeds."""
  seeds = list(dict.fromkeys(trial.seed for trial in trials))
  chunks = [seeds[start : start + max(together, 1)] for start in range(0, len(seeds), max(together, 1))]
  kinds = list(dict.fromkeys((trial.row, trial.size) for trial in trials))
  found = {(trial.row, trial.size, trial.seed): trial for trial in trials}
  return [[found[*kind, seed] for seed in chunk if (*kind, seed) in found] for chunk in chunks for kind in kinds]


def row_config(config: ConfigDict, row: str, overrides: Mapping[str, Any], seed: int, size: int = 0) -> ConfigDict:
  """The study's config with a row's overrides, ready to train; its last step is followed by the study's split.

  A `method` section replaces the config's whole; without one the row's name is the method's. Other sections change the
  fields that they name.

  Raises:
    UserError: a section or field that does not exist, or a value of another type.
  """
  config = copy.deepcopy(config)
  where = f"compare.methods.{row}"
  sections = [name for name, value in config.items() if isinstance(value, ConfigDict) and name != "compare"]
  with config.unlocked():
    config.seed = seed
    if size:
      config.data.train_examples = size
    config.method = ConfigDict({"name": row, **overrides.get("method", {})})
    if config.compare.split not in config.train.final_splits:
      config.train.final_splits = (*config.train.final_splits, config.compare.split)
    del config["compare"]
    for section, fields in overrides.items():
      if section == "search":  # of the row's knobs, before the final runs
        continue
      if section not in sections:
        raise UserError(f"{where}: no section {section!r}; {nearest(section, sections)}")
      if section != "method":
        _override(config[section], fields, f"{where}.{section}", section)
  return config


def _override(section: ConfigDict, fields: Mapping[str, Any], where: str, name: str) -> None:
  is_open = any(name == one or name.startswith(one + ".") for one in OPEN)
  for field, value in fields.items():
    if field not in section and not is_open:
      raise UserError(f"{where}: no field {field!r}; {nearest(field, section.keys())}")
    if isinstance(section.get(field), ConfigDict) and isinstance(value, Mapping):
      _override(section[field], value, f"{where}.{field}", f"{name}.{field}")
      continue
    try:
      section[field] = ConfigDict(value) if isinstance(value, Mapping) else value
    except TypeError:
      expected = type(section[field]).__name__
      raise UserError(f"{where}.{field}={value!r}: expected {expected}, such as {section[field]!r}") from None


def plain_config(config: ConfigDict) -> dict[str, Any]:
  """The config as JSON would give it back: nested dicts and lists, without what lets changed code pass."""
  found: dict[str, Any] = json.loads(json.dumps(config.to_dict()))
  found.get("data", {}).pop("code_changed", None)
  return found


def fingerprint(config: Mapping[str, Any]) -> str:
  """Twelve hex digits that change with any field of a `plain_config`."""
  return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]


def config_changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
  """Each field in which two plain configs differ.

  >>> config_changes({"optim": {"learning_rate": 0.1}}, {"optim": {"learning_rate": 0.2}, "seed": 4})
  ['optim.learning_rate: 0.1 -> 0.2', 'seed: not there -> 4']
  """
  lines = []
  for key in sorted({*old, *new}):
    before, after = old.get(key, _MISSING), new.get(key, _MISSING)
    if isinstance(before, Mapping) and isinstance(after, Mapping):
      lines += config_changes(before, after, f"{prefix}{key}.")
    elif before != after:
      shown = ["not there" if one is _MISSING else repr(one) for one in (before, after)]
      lines.append(f"{prefix}{key}: {' -> '.join(shown)}")
  return lines
