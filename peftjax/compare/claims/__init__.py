"""Published claims about full fine-tuning and PEFT, each held against what this study measured.

A claim is judged only where the study holds the measurement that it needs; otherwise its verdict is "not testable
here" and `needs` names the run that would test it. A claim about "PEFT" as a whole says that it *can* do something, so
accuracy claims are supported by one method that does, and contradicted when every method does not; claims about cost
speak of all methods. `counts` tells which reading was taken. Claims about counts and bytes of published models, which
no study changes, have the verdicts of docs/published_figures.md, and `page` names it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

from peftjax.compare.analysis import Summary
from peftjax.compare.claims import accuracy, costs, learning
from peftjax.compare.claims.verdict import UNTESTABLE, Rule, Verdict, untestable
from peftjax.compare.records import Record

PAGE = "docs/published_figures.md"

RULES: dict[str, Rule] = {**accuracy.RULES, **costs.RULES, **learning.RULES}

NEEDS = {
  "pet-performance-gap": "a study on a hard generation task, scored by what the model writes (task.generate)",
  "soft-beats-hard-prompt": "a row of the frozen model with a written prompt beside prompt tuning",
}


def published_claims() -> list[dict[str, str]]:
  """The claims: id, claim, dimension, measure."""
  claims: list[dict[str, str]] = _kept("claims.json")
  return claims


def _kept(name: str) -> Any:
  return json.loads(resources.files(__name__).joinpath(name).read_text(encoding="utf-8"))


def judge(summary: Summary, results: Sequence[Record]) -> list[Verdict]:
  """A verdict on every published claim."""
  verdicts, figures = [], _kept("published_figures.json")
  for claim in published_claims():
    rule, name = RULES.get(claim["id"]), claim["id"]
    found = rule(summary, results) if rule else None
    if found is None and name in figures:
      found = Verdict.from_json(figures[name] | {"page": PAGE})
    said = vars(found or untestable(NEEDS[name]))
    verdicts.append(Verdict(**{**said, **claim}))
  return verdicts


def decided_here(verdicts: Sequence[Verdict]) -> list[Verdict]:
  """Those that this study decided: neither from published figures nor without a measurement."""
  return [one for one in verdicts if not one.page and one.verdict != UNTESTABLE]
