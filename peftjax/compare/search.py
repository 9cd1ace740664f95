"""The search before a study: the same number of runs for every row, on seeds that the final runs do not use.

`rates` decides what is tried next and what is taken; here its runs are trained and kept. A run's score is the main
metric on the validation split. The test split is not opened. D/search/ROW/SETTING/seed-N/ holds the runs, and what is
finished there is not trained again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from peftjax.compare import rates
from peftjax.compare.metrics import spec_of, specs_in
from peftjax.compare.rates import Run, SearchPoint
from peftjax.compare.trainer import RunOutcome, Trainer
from peftjax.compare.trials import fingerprint, plain_config, row_config, rows_of, sizes_of
from peftjax.errors import UserError
from peftjax.files import read_json, write_text
from peftjax.leases import Leases
from peftjax.methods import METHODS
from peftjax.named_code import check_code, code_of
from peftjax.stored import Stored
from peftjax.train.watch import Diverged

Say = Callable[[str], None]
Laid = Callable[[ConfigDict], ConfigDict]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tried(Stored):
  """A setting with its score and its loss under each seed that it was tried under; None where the run diverged.

  Attributes:
    run: its folder.
    seeds: its own; empty in searches that tried every setting under every seed.
    value: the score that the curve over all rates gives it; None in such searches.
  """

  learning_rate: float
  knobs: Mapping[str, Any]
  scores: tuple[float | None, ...]
  losses: tuple[float | None, ...] = ()
  run: str = ""
  seeds: tuple[int, ...] = ()
  value: float | None = None

  @property
  def setting(self) -> SearchPoint:
    return SearchPoint(self.learning_rate, tuple(self.knobs.items()))

  @property
  def mean(self) -> float | None:
    """Of the scores; None where a run diverged."""
    known = [score for score in self.scores if score is not None]
    return sum(known) / len(known) if len(known) == len(self.scores) else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice(Stored):
  """What the search found for a row.

  Attributes:
    row: its name.
    size: of `compare.sizes` that it was searched at; 0 without.
    learning_rate, knobs: the setting for the final runs.
    interior: whether lower and higher learning rates were tried, and were not better.
    tried: all settings, in the order of their trials.
  """

  row: str
  size: int = 0
  learning_rate: float
  knobs: Mapping[str, Any]
  interior: bool
  tried: tuple[Tried, ...]

  @property
  def best(self) -> SearchPoint:
    return SearchPoint(self.learning_rate, tuple(self.knobs.items()))

  @property
  def rates(self) -> list[Tried]:
    """The settings without knobs: learning rates alone."""
    return [one for one in self.tried if not one.knobs]

  @property
  def runs(self) -> int:
    """How many it took."""
    return sum(len(one.scores) for one in self.tried)


def search_rows(
  config: ConfigDict, workdir: Path, rows: Sequence[str], trainer: Trainer, say: Say, leases: Leases | None = None
) -> list[Choice]:
  """Searches for every row what has not been searched yet, and writes ``D/search.json``; [] if there is no search.

  Args:
    config: the study's; `compare.search` says how.
    rows: of `compare.methods`.
    trainer: trains some runs, or goes on with them.
    leases: of the processes that divide the rows; what another one searched repeats itself from its
      files. Without, this process alone searches.

  Raises:
    UserError: a search whose settings make no sense, or a folder of another search.
  """
  section = config.compare.search
  if not section.seeds:
    return []
  _check(config)
  for row in rows[:1]:  # the other rows were checked, and differ in nothing that a search changes
    trainer.check(_base(config, row))
  found: dict[tuple[str, int], Choice] = {}
  wanted = [(row, size) for size in sizes_of(config)[-1 if section.sizes == "largest" else 0 :] for row in rows]

  def content(one: tuple[str, int]) -> str:
    return fingerprint({"base": plain_config(_base(config, *one)), "search": plain_config(section)})

  with (leases or Leases(workdir)).shared(wanted, lambda one: f"search-{one[0]}-{one[1]}", content=content) as given:
    for row, size in given:
      what = f"search for {row}" + (f" at {size} examples" if size else "")
      say(f"{what}: {section.trials * len(section.seeds)} runs, of at most {len(section.seeds)} seeds a setting")
      found[row, size] = choice = search_row(config, workdir, row, trainer, size)
      say(f"{what}: {choice.best.name}" + ("" if choice.interior else ", at the edge of what was tried"))
  choices = [found[one] for one in wanted]
  write_text(workdir / "search.json", json.dumps([one.to_json() for one in choices], indent=2) + "\n")
  return choices


def changes_of(choices: Sequence[Choice], sizes: Sequence[int]) -> dict[tuple[str, int], Laid]:
  """(row, size) -> what a search made of the row's config: its own size's, else the largest size's."""
  found = {(one.row, size): one.best.laid_on for size in sizes for one in choices if one.size == max(sizes)}
  return found | {(one.row, one.size): one.best.laid_on for one in choices}


def search_row(config: ConfigDict, workdir: Path, row: str, trainer: Trainer, size: int = 0) -> Choice:
  """One row's search; deterministic, so that it repeats itself from what is finished."""
  section, overrides = config.compare.search, rows_of(config).get(row, {})
  base = _base(config, row, size)
  centre = base.optim.learning_rate or METHODS[base.method.name].learning_rate
  folder = workdir / "search" / row / (f"n={size}" if size else "")
  found = rates.find(
    lambda runs: _outcomes(base, folder, runs, config.compare, trainer),
    centre,
    section.factor,
    section.trials * len(section.seeds),
    len(section.seeds),
    dict(_knobs(overrides.get("search") or {})),
  )
  tried = []
  for setting, own in found.runs.items():
    direction = next((run.direction for run in own.values() if run.score is not None), None)
    tried.append(
      Tried(
        learning_rate=setting.rate,
        knobs=dict(setting.knobs),
        scores=tuple(run.score for run in own.values()),
        losses=tuple(run.loss for run in own.values()),
        run=setting.name,
        seeds=tuple(section.seeds[number] for number in own),
        value=None if direction is None else direction * found.values[setting],
      )
    )
  all_rates = [one.learning_rate for one in tried]
  return Choice(
    row=row,
    size=size,
    learning_rate=found.best.rate,
    knobs=dict(found.best.knobs),
    interior=min(all_rates) < found.best.rate < max(all_rates),
    tried=tuple(tried),
  )


def _base(config: ConfigDict, row: str, size: int = 0) -> ConfigDict:
  """What the trials of a row's search share."""
  section = config.compare.search
  base = row_config(config, row, rows_of(config).get(row, {}), section.seeds[0], size)
  with base.unlocked():
    base.train.final_splits = (section.split,)
    base.train.save_every, base.train.eval_every, base.train.tensorboard = 0, 0, False
    base.train.update({"best": "", "patience": 0, "min_delta": 0.0, "result": "last", "writers": ()})
    base.train.eval_first, base.data.shifted, base.data.retained = False, (), ""
    base.train.evaluators = ()  # the task's own give its main metric
  return base


def _knobs(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Sequence[Any]]]:
  """(dotted field, values to try) of a row's section `search`."""
  for name, value in section.items():
    if isinstance(value, Mapping):
      yield from _knobs(value, f"{prefix}{name}.")
    else:
      yield f"{prefix}{name}", value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored(Stored):
  """What ``score.json`` keeps of a trial of the search: its score and loss, None if it diverged."""

  score: float | None
  loss: float | None
  direction: float = 1.0  # of the score: 1.0 where more is better, else -1.0
  config_hash: str
  code: Mapping[str, str] = dataclasses.field(default_factory=dict)


def _outcomes(
  base: ConfigDict, folder: Path, wanted: Sequence[Run], study: ConfigDict, trainer: Trainer
) -> list[Scored]:
  """The outcome of each run; what is not finished is trained, `compare.together` runs at once."""
  runs = []
  for setting, number in wanted:
    config = setting.laid_on(base)
    config.seed = study.search.seeds[number]
    runs.append((config, folder / setting.name / f"seed-{config.seed}"))
  found = {place: kept for config, place in runs if (kept := _finished(config, place))}
  open_ = [(config, place) for config, place in runs if place not in found]
  for start in range(0, len(open_), max(study.together, 1)):
    group = open_[start : start + max(study.together, 1)]
    outcomes = trainer.train([config for config, _ in group], [place for _, place in group])
    for (config, place), outcome in zip(group, outcomes):
      found[place] = _scored(config, outcome, study.search.split)
      write_text(place / "score.json", json.dumps(found[place].to_json()) + "\n")
  return [found[place] for _, place in runs]


def _scored(config: ConfigDict, outcome: RunOutcome, split: str) -> Scored:
  """A trial's score, or that it diverged; any other error is the study's."""
  content, code = fingerprint(plain_config(config)), code_of(config)
  if isinstance(outcome, Diverged):
    return Scored(score=None, loss=None, config_hash=content, code=code)
  if isinstance(outcome, Exception):
    raise outcome
  main, metrics = outcome["main_metric"], outcome["metrics"].get(split)
  if metrics is None:
    raise UserError(f"compare.search.split={split!r}: the data has no such split to search on")
  direction = spec_of(main, specs_in(outcome, main)).direction
  return Scored(score=metrics[main], loss=metrics["loss"], direction=direction, config_hash=content, code=code)


def _finished(config: ConfigDict, place: Path) -> Scored | None:
  """A finished trial's outcome; None if it is not finished."""
  path = place / "score.json"
  if not path.is_file():
    return None
  kept = read_json(path)
  if kept.get("config_hash") != fingerprint(plain_config(config)):
    raise UserError(f"{place} holds a trial of another search: use another --workdir, or delete it")
  if "loss" not in kept:
    raise UserError(f"{path} has no 'loss', so an older version wrote it: use another --workdir, or delete {place}")
  found = Scored.checked(kept, str(path))
  check_code(found.code, code_of(config), place, config.data.code_changed)
  return found


def _check(config: ConfigDict) -> None:
  section = config.compare.search
  both = sorted(set(section.seeds) & set(config.compare.seeds))
  if both:
    raise UserError(f"compare.search.seeds: {both} are seeds of the final runs too; use others, such as (100, 101)")
  if section.sizes not in ("largest", "each"):
    raise UserError(f"compare.search.sizes={section.sizes!r}: expected 'largest' or 'each'")
  if section.trials < 3 or section.factor <= 1:
    raise UserError(
      f"compare.search.trials={section.trials}, factor={section.factor}: expected 3 settings or more, a factor above 1"
    )
