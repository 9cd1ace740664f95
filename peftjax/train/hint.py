"""What is said at a run's end: that its loss has barely moved, how it goes on for longer, what own code it names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from peftjax import registry
from peftjax.data.sources import SOURCES

LEAST = 0.05  # share of the first losses by which the last ones should lie lower
_PART = 5  # the first and the last fifth of the losses that were logged
_POINTS = 6  # logged losses, below which nothing is said
_STEP = 3  # times the rate that is proposed


def hint_of(rows: Sequence[Mapping[str, Any]], rates: Mapping[str, float]) -> str:
  """One line; "" where the loss has moved, or too few of it are known.

  Args:
    rows: of metrics.jsonl.
    rates: group -> its peak learning rate.

  >>> hint_of([{"step": step, "loss": 2.0 - 0.001 * step} for step in range(10, 101, 10)], {"adapter": 5e-4})
  'the training loss has barely moved: 1.985 to 1.905, 4.0 % less; if that is too little, try
  --config.optim.learning_rate=0.0015 or more train.epochs'
  >>> hint_of([{"step": step, "loss": 2.0 - 0.01 * step} for step in range(10, 101, 10)], {"adapter": 5e-4})
  ''
  """
  losses = [row["loss"] for row in rows if "split" not in row and isinstance(row.get("loss"), float)]
  if len(losses) < _POINTS or not rates:
    return ""
  count = max(len(losses) // _PART, 1)
  first, last = sum(losses[:count]) / count, sum(losses[-count:]) / count
  if first <= 0 or last < (1 - LEAST) * first:
    return ""
  moved = f"{100 * (1 - last / first):.1f} % less" if last <= first else f"{100 * (last / first - 1):.1f} % more"
  higher = _STEP * rates.get("adapter", max(rates.values()))
  return (
    f"the training loss has barely moved: {first:.4g} to {last:.4g}, {moved}; if that is too little, try "
    f"--config.optim.learning_rate={higher:.2g} or more train.epochs"
  )


def already_finished(folder: Path, summary: Mapping[str, Any], config: ConfigDict) -> str:
  """What is said of a run that is asked for again, and how it goes on for longer."""
  done, form = f"already finished, with step {summary['step']} in {folder}", export_form(summary, config)
  start = "--config.model.path" if form == "merged" else "--config.model.adapter"
  return (
    f"{done}. To train longer: peftjax export --workdir={folder} --format={form} --out=START{trust_flag(config)}, and "
    f"then train with {start}=START in another folder"
  )


def export_form(summary: Mapping[str, Any], config: ConfigDict) -> str:
  """The format that a run is exported in: "merged" where all trains. A model of the user's own has no folder that
  `model.path` takes, so that all of its runs are written as what trained ("peft")."""
  is_whole = summary.get("method") == "full" and not _is_own(str(config.model.path))
  return "merged" if is_whole else "peft"


def trust_flag(config: ConfigDict) -> str:
  """The flag, with a space before it, by which other verbs may import the own code that a run names; "" of none."""
  names = list(_own_names(config))
  folders = [registry.folder_of(one) for one in names]
  found = [one if folder is None else _shown(folder) for one, folder in zip(names, folders)]
  return f" --trust={','.join(dict.fromkeys(found))}" if found else ""


def _own_names(config: ConfigDict) -> Iterator[str]:
  named = (config.model.path, config.model.family, config.data.name, config.task.name, config.input.name,
           config.method.name, *config.train.evaluators, *config.train.writers)  # fmt: skip
  for one in map(str, named):
    if _is_own(one):
      yield ":".join(one.split(":")[:2])  # of data, without the rest


def _is_own(name: str) -> bool:
  kind, colon, _ = name.partition(":")
  is_module = kind.endswith(".py") or all(part.isidentifier() for part in kind.split("."))
  return bool(colon) and kind not in SOURCES and is_module


def _shown(folder: Path) -> str:
  """A folder as it is shortest to write from here."""
  absolute = folder.resolve()
  relative = os.path.relpath(absolute)
  return str(absolute) if relative.startswith("..") else relative
