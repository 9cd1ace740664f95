"""Rules for claims about what serves a tuned model: switching between tasks, and the cost of a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from peftjax.compare import formatting as fmt
from peftjax.compare.analysis import Summary
from peftjax.compare.records import Record
from peftjax.compare.verdicts import CONTRADICTED, SUPPORTED, Verdict, peft, untestable


def _rows(summary: Summary, name: str) -> list[Mapping[str, Any]]:
  """A dimension's rows of PEFT methods."""
  names = {row["row"] for row in peft(summary)}
  held = ((summary.get("dimensions") or {}).get(name) or {}).get("rows") or []
  return [one for one in held if one["row"] in names]


def modular_switch(summary: Summary, results: Sequence[Record]) -> Verdict:
  """Two adapters take turns on one base, and nothing is compiled anew."""
  rows = _rows(summary, "switching")
  if not rows:
    return untestable("switching between adapters on one compiled model (compare.dimensions with 'switching')")
  compiled = sum(one["compilations"] for one in rows)
  middle = float(np.median([one["switch_seconds"] for one in rows]))
  listed = "; ".join(
    f"{one['row']} {fmt.seconds(one['switch_seconds'])} beside {fmt.seconds(one['forward_seconds'])} of a forward pass"
    for one in rows
  )
  return {
    "verdict": SUPPORTED if not compiled else CONTRADICTED,
    "effect": middle,
    "unit": "seconds of a switch, the middle method",
    "runs": [one["run"] for one in rows],
    "counts": "no program is compiled while the adapters of two tasks take turns",
    "reason": f"{compiled} programs compiled; {listed}",
  }


def inference_complexity(summary: Summary, results: Sequence[Record]) -> Verdict:
  """A method's forward pass has more FLOPs than the base's, as trained."""
  rows = [one for one in _rows(summary, "inference") if one["flops"]["unmerged"] is not None]
  if not rows:
    return untestable("FLOPs of a forward pass, merged and not (compare.dimensions with 'inference')")
  more = [one for one in rows if one["flops"]["unmerged"] > 1]
  stays = [one["row"] for one in more if one["flops"]["merged"] is None or one["flops"]["merged"] > 1]
  shown = max(rows, key=lambda one: one["flops"]["unmerged"])
  listed = "; ".join(f"{one['row']} {one['flops']['unmerged']:.3f}" for one in rows)
  kept = f"merging takes it away in all but {fmt.names(stays)}" if stays else "merging takes it away"
  return {
    "verdict": SUPPORTED if more else CONTRADICTED,
    "effect": shown["flops"]["unmerged"],
    "unit": f"FLOPs of a forward pass over the base's, {shown['row']} as trained",
    "runs": [one["run"] for one in rows],
    "counts": "one method with more FLOPs than the base",
    "reason": f"{listed}; {kept}",
  }


SERVING: dict[str, Callable[[Summary, Sequence[Record]], Verdict]] = {
  "modular-switch": modular_switch,
  "inference-complexity": inference_complexity,
}
