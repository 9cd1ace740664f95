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

`again` writes everything below results.jsonl once more from what lies there.

The same command again goes on where it stopped: finished trials are kept, a trial under way goes on from
its checkpoint. Started several times at once, on one host or on many with one D, it divides the trials
(`peftjax.compare.sharing`).
"""

from __future__ import annotations

import dataclasses
import json
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from peftjax.compare import analysis, budget, claims, dimensions, records, report, search, table, timing
from peftjax.compare.dimensions.base import Dimension, Trained
from peftjax.compare.records import Record
from peftjax.compare.search import Train, TrainMany
from peftjax.compare.sharing import Leases
from peftjax.compare.trials import Trial, in_groups, plain, plan, sizes_of
from peftjax.errors import UserError
from peftjax.files import read_json, write_text

MakeStep = Callable[[ConfigDict], timing.Step]
Check = Callable[[ConfigDict], None]
Measure = Callable[[Dimension, Trained], Mapping[str, Any] | None]


@dataclasses.dataclass(frozen=True)
class Outcome:
  """A study's conclusions, and the trials that have none."""

  summary: analysis.Summary
  failed: dict[str, str]  # run -> the error's last line

  @property
  def exit_code(self) -> int:
    return 1 if self.failed else 0


def run(
  config: ConfigDict,
  workdir: str | Path,
  train: Train | None = None,
  make_step: MakeStep | None = None,
  check: Check | None = None,
  train_many: TrainMany | None = None,
  measure: Measure | None = None,
  step_flops: budget.StepFlops | None = None,
) -> Outcome:
  """Runs what the study still lacks, and writes its results and its report.

  Args:
    config: with the section `compare`.
    workdir: D, the study's folder.
    train: what trains a trial; `peftjax.compare.runs.train` if left out.
    make_step: what builds a trial's bare training step for the clock; `peftjax.compare.runs.training_step` if left out.
    check: raises `UserError` where a trial's config cannot be built; `peftjax.compare.runs.check` if left out.
    train_many: trains several runs at once; `peftjax.compare.runs.train_many`, or `train` for each if that is given.
    step_flops: FLOPs of a trial's update, for a budget; `peftjax.compare.runs.step_flops` if left out.
    measure: what measures a dimension of a trial; the dimension itself if left out, nothing if `train` is given.

  Raises:
    UserError: a config that does not plan, or a folder that holds another study.
  """
  workdir = Path(workdir)
  config = budget.laid_on(config, workdir, step_flops or _step_flops)
  trials = plan(config)
  dimensions.chosen(config.compare.dimensions)
  measure = measure or (dimensions.measure if train is None else None)
  if train is None or make_step is None or check is None:
    from peftjax.compare import runs  # imported late: a report from records needs no JAX

    train_many = train_many or (runs.train_many if train is None else None)
    train, make_step, check = train or runs.train, make_step or runs.training_step, check or runs.check
  train_many = train_many or search.each(train)
  _check_rows(trials, check)
  leases = Leases(workdir, config.compare.patience)
  rows = list(dict.fromkeys(trial.row for trial in trials if trial.config.method.name != budget.FROZEN))
  chosen = search.run(config, workdir, rows, train_many, say, leases)
  if chosen:
    trials = plan(config, search.changes_of(chosen, sizes_of(config)))
  done = _finished(trials, workdir)
  write_text(workdir / "config.json", json.dumps(plain(config), indent=2, sort_keys=True) + "\n")
  failed = _train_all(trials, done, config, workdir, train_many, leases)
  if measure is not None:
    failed |= _measure_dimensions(trials, done, config, workdir, measure, leases)
  with leases.shared(["conclusion"], str) as turns:
    for _ in turns:
      times = _step_times(trials, done, config, workdir, make_step)
      results = [done[one.run] for one in trials if one.run in done]
      concluded = conclude(config, workdir, results, times, failed, [one.as_json() for one in chosen])
  return concluded


def conclude(
  config: ConfigDict,
  workdir: Path,
  results: Sequence[Record],
  times: Mapping[str, Any] | None,
  failed: Mapping[str, str],
  searched: Sequence[Mapping[str, Any]] = (),
  environment: Mapping[str, str] | None = None,
) -> Outcome:
  """Writes the summary, the claims and the report of the trials that there are.

  Args:
    environment: where they were trained, as `report.environment` tells it; here if not given.
  """
  if not results:
    return Outcome({"rows": [], "failed": dict(failed), "search": list(searched)}, dict(failed))
  question = analysis.Question(**{key: config.compare[key] for key in ("reference", "baseline", "margin", "split")})
  size = max(record.get("size") or 0 for record in results)  # the first screen is about the largest
  summary = analysis.summarize([one for one in results if (one.get("size") or 0) == size], question, times)
  summary |= {"size": size or None, "failed": dict(failed), "search": list(searched)}
  summary["environment"] = dict(environment or report.environment())
  summary["dimensions"] = dimensions.summarize(results, summary)
  verdicts = claims.judge(summary, results)
  write_text(workdir / "summary.json", json.dumps(summary, indent=2) + "\n")
  write_text(workdir / "claims.json", json.dumps(verdicts, indent=2) + "\n")
  report.write(workdir, plain(config), summary, results, verdicts)
  return Outcome(summary, dict(failed))


def again(workdir: str | Path) -> Outcome:
  """Writes the conclusions of a kept study again, from its config.json, results.jsonl, search.json and timing.json.

  Nothing is trained or measured; what its summary.json says of the environment stays.

  Raises:
    UserError: the folder holds no results.
  """
  workdir = Path(workdir)
  results = records.read_results(workdir / "results.jsonl")
  kept = {name: _kept(workdir / f"{name}.json") for name in ("config", "search", "timing", "summary")}
  if kept["config"] is None:
    raise UserError(f"no file {workdir / 'config.json'}: a study keeps its config beside its results")
  before = kept["summary"] or {}
  given = (kept["timing"], before.get("failed", {}), kept["search"] or (), before.get("environment"))
  return conclude(ConfigDict(kept["config"]), workdir, results, *given)


def _kept(path: Path) -> Any:
  try:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
  except ValueError as error:
    raise UserError(f"{path} is no JSON: {error}") from None


def main(config: ConfigDict, workdir: str | Path, as_json: bool = False) -> int:
  """The verb `compare`: runs the study, prints its table or its summary as JSON, and returns the exit code."""
  outcome = run(config, workdir)
  if as_json:
    print(json.dumps(outcome.summary, allow_nan=False))
  else:
    table.show(outcome.summary)
  if outcome.summary["rows"]:
    say(f"report: {Path(workdir) / 'report.html'}")
  return outcome.exit_code


def say(line: str) -> None:
  """One line on stderr: stdout is for results."""
  print(line, file=sys.stderr, flush=True)


def _step_flops(config: ConfigDict) -> float:
  from peftjax.compare import runs  # imported late, as above

  return runs.step_flops(config)


def _check_rows(trials: Sequence[Trial], check: Check) -> None:
  """Finds a row that cannot be built before hours go into the others."""
  for trial in {trial.row: trial for trial in reversed(trials)}.values():
    try:
      check(trial.config)
    except UserError as error:
      raise UserError(f"compare.methods.{trial.row}: {error}") from None


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
  train_many: TrainMany,
  leases: Leases,
) -> dict[str, str]:
  """Trains what `done` lacks and notes it there and in ``results.jsonl``; run -> why one has no record."""
  failed: dict[str, str] = {}
  with leases.shared(in_groups(trials, config.compare.together), lambda group: f"train-{group[0].run}") as groups:
    for group in groups:
      done |= _finished(group, workdir)  # by another process
      failed |= _failed_elsewhere([trial for trial in group if trial.run not in done], workdir, leases)
      open_ = [trial for trial in group if trial.run not in done and trial.run not in failed]
      if not open_:
        continue
      seeds = ", ".join(str(trial.seed) for trial in open_)
      what = open_[0].row + (f" at {open_[0].size} examples" if open_[0].size else "")
      say(f"trial {len(done) + len(failed) + 1} of {len(trials)}: {what}, seed {seeds}")
      for trial, outcome in zip(open_, _train(open_, workdir, train_many)):
        if isinstance(outcome, Exception):  # one method's failure is a result of that method; the others go on
          if not done and _is_mistake(outcome):
            raise outcome
          failed[trial.run] = _keep_error(trial, workdir, outcome)
          say(f"failed: {trial.run}: {failed[trial.run]}")
        else:
          done[trial.run] = outcome
      done |= _finished(trials, workdir)
      records.write_results([done[one.run] for one in trials if one.run in done], workdir)
  return failed


def _train(trials: Sequence[Trial], workdir: Path, train_many: TrainMany) -> list[Record | Exception]:
  folders = [trial.folder(workdir) for trial in trials]
  made: list[Record | Exception] = []
  for trial, folder, summary in zip(trials, folders, train_many([trial.config for trial in trials], folders)):
    if isinstance(summary, Exception):
      made.append(summary)
      continue
    record = records.make(trial, summary, folder)
    records.keep(record, folder)
    (folder / "error.txt").unlink(missing_ok=True)
    made.append(record)
  return made


def _measure_dimensions(
  trials: Sequence[Trial],
  done: dict[str, Record],
  config: ConfigDict,
  workdir: Path,
  measure: Measure,
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
      trained = Trained(trial.config, folder, read_json(folder / "summary.json"), config.compare)
      for one in open_:
        try:
          found = measure(one, trained)
        except Exception as error:  # the trial's other results stand without it; the next start tries again
          failed[f"{trial.run}, {one.name}"] = _keep_error(trial, workdir, error)
          say(f"failed: {trial.run}, {one.name}: {failed[f'{trial.run}, {one.name}']}")
          continue
        record = record | {"dimensions": (record.get("dimensions") or {}) | {one.name: found}}
      records.keep(record, folder)
      done[trial.run] = record
      records.write_results([done[one.run] for one in trials if one.run in done], workdir)
  return failed


def _is_mistake(error: Exception) -> bool:
  """Whether an error is about the config or the data, as a first trial finds it, and not about how training went."""
  from peftjax.train.watch import Diverged

  return isinstance(error, UserError) and not isinstance(error, Diverged)


def _keep_error(trial: Trial, workdir: Path, error: Exception) -> str:
  write_text(trial.folder(workdir) / "error.txt", "".join(traceback.format_exception(error)))
  return _last_line(error)


def _last_line(error: Exception) -> str:
  if isinstance(error, UserError):
    return str(error)
  return traceback.format_exception_only(error)[-1].strip().splitlines()[0]


def _step_times(
  trials: Sequence[Trial],
  done: Mapping[str, Record],
  config: ConfigDict,
  workdir: Path,
  make_step: MakeStep,
) -> Mapping[str, Any] | None:
  """Times the finished rows' steps in turns, once: what an earlier start of the same study measured is kept."""
  first = {trial.row: trial for trial in reversed(trials) if trial.run in done}
  rows = {trial.row: first[trial.row] for trial in trials if trial.row in first}
  rows = {row: trial for row, trial in rows.items() if trial.config.method.name != budget.FROZEN}
  path = workdir / "timing.json"
  if path.is_file():
    kept = json.loads(path.read_text(encoding="utf-8"))
    if set(kept["rows"]) == set(rows):
      return kept
  if not config.compare.timing_rounds or not rows:
    return None
  say(f"timing the steps of {len(rows)} methods in turns")
  try:
    steps = {row: make_step(trial.config) for row, trial in rows.items()}
    times = timing.interleaved(steps, config.compare.reference, config.compare.timing_rounds)
  except Exception as error:  # such as no memory for all methods at once; the study's results stand without it
    say(f"steps were not timed in turns: {_last_line(error)}")
    return None
  write_text(path, json.dumps(times) + "\n")
  return times
