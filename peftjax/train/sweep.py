"""A sweep: the grid of what `config.sweep` lists, trained as one program.

--config.sweep.seed="(0, 1)" --config.sweep.optim.learning_rate="(1e-3, 3e-3, 1e-2)"

D/learning_rate=0.001,seed=0/ ...   each run's folder, as `peftjax train` leaves it for that config
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from peftjax.config import OPEN
from peftjax.errors import UserError, nearest
from peftjax.train.together import train_together
from peftjax.train.watch import Diverged


def grid(config: ConfigDict) -> dict[str, ConfigDict]:
  """Folder name -> config of every run of a sweep: fields in alphabetical order, the last changing fastest.

  Raises:
    UserError: a field that does not exist, or values that are no tuple of different ones.
  """
  fields = dict(sorted(flatten_dict(config.sweep.to_dict(), sep=".").items()))
  for name, values in fields.items():
    if not isinstance(values, tuple) or not values or len(set(map(str, values))) != len(values):
      raise UserError(f"sweep.{name}={values!r}: expected different values, such as (0, 1, 2)")
  runs = {}
  for values in itertools.product(*fields.values()):
    one = copy.deepcopy(config)
    with one.unlocked():
      one.sweep = ConfigDict()
      for name, value in zip(fields, values):
        _set(one, name, value)
    runs[",".join(f"{name.rpartition('.')[2]}={value}" for name, value in zip(fields, values))] = one
  if len(runs) != len(list(itertools.product(*fields.values()))):
    raise UserError(f"sweep: the fields {', '.join(fields)} end in the same name, so that folders would coincide")
  for folder in runs:
    if "/" in folder:
      raise UserError(f"sweep: {folder!r} is no name of a folder; give such runs their own workdirs")
  return runs


def train_sweep(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
  """Trains the whole grid, or goes on with it: run's folder name -> its summary, or {"diverged": why}."""
  runs = grid(config)
  ended = train_together(list(runs.values()), [Path(workdir) / name for name in runs])
  return {
    name: {"diverged": str(outcome)} if isinstance(outcome, Diverged) else outcome for name, outcome in zip(runs, ended)
  }


def show(result: Mapping[str, Any], console: Console) -> None:
  """A table of the runs: the last loss, and the main metric of each split that was evaluated."""
  splits = list(dict.fromkeys(split for one in result.values() for split in one.get("metrics", {})))
  table = Table("run", "loss", *splits)
  for name, one in result.items():
    if "diverged" in one:
      table.add_row(name, "diverged", *[""] * len(splits))
      continue
    scores = [one["metrics"].get(split, {}).get(one["main_metric"]) for split in splits]
    table.add_row(name, f"{one['train']['loss']:.4f}", *["" if score is None else f"{score:.4f}" for score in scores])
  console.print(table)


def _set(config: ConfigDict, name: str, value: Any) -> None:
  section_name, _, field = name.rpartition(".")
  section = config
  for part in section_name.split(".") if section_name else []:
    if not isinstance(section.get(part), ConfigDict):
      raise UserError(f"sweep.{name}: no section {part!r}; {nearest(part, section.keys())}")
    section = section[part]
  if field not in section and section_name not in OPEN:
    raise UserError(f"sweep.{name}: no field {field!r}; {nearest(field, section.keys())}")
  if isinstance(section.get(field), float) and isinstance(value, int):
    value = float(value)
  try:
    section[field] = value
  except TypeError:
    raise UserError(f"sweep.{name}: {value!r} is no {type(section[field]).__name__}") from None
