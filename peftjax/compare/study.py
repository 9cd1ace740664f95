"""The study: every method under every seed, each an ordinary training run, then one table of what came out.

    D/search/ROW/...     the search's runs, if there is one; D/search.json, what it found
    D/runs/ROW/seed-N/   a trial's folder, as `peftjax train --workdir` leaves it, and its record.json;
                         ROW/n=SIZE/seed-N/ in a study of several sizes
    D/config.json        the study's config
    D/results.jsonl      one line a finished trial
    D/timing.json        interleaved step times
    D/summary.json       the conclusions: what --json prints
    D/claims.json        verdicts on published claims
    D/report.html, D/report.md, D/report.tex
    D/leases/            who works on what

`conclude_again` writes everything below results.jsonl once more from what lies there.

The same command again goes on where it stopped: finished trials are kept, a trial under way goes on from
its checkpoint. Started several times at once, on one host or on many with one D, it divides the trials
(`peftjax.leases`).
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
import traceback
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from peftjax import outputs
from peftjax.compare import analysis, claims, dimensions, records
from peftjax.compare import folder as folder_lib
from peftjax.compare import formatting as fmt
from peftjax.compare.analysis import Summary
from peftjax.compare.budget import within_budget
from peftjax.compare.failures import DIVERGED
from peftjax.compare.records import Record
from peftjax.compare.report import page, table
from peftjax.compare.search import Choice, changes_of, search_rows
from peftjax.compare.trainer import Trainer
from peftjax.compare.training import JaxTrainer
from peftjax.compare.trials import Trial, fingerprint, in_groups, is_frozen, plain_config, sizes_of, trials_of
from peftjax.errors import UserError
from peftjax.files import parse_json, write_text
from peftjax.kinds import SETTINGS, list_of, value_of
from peftjax.leases import Leases
from peftjax.registry import only_trusted
from peftjax.train import timing
from peftjax.train.folder import stored_config
from peftjax.train.timing import Timing
from peftjax.train.watch import Diverged


@dataclasses.dataclass(frozen=True)
class Outcome:
  """A study's conclusions, and the trials that have none."""

  summary: Summary
  failed: Mapping[str, str]  # run -> the error's last line

  @property
  def exit_code(self) -> int:
    return 1 if self.failed else 0


def run_study(config: ConfigDict, workdir: str | Path, trainer: Trainer | None = None) -> Outcome:
  """Does what the study still lacks, and writes its results and its report.

  Args:
    config: with the section `compare`.
    workdir: D, the study's folder.
    trainer: what trains; `JaxTrainer` if left out.

  Raises:
    UserError: a config that does not plan, or a folder that holds another study, or files that are not a study's.
  """
  workdir, trainer = Path(workdir), trainer or JaxTrainer()
  folder_lib.check(workdir)
  config = within_budget(config, workdir, trainer)
  trials = trials_of(config)
  dimensions.of_study(config.compare.dimensions)
  _check_rows(trials, trainer)
  leases = Leases(workdir, config.compare.patience)
  rows = list(dict.fromkeys(trial.row for trial in trials if not is_frozen(trial.config)))
  chosen = search_rows(config, workdir, rows, trainer, say, leases)
  if chosen:
    trials = trials_of(config, changes_of(chosen, sizes_of(config)))
  done = _finished(trials, workdir)
  leases.check({_lease_of(group): _content(group) for group in in_groups(trials, config.compare.together)})
  _keep_config(config, workdir)
  failed = _train_all(trials, done, config, workdir, trainer, leases)
  failed |= _measure_all(trials, done, config, workdir, trainer, leases)
  with leases.shared(["conclusion"], str) as turns:
    for _ in turns:
      times = _step_times(trials, done, config, workdir, trainer)
      results = [done[one.run] for one in trials if one.run in done]
      _keep_config(config, workdir)  # again: one that is refused may have written its own meanwhile
      if results:  # one that was killed may have had no time to
        records.write_results(results, workdir)
      concluded = conclude(config, workdir, results, times, failed, chosen)
  return concluded


def conclude(
  config: ConfigDict,
  workdir: Path,
  results: Sequence[Record],
  times: Timing | None,
  failed: Mapping[str, str],
  searched: Sequence[Choice] = (),
  environment: Mapping[str, str] | None = None,
) -> Outcome:
  """Writes the summary, the claims and the report of the trials that there are.

  Args:
    environment: where they were trained, as `page.environment` tells it; here if not given.
  """
  if not results:
    return Outcome(Summary(failed=failed, search=tuple(searched)), failed)
  fields = {key: config.compare[key] for key in ("reference", "baseline", "margin", "split")}
  summary = conclusions(results, analysis.Question(**fields), config.compare.dimensions, times, failed)
  inside = {one.row: one.interior for one in sorted(searched, key=lambda one: one.size)}
  summary = dataclasses.replace(
    summary,
    failed=failed,
    search=tuple(searched),
    rows=tuple(dataclasses.replace(row, best_rate_inside=inside.get(row.row)) for row in summary.rows),
    environment=dict(environment or page.environment()),
  )
  verdicts = claims.judge(summary, results)
  folder_lib.check_conclusions(workdir)
  with outputs.written(workdir, folder_lib.CONCLUSIONS, folder_lib.KIND, overwrite=True) as place:
    write_text(place / "summary.json", json.dumps(summary.to_json(), indent=2) + "\n")
    write_text(place / "claims.json", json.dumps([one.to_json() for one in verdicts], indent=2) + "\n")
    page.write(place, plain_config(config), summary, results, verdicts)
  return Outcome(summary, failed)


def conclusions(
  results: Sequence[Record],
  question: analysis.Question,
  names: Iterable[str] = tuple(dimensions.DIMENSIONS),
  times: Timing | None = None,
  failed: Mapping[str, str] | None = None,
) -> Summary:
  """The numbers of a study's records, and what its dimensions found; the first are about the largest size.

  Args:
    names: of `config.compare.dimensions`; all of peftjax's own if left out.
    failed: run -> error, of trials that have no record.
  """
  size = max(record.size for record in results)
  summary = analysis.summarize([one for one in results if one.size == size], question, times, failed)
  summary = dataclasses.replace(summary, size=size or None)
  found = dimensions.conclusions(results, summary, names)
  return dataclasses.replace(summary, dimensions=found)


def conclude_again(workdir: str | Path, trust: Collection[str] = ()) -> Outcome:
  """Writes the conclusions of a kept study again, from its config.json, results.jsonl, search.json and timing.json.

  Nothing is trained or measured; what its summary.json says of the environment stays.

  Args:
    trust: the ``module:NAME`` of own dimensions that its config.json may name; see docs/security.md.

  Raises:
    UserError: the folder holds no results, or names own code that is not in `trust`.
  """
  workdir = Path(workdir)
  results = records.read_results(workdir / "results.jsonl")
  config, searched, times, before = (
    _kept(workdir / f"{one}.json") for one in ("config", "search", "timing", "summary")
  )
  if config is None:
    raise UserError(f"no file {workdir / 'config.json'}: a study keeps its config beside its results")
  folder_lib.check(workdir)
  before = value_of(str(workdir / "summary.json"), "summary", before or {}, SETTINGS)
  where, failed = (
    value_of(str(workdir / "summary.json"), name, before.get(name) or {}, SETTINGS)
    for name in ("environment", "failed")
  )
  path = workdir / "search.json"
  choices = [Choice.checked(one, str(path)) for one in value_of(str(path), "search", searched or [], _OBJECTS)]
  given = Timing.checked(times, str(workdir / "timing.json")) if times else None
  stored_config(workdir / "config.json")  # raises where a field is of another type
  with only_trusted(workdir, trust):
    return conclude(ConfigDict(config), workdir, results, given, failed, choices, where or None)


_OBJECTS = list_of(SETTINGS, 2**20, what="objects")


def _kept(path: Path) -> Any:
  return parse_json(path.read_bytes(), str(path)) if path.is_file() else None


def main(config: ConfigDict, workdir: str | Path, as_json: bool = False) -> int:
  """The verb `compare`: runs the study, prints its table or its summary as JSON, and returns the exit code."""
  outcome = run_study(config, workdir)
  if as_json:
    print(json.dumps(outcome.summary.to_json(), allow_nan=False))
  else:
    table.show(outcome.summary)
  if outcome.summary.rows:
    say(f"report: {Path(workdir) / 'report.html'}")
  return outcome.exit_code


def say(line: str) -> None:
  """One line on stderr: stdout is for results."""
  print(line, file=sys.stderr, flush=True)


def _check_rows(trials: Sequence[Trial], trainer: Trainer) -> None:
  """Finds a row that cannot be built before hours go into the others."""
  rows = {trial.row: trial for trial in reversed(trials)}
  failed: dict[str, str] = {}
  for row, trial in rows.items():
    try:
      trainer.check(trial.config)
    except UserError as error:
      failed[row] = str(error)
  if failed and len(failed) == len(rows) and len(set(failed.values())) == 1:
    raise UserError(next(iter(failed.values())))  # no row's fault
  for row, said in failed.items():
    raise UserError(f"compare.methods.{row}: {said}")


def _keep_config(config: ConfigDict, workdir: Path) -> None:
  write_text(workdir / "config.json", json.dumps(plain_config(config), indent=2, sort_keys=True) + "\n")


def _lease_of(group: Sequence[Trial]) -> str:
  """The name of the lease of a group's training."""
  return f"train-{group[0].run}"


def _content(group: Sequence[Trial]) -> str:
  """What tells a group from another one whose lease has the same name."""
  return fingerprint({trial.run: plain_config(trial.config) for trial in group})


def _finished(trials: Sequence[Trial], workdir: Path) -> dict[str, Record]:
  """run -> record, of the trials that are finished."""
  return {trial.run: record for trial in trials if (record := records.finished(trial, workdir))}


def _failed_elsewhere(trials: Sequence[Trial], workdir: Path, leases: Leases) -> dict[str, str]:
  """run -> its error's last line, of the trials that failed in another process since this one started."""
  errors = {trial.run: leases.failed_since(trial.folder(workdir) / "error.txt") for trial in trials}
  return {run: error for run, error in errors.items() if error is not None}


def _train_all(
  trials: Sequence[Trial],
  done: dict[str, Record],
  config: ConfigDict,
  workdir: Path,
  trainer: Trainer,
  leases: Leases,
) -> dict[str, str]:
  """Trains what `done` lacks and notes it there and in ``results.jsonl``; run -> why one has no record."""
  failed: dict[str, str] = {}
  start, before = time.monotonic(), len(done)
  with leases.shared(in_groups(trials, config.compare.together), _lease_of, content=_content) as groups:
    for group in groups:
      done |= _finished(group, workdir)  # by another process
      failed |= _failed_elsewhere([trial for trial in group if trial.run not in done], workdir, leases)
      open_ = [trial for trial in group if trial.run not in done and trial.run not in failed]
      if not open_:
        continue
      seeds = ", ".join(str(trial.seed) for trial in open_)
      what = open_[0].row + (f" at {open_[0].size} examples" if open_[0].size else "")
      left = _time_left(time.monotonic() - start, len(done) - before, len(trials) - len(done) - len(failed))
      say(f"trial {len(done) + len(failed) + 1} of {len(trials)}: {what}, seed {seeds}{left}")
      folders = [trial.folder(workdir) for trial in open_]
      outcomes = trainer.train([trial.config for trial in open_], folders)
      for trial, folder, outcome in zip(open_, folders, outcomes):
        if isinstance(outcome, Exception):  # one method's failure is a result of that method; the others go on
          if not done and isinstance(outcome, UserError) and not isinstance(outcome, Diverged):
            raise outcome  # a mistake in the config or the data, as a first trial finds it
          failed[trial.run] = _keep_error(trial, workdir, trial.run, outcome)
          continue
        done[trial.run] = records.record_of(trial, outcome, folder)
        records.keep_record(done[trial.run], folder)
        (folder / "error.txt").unlink(missing_ok=True)
      done |= _finished(trials, workdir)
      records.write_results([done[one.run] for one in trials if one.run in done], workdir)
  return failed


def _time_left(seconds: float, trained: int, left: int) -> str:
  """How long the open trials will take, at the pace of those that this process saw being finished.

  >>> _time_left(600.0, 5, 12), _time_left(3.0, 0, 12)
  (', about 24 min 0 s left', '')
  """
  return f", about {fmt.seconds(seconds / trained * left)} left" if trained else ""


def _measure_all(
  trials: Sequence[Trial],
  done: dict[str, Record],
  config: ConfigDict,
  workdir: Path,
  trainer: Trainer,
  leases: Leases,
) -> dict[str, str]:
  """Measures the dimensions that finished trials' records lack, and keeps them there; run -> why one is missing."""
  failed = {}
  first = dimensions.stand_for_rows(trials, done)
  here = [trial for trial in trials if trial.run in done]
  with leases.shared(here, lambda trial: f"measure-{trial.run}") as given:
    for trial in given:
      record, folder = records.finished(trial, workdir) or done[trial.run], trial.folder(workdir)
      done[trial.run] = record
      open_ = dimensions.open_ones(record, config.compare.dimensions, trial.run in first)
      if not open_:
        continue
      say(f"measuring {trial.run}: {', '.join(one.name for one in open_)}")
      for one, found in zip(open_, trainer.measure(open_, trial.config, folder, config.compare)):
        if isinstance(found, Exception):  # the trial's other results stand without it; the next start tries again
          what = f"{trial.run}, {one.name}"
          failed[what] = _keep_error(trial, workdir, what, found)
          continue
        record = dataclasses.replace(record, dimensions={**record.dimensions, one.name: found})
      records.keep_record(record, folder)
      done[trial.run] = record
      records.write_results([done[one.run] for one in trials if one.run in done], workdir)
  return failed


def _keep_error(trial: Trial, workdir: Path, what: str, error: Exception) -> str:
  """Keeps an error in the trial's folder, says that `what` failed, and returns the error's last line."""
  write_text(trial.folder(workdir) / "error.txt", "".join(traceback.format_exception(error)))
  say(f"failed: {what}: {_last_line(error)}")
  return _last_line(error)


def _last_line(error: Exception) -> str:
  if isinstance(error, Diverged):
    return f"{DIVERGED}: {error}"
  if isinstance(error, UserError):
    return str(error)
  return traceback.format_exception_only(error)[-1].strip().splitlines()[0]


def _step_times(
  trials: Sequence[Trial], done: Mapping[str, Record], config: ConfigDict, workdir: Path, trainer: Trainer
) -> Timing | None:
  """Times the finished rows' steps in turns, once: what an earlier start of the same study measured is kept."""
  first = {trial.row: trial for trial in reversed(trials) if trial.run in done and not is_frozen(trial.config)}
  rows = {trial.row: first[trial.row] for trial in trials if trial.row in first}
  path = workdir / "timing.json"
  kept = Timing.read(path) if path.is_file() else None
  if kept is not None and set(kept.rows) == set(rows):
    return kept
  if not config.compare.timing_rounds or not rows:
    return None
  say(f"timing the steps of {len(rows)} methods in turns")
  try:
    steps = {row: trainer.step(trial.config) for row, trial in rows.items()}
    times = timing.interleaved(steps, config.compare.reference, config.compare.timing_rounds)
  except Exception as error:  # such as no memory for all methods at once; the study's results stand without it
    say(f"steps were not timed in turns: {_last_line(error)}")
    return None
  write_text(path, json.dumps(times.to_json()) + "\n")
  return times
