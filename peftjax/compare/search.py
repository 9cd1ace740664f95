"""The search before a study: the same number of settings for every row, on seeds that the final runs do not use.

    1. peak learning rates c/√10, c, c·√10 around the row's own, c
    2. while the best is the lowest or the highest, one further out
    3. the row's knobs, one value after the other at the best rate; what is better stays
    4. rates between, at half and quarter distances from the best, until every row has had as many settings

A setting's score is the mean over the search's seeds of the main metric on the validation split; among equal ones the
lower loss there decides. The test split is not opened. D/search/ROW/SETTING/seed-N/ holds the runs, and what is
finished there is not trained again.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from peftjax.compare.sharing import Leases
from peftjax.compare.trials import fingerprint, plain, row_config, sizes_of
from peftjax.errors import UserError
from peftjax.files import read_json, write_text
from peftjax.masks import flatten
from peftjax.methods import METHODS

Train = Callable[[ConfigDict, Path], Mapping[str, Any]]  # trains in a folder, or resumes there; the run's summary
TrainMany = Callable[[Sequence[ConfigDict], Sequence[Path]], Sequence[Mapping[str, Any] | Exception]]
Say = Callable[[str], None]
_DIVERGED = (-math.inf, math.inf)
Laid = Callable[[ConfigDict], ConfigDict]


@dataclasses.dataclass(frozen=True)
class Setting:
  """What one trial of the search tries: a peak learning rate, and values of the row's knobs."""

  rate: float
  knobs: tuple[tuple[str, Any], ...] = ()

  @property
  def name(self) -> str:
    """Its folder."""
    return ",".join(f"{field.rpartition('.')[2]}={value}" for field, value in (("lr", self.rate), *self.knobs))

  def laid_on(self, config: ConfigDict) -> ConfigDict:
    """A copy of a row's config with this setting."""
    config = copy.deepcopy(config)
    for field, value in (("optim.learning_rate", self.rate), *self.knobs):
      section, _, last = field.rpartition(".")
      with config.unlocked():
        config[section][last] = value
    return config


@dataclasses.dataclass(frozen=True)
class Tried:
  """A setting, its score and its loss under each seed; -inf and inf where the run diverged."""

  setting: Setting
  scores: tuple[float, ...]
  losses: tuple[float, ...]

  @property
  def rank(self) -> tuple[float, float]:
    """More is better."""
    return sum(self.scores) / len(self.scores), -sum(self.losses) / len(self.losses)


@dataclasses.dataclass(frozen=True)
class Choice:
  """What the search found for a row.

  Attributes:
    row: its name.
    size: of `compare.sizes` that it was searched at; 0 without.
    best: the setting for the final runs.
    interior: whether lower and higher learning rates were tried, and were not better.
    tried: all settings, in the order of their trials.
  """

  row: str
  size: int
  best: Setting
  interior: bool
  tried: tuple[Tried, ...]

  def as_json(self) -> dict[str, Any]:
    """For ``search.json`` and the report."""
    return {
      "row": self.row,
      **({"size": self.size} if self.size else {}),
      "learning_rate": self.best.rate,
      "knobs": dict(self.best.knobs),
      "interior": self.interior,
      "tried": [
        {
          "learning_rate": one.setting.rate,
          "knobs": dict(one.setting.knobs),
          "scores": [None if math.isinf(score) else score for score in one.scores],
          "losses": [None if math.isinf(loss) else loss for loss in one.losses],
          "run": one.setting.name,
        }
        for one in self.tried
      ],
    }


def each(train: Train) -> TrainMany:
  """What trains one run after the other; an error is that run's outcome."""

  def train_each(configs: Sequence[ConfigDict], folders: Sequence[Path]) -> list[Mapping[str, Any] | Exception]:
    outcomes: list[Mapping[str, Any] | Exception] = []
    for config, folder in zip(configs, folders):
      try:
        outcomes.append(train(config, folder))
      except Exception as error:
        outcomes.append(error)
    return outcomes

  return train_each


def run(
  config: ConfigDict, workdir: Path, rows: Sequence[str], train_many: TrainMany, say: Say, leases: Leases | None = None
) -> list[Choice]:
  """Searches for every row what has not been searched yet, and writes ``D/search.json``; [] if there is no search.

  Args:
    config: the study's; `compare.search` says how.
    rows: of `compare.methods`.
    train_many: trains some runs, or goes on with them; summaries, or why a run has none.
    leases: of the processes that divide the rows; what another one searched repeats itself from its
      files. Without, this process alone searches.

  Raises:
    UserError: a search whose settings make no sense, or a folder of another search.
  """
  section = config.compare.search
  if not section.seeds:
    return []
  _check(config)
  found: dict[tuple[str, int], Choice] = {}
  wanted = [(row, size) for size in sizes_of(config)[-1 if section.sizes == "largest" else 0 :] for row in rows]
  with (leases or Leases(workdir)).shared(wanted, lambda one: f"search-{one[0]}-{one[1]}") as given:
    for row, size in given:
      what = f"search for {row}" + (f" at {size} examples" if size else "")
      say(f"{what}: {section.trials} settings under {len(section.seeds)} seeds")
      found[row, size] = choice = search_row(config, workdir, row, train_many, size)
      say(f"{what}: {choice.best.name}" + ("" if choice.interior else ", at the edge of what was tried"))
  choices = [found[one] for one in wanted]
  write_text(workdir / "search.json", json.dumps([one.as_json() for one in choices], indent=2) + "\n")
  return choices


def changes_of(choices: Sequence[Choice], sizes: Sequence[int]) -> dict[tuple[str, int], Laid]:
  """(row, size) -> what a search made of the row's config: its own size's, else the largest size's."""
  found = {(one.row, size): one.best.laid_on for size in sizes for one in choices if one.size == max(sizes)}
  return found | {(one.row, one.size): one.best.laid_on for one in choices}


def search_row(config: ConfigDict, workdir: Path, row: str, train_many: TrainMany, size: int = 0) -> Choice:
  """One row's search; deterministic, so that it repeats itself from what is finished."""
  section, overrides = config.compare.search, config.compare.methods.to_dict().get(row, {})
  base = row_config(config, row, overrides, section.seeds[0], size)
  with base.unlocked():
    base.train.final_splits = (section.split,)
    base.train.save_every, base.train.eval_every, base.train.tensorboard = 0, 0, False
    base.train.eval_first, base.data.shifted, base.data.retained = False, (), ""
  centre = base.optim.learning_rate or METHODS[base.method.name].learning_rate
  folder = workdir / "search" / row / (f"n={size}" if size else "")
  tried: dict[Setting, Tried] = {}

  def attempt(settings: Sequence[Setting]) -> None:
    fresh = [one for one in dict.fromkeys(settings) if one not in tried][: section.trials - len(tried)]
    for one, found in zip(fresh, _outcomes(base, folder, fresh, config.compare, train_many)):
      tried[one] = Tried(one, *zip(*found))

  def best() -> Setting:
    return max(tried.values(), key=lambda one: one.rank).setting

  def rate(exponent: float) -> float:
    return float(f"{centre * section.factor**exponent:.3g}")

  exponents = [-1.0, 0.0, 1.0]
  attempt([Setting(rate(one)) for one in exponents])
  while len(tried) < section.trials and best().rate in (rate(min(exponents)), rate(max(exponents))):
    exponents.append(min(exponents) - 1 if best().rate == rate(min(exponents)) else max(exponents) + 1)
    attempt([Setting(rate(exponents[-1]))])
  for field, values in flatten(overrides.get("search") or {}).items():
    for value in values:
      now = best()
      attempt([Setting(now.rate, (*(knob for knob in now.knobs if knob[0] != field), (field, value)))])
  for distance in (0.5, 0.25, 0.125):
    now = best()
    attempt(
      [dataclasses.replace(now, rate=float(f"{now.rate * section.factor**d:.3g}")) for d in (-distance, distance)]
    )
  rates = [one.rate for one in tried]
  return Choice(row, size, best(), min(rates) < best().rate < max(rates), tuple(tried.values()))


def _outcomes(
  base: ConfigDict, folder: Path, settings: Sequence[Setting], study: ConfigDict, train_many: TrainMany
) -> Iterator[list[tuple[float, float]]]:
  """Each setting's (score, loss) by seed; what is not finished is trained, `compare.together` runs at once."""
  seeds, runs = study.search.seeds, []
  for setting in settings:
    for seed in seeds:
      config = setting.laid_on(base)
      config.seed = seed
      runs.append((config, folder / setting.name / f"seed-{seed}"))
  open_ = [(config, place) for config, place in runs if _finished(config, place) is None]
  for start in range(0, len(open_), max(study.together, 1)):
    group = open_[start : start + max(study.together, 1)]
    outcomes = train_many([config for config, _ in group], [place for _, place in group])
    for (config, place), outcome in zip(group, outcomes):
      _write(config, place, outcome, study.search.split)
  found = [_finished(config, place) or _DIVERGED for config, place in runs]
  for index in range(len(settings)):
    yield found[index * len(seeds) : (index + 1) * len(seeds)]


def _write(config: ConfigDict, place: Path, outcome: Mapping[str, Any] | Exception, split: str) -> None:
  """Keeps a trial's score, or that it diverged; any other error is the study's."""
  from peftjax.train.watch import Diverged

  if isinstance(outcome, Exception) and not isinstance(outcome, Diverged):
    raise outcome
  score = loss = None
  if not isinstance(outcome, Exception):
    metrics = outcome["metrics"].get(split)
    if metrics is None:
      raise UserError(f"compare.search.split={split!r}: the data has no such split to search on")
    score, loss = metrics[outcome["main_metric"]], metrics["loss"]
  kept = {"score": score, "loss": loss, "config_hash": fingerprint(plain(config))}
  write_text(place / "score.json", json.dumps(kept) + "\n")


def _finished(config: ConfigDict, place: Path) -> tuple[float, float] | None:
  """A finished trial's (score, loss), `_DIVERGED` if it did; None if it is not finished."""
  path = place / "score.json"
  if not path.is_file():
    return None
  kept = read_json(path)
  if kept["config_hash"] != fingerprint(plain(config)):
    raise UserError(f"{place} holds a trial of another search: use another --workdir, or delete it")
  if "loss" not in kept:
    raise UserError(f"{path} has no 'loss', so an older version wrote it: use another --workdir, or delete {place}")
  return _DIVERGED if kept["score"] is None else (float(kept["score"]), float(kept["loss"]))


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
