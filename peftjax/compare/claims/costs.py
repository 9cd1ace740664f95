"""Rules for claims about cost: step time, energy, files, serving, and what a user has to set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from peftjax.compare import formatting as fmt
from peftjax.compare.analysis import Row, Summary
from peftjax.compare.claims.accuracy import of_the_time
from peftjax.compare.claims.verdict import (
  CONTRADICTED,
  REACHING,
  SUPPORTED,
  UNTESTABLE,
  Rule,
  Verdict,
  decided,
  reference,
  runs_of,
  untestable,
)
from peftjax.compare.records import Record
from peftjax.compare.trials import config_changes

LARGE = 1e9  # bytes of a base beside which a file of a few MB means something
FEW = 2e7  # bytes: "a few MB"
TASKS = 100  # that share one base
SWITCHING = "switching between adapters on one compiled model (compare.dimensions with 'switching')"


def time_30_50(summary: Summary, results: Sequence[Record]) -> Verdict:
  """A method takes 30 to 50% less time and loses no accuracy."""
  full = reference(summary)
  timed = [(row, ratio, row.difference.verdict) for row in summary.peft if (ratio := row.step_ratio) and row.difference]
  if full is None or not timed:
    return untestable("step times of full fine-tuning and PEFT rows taken in turns (compare.timing_rounds)")
  spans = [(row, ratio, word, ratio.ends or (ratio.estimate,) * 2) for row, ratio, word in timed]
  keep = [one for one in spans if one[3][0] <= 0.7 and one[3][1] >= 0.5 and one[2] in REACHING]
  lose = all(ends[0] > 0.7 or word == "worse" for _, _, word, ends in spans)
  row, ratio, _, ends = min(keep or spans, key=lambda one: one[1].estimate)
  return Verdict(
    verdict=decided(bool(keep), lose),
    effect=1 - ratio.estimate,
    interval=(1 - ends[1], 1 - ends[0]),
    unit=f"share of the step time saved, {row.row} against full",
    runs=runs_of(full, *(row for row, *_ in timed)),
    counts="one method whose step takes 30 to 50% less time, for as many steps, and that loses no accuracy",
    reason="; ".join(f"{row.row} {of_the_time(row)[2:]}, accuracy {word}" for row, _, word in timed),
  )


def energy(summary: Summary, results: Sequence[Record]) -> Verdict:
  """Every method's step has fewer FLOPs."""
  full = reference(summary)
  rows = sorted((row.flops_ratio, row.row) for row in summary.peft if row.flops_ratio is not None)
  if full is None or not rows:
    return untestable("FLOPs of a step for full fine-tuning and PEFT rows, or joules where the machine tells")
  ratio, name = rows[len(rows) // 2]
  return Verdict(
    verdict=decided(rows[-1][0] < 1, rows[0][0] >= 1),
    effect=ratio,
    unit=f"FLOPs of a step, {name} over full (the middle method); joules were not read",
    runs=runs_of(full, *(row for row in summary.peft if row.flops_ratio is not None)),
    counts="all methods, at the same number of steps",
    reason="FLOPs stand for energy: "
    + "; ".join(f"{row.row} {row.flops_ratio:.2f}" for row in summary.peft if row.flops_ratio is not None),
  )


def _filed(summary: Summary) -> list[tuple[float, Row]]:
  """(the file's size in percent of the base's, row) of PEFT methods, by size."""
  rows = [row for row in summary.peft if row.bytes.adapter_file]
  return sorted(((100 * row.bytes.adapter_file / row.bytes.weights, row) for row in rows), key=lambda one: one[0])


def file_share(summary: Summary, results: Sequence[Record]) -> Verdict:
  """A method's file is 0.01% of the base."""
  shares = _filed(summary)
  if not shares:
    return untestable("adapter files saved beside the size of the base")
  share, row = shares[0]
  listed = {one.row: fmt.percent(value) for value, one in shares}
  return Verdict(
    verdict=SUPPORTED if share <= 0.015 else CONTRADICTED,
    effect=share,
    unit=f"% of the base's bytes, {row.row}",
    runs=runs_of(*(row for row in summary.peft if row.row in listed)),
    counts="one method at 0.01%, rounded",
    reason="; ".join(f"{row.row} {listed[row.row]}" for row in summary.peft if row.row in listed),
  )


def file_megabytes(summary: Summary, results: Sequence[Record]) -> Verdict | None:
  """Every file is a few MB beside a base of GB; a small base says nothing of this claim."""
  rows = [row for _, row in _filed(summary) if row.bytes.weights >= LARGE]
  if not rows:
    return None
  most = max(row.bytes.adapter_file for row in rows)
  return Verdict(
    verdict=SUPPORTED if most < FEW else CONTRADICTED,
    effect=most / 1e6,
    unit="MB, the largest adapter file",
    runs=runs_of(*rows),
    counts="every file below 20 MB",
    reason="; ".join(f"{row.row} {fmt.size(row.bytes.adapter_file)}" for row in rows)
    + f". The base is {fmt.size(rows[0].bytes.weights)}",
  )


def many_adapters(summary: Summary, results: Sequence[Record]) -> Verdict:
  """One base with many adapters takes less than half of full models' bytes, and switching compiles nothing."""
  shares = _filed(summary)
  if not shares:
    return untestable(SWITCHING)
  row, apart = shares[0][1], TASKS * shares[0][1].bytes.weights
  together = row.bytes.weights + TASKS * row.bytes.adapter_file
  shown: dict[str, Any] = {"effect": together / apart, "unit": f"bytes for {TASKS} tasks over full models'"}
  reason = (
    f"{TASKS} tasks take {fmt.size(together)} as one base and adapters of {row.row}, {fmt.size(apart)} as full models; "
  )
  switched = switching(summary, results)
  if switched.verdict == UNTESTABLE:
    return untestable(SWITCHING, reason + "switching was not measured", **shown, runs=runs_of(row))
  return Verdict(
    verdict=SUPPORTED if switched.verdict == SUPPORTED and together < apart / 2 else CONTRADICTED,
    **shown,
    runs=tuple(dict.fromkeys((*row.runs, *switched.runs))),
    counts="less than half of full models' bytes, and no program is compiled while two adapters take turns",
    reason=reason + switched.reason,
  )


def _rows(summary: Summary, name: str) -> list[Mapping[str, Any]]:
  """What a dimension measured of PEFT methods' rows."""
  names = {row.row for row in summary.peft}
  return [one for one in (summary.dimensions.get(name) or {}).get("rows", ()) if one["row"] in names]


def switching(summary: Summary, results: Sequence[Record]) -> Verdict:
  """Two adapters take turns on one base, and nothing is compiled anew."""
  rows = _rows(summary, "switching")
  if not rows:
    return untestable(SWITCHING)
  compiled = sum(one["compilations"] for one in rows)
  listed = "; ".join(
    f"{one['row']} {fmt.seconds(one['switch_seconds'])} beside {fmt.seconds(one['forward_seconds'])} of a forward pass"
    for one in rows
  )
  return Verdict(
    verdict=CONTRADICTED if compiled else SUPPORTED,
    effect=float(np.median([one["switch_seconds"] for one in rows])),
    unit="seconds of a switch, the middle method",
    runs=tuple(one["run"] for one in rows),
    counts="no program is compiled while the adapters of two tasks take turns",
    reason=f"{compiled} programs compiled; {listed}",
  )


def inference(summary: Summary, results: Sequence[Record]) -> Verdict:
  """A method's forward pass has more FLOPs than the base's, as trained."""
  rows = [one for one in _rows(summary, "inference") if one["flops"]["unmerged"] is not None]
  if not rows:
    return untestable("FLOPs of a forward pass, merged and not (compare.dimensions with 'inference')")
  more = [one for one in rows if one["flops"]["unmerged"] > 1]
  stays = [one["row"] for one in more if one["flops"]["merged"] is None or one["flops"]["merged"] > 1]
  shown = max(rows, key=lambda one: one["flops"]["unmerged"])
  kept = f"merging takes it away in all but {fmt.names(stays)}" if stays else "merging takes it away"
  return Verdict(
    verdict=SUPPORTED if more else CONTRADICTED,
    effect=shown["flops"]["unmerged"],
    unit=f"FLOPs of a forward pass over the base's, {shown['row']} as trained",
    runs=tuple(one["run"] for one in rows),
    counts="one method with more FLOPs than the base",
    reason="; ".join(f"{one['row']} {one['flops']['unmerged']:.3f}" for one in rows) + f"; {kept}",
  )


def config_lines(summary: Summary, results: Sequence[Record]) -> Verdict:
  """Fields of the config that differ from full fine-tuning's: counted, but no verdict on complexity."""
  needs, full = "a study with people; lines of config are all that can be counted", reference(summary)
  configs = {record.row: {**record.config, "seed": 0} for record in reversed(results) if record.config}
  rows = [row for row in summary.peft if row.row in configs]
  if full is None or full.row not in configs or not rows:
    return untestable(needs)
  differ = {row.row: len(config_changes(configs[full.row], configs[row.row])) for row in rows}
  return untestable(
    needs,
    "fields of the config that differ from full fine-tuning's: " + "; ".join(f"{k} {n}" for k, n in differ.items()),
    effect=float(np.median(list(differ.values()))),
    unit="fields that differ, the middle method",
    runs=runs_of(full, *summary.peft),
  )


RULES: dict[str, Rule] = {
  "time-30-50": time_30_50,
  "less-energy": energy,
  "storage-0.01pct": file_share,
  "adapter-mb": file_megabytes,
  "single-base-many-adapters": many_adapters,
  "modular-switch": switching,
  "inference-complexity": inference,
  "peft-harder-to-debug": config_lines,
}
