"""What the rules that judge claims share: the words of verdicts, and the rows and runs that they are about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftjax.compare.analysis import Summary

SUPPORTED, CONTRADICTED, INCONCLUSIVE = "supported", "contradicted", "inconclusive"
UNTESTABLE = "not testable here"
VERDICTS = (SUPPORTED, CONTRADICTED, INCONCLUSIVE, UNTESTABLE)

NOT_PEFT = ("full", "head", "last_k", "frozen")  # methods that are the reference or a baseline

Verdict = dict[str, Any]


def untestable(needs: str, reason: str = "this study does not measure it", **more: Any) -> Verdict:
  """The verdict of a claim whose measurement the study lacks; `needs` names the run that would have it."""
  return {"verdict": UNTESTABLE, "reason": reason, "needs": needs} | more


def peft(summary: Summary) -> list[dict[str, Any]]:
  """The rows of PEFT methods: no reference and no baseline."""
  return [row for row in summary["rows"] if (row["method"] or {}).get("name") not in NOT_PEFT]


def runs_of(*rows: Mapping[str, Any] | None) -> list[str]:
  """The ids of all runs of some rows."""
  return [run for row in rows if row for run in row["runs"]]


def reference(summary: Summary) -> dict[str, Any] | None:
  """The row of full fine-tuning, where it is what others were compared with."""
  rows = [row for row in summary["rows"] if row["row"] == summary["reference"]]
  return rows[0] if rows and (rows[0]["method"] or {}).get("name") == "full" else None
