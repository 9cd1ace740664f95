"""The study's report: one HTML file that needs nothing else, the same in Markdown, and its table in LaTeX.

What is in it follows from the summary and the records alone. The page holds its plots as SVG, its style and its data;
it loads nothing, works without scripts, follows the reader's light or dark setting, and fits phones and paper.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from peftjax.compare import claims, dimensions
from peftjax.compare import formatting as fmt
from peftjax.compare.analysis import Summary
from peftjax.compare.claims.verdict import VERDICTS, Verdict
from peftjax.compare.dimensions.base import Plot, Section
from peftjax.compare.drawing.svg import svg
from peftjax.compare.metrics import SHARE, spec_of
from peftjax.compare.records import Record
from peftjax.compare.report import answer, table
from peftjax.compare.report.basis import basis
from peftjax.compare.report.sections import costs, differences, learning, runs_section, search_section
from peftjax.config import DEFAULT_DATA
from peftjax.files import write_text

PACKAGES = ("peftjax", "jax", "jaxlib", "flax", "optax", "numpy", "scipy", "matplotlib")


def write(
  workdir: Path, config: Mapping[str, Any], summary: Summary, results: Sequence[Record], verdicts: Sequence[Verdict]
) -> None:
  """``D/report.html``, ``D/report.md`` and the table as ``D/report.tex``."""
  write_text(workdir / "report.md", markdown(config, summary, results, verdicts))
  write_text(workdir / "report.tex", table.latex(summary))
  write_text(workdir / "report.html", html(config, summary, results, verdicts))


def environment() -> dict[str, str]:
  """The command that runs now, the versions of what computes, and the machine."""
  versions = {}
  for package in PACKAGES:
    try:
      versions[package] = metadata.version(package)
    except metadata.PackageNotFoundError:
      versions[package] = "from source"
  program = Path(sys.argv[0])
  arguments = sys.argv[1:] if program.name == "peftjax" or program.parent.name == "peftjax" else []
  return {
    "command": shlex.join(["peftjax", *arguments]) if arguments else "peftjax compare --config=... --workdir=...",
    "python": platform.python_version(),
    **versions,
    "machine": f"{platform.system()} {platform.machine()}, {_cores()} cores",
  }


def html(config: Mapping[str, Any], summary: Summary, results: Sequence[Record], verdicts: Sequence[Verdict]) -> str:
  """``report.html``: one file with its style, its plots as SVG and its data."""
  loader = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
  template = resources.files("peftjax.compare.report").joinpath("page.html.j2").read_text(encoding="utf-8")
  main = [one for one in results if one.size == (summary.size or 0)]
  own = [("runs", runs_section(summary)), ("costs", costs(summary)), ("learning", learning(summary, main))]
  own += _dimensions(config, summary, results)
  return loader.from_string(template).render(
    title=_title(config),
    headline=answer.headline(summary),
    sentences=answer.sentences(summary),
    basis=basis(summary),
    summary=summary,
    lead=_drawn(differences(summary)),
    methods=(table.columns(summary), [table.cells(row, summary) for row in summary.rows]),
    notes=table.notes(summary),
    heading=table.heading(summary),
    sections=[
      (name, one, _drawn(one))
      for name, one in (*own, *([("search", search_section(summary))] if summary.search else []))
    ],
    claims_said=claims_said(verdicts),
    verdicts=[(one, _effect(one)) for one in claims.decided_here(verdicts)],
    seeds=seed_table(summary, results),
    tests=test_table(summary),
    environment=summary.environment or environment(),
    config=json.dumps(config, indent=2, sort_keys=True),
    fmt=fmt,
  )


def markdown(
  config: Mapping[str, Any], summary: Summary, results: Sequence[Record], verdicts: Sequence[Verdict]
) -> str:
  """The same without plots."""
  around = dict(summary.environment or environment())
  failed = [list(one) for one in summary.failed.items()]
  judged = [
    [one.claim, one.verdict, _effect(one), one.reason, fmt.runs(one.runs)] for one in claims.decided_here(verdicts)
  ]
  parts = [
    f"# {_title(config)}",
    f"**{answer.headline(summary)}.** " + " ".join(answer.sentences(summary)),
    "\n".join(f"- {name}: {said}" for name, said in basis(summary)),
    f"## The methods\n\n{table.heading(summary)}\n\n" + table.markdown(summary),
    *(["## Failed trials\n\n" + table.markdown_grid(["run", "error"], failed)] if failed else []),
    _told(runs_section(summary)),
    *(_told(one) for _, one in _dimensions(config, summary, results)),
    "## All seeds\n\n" + table.markdown_grid(*seed_table(summary, results)),
    *([_told(search_section(summary))] if summary.search else []),
    f"## Published claims\n\n{claims_said(verdicts)}\n\n"
    + table.markdown_grid(["claim", "verdict", "effect", "reason", "runs"], judged),
    "## How to repeat it\n\n```\n"
    + around.pop("command")
    + "\n```\n\n"
    + "\n".join(f"- {name}: {value}" for name, value in around.items())
    + "\n\n```json\n"
    + json.dumps(config, indent=2, sort_keys=True)
    + "\n```",
  ]
  return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _dimensions(config: Mapping[str, Any], summary: Summary, results: Sequence[Record]) -> list[tuple[str, Section]]:
  return dimensions.sections(summary, results, config.get("compare", {}).get("dimensions", ()))


def _told(section: Section) -> str:
  return (
    f"## {section.heading}\n\n"
    + " ".join(section.sentences)
    + "\n\n"
    + table.markdown_grid(section.columns, section.rows)
  )


def _drawn(section: Section) -> list[tuple[Plot, markupsafe.Markup, markupsafe.Markup]]:
  """The plots that have something to draw, each for a wide page and for a phone."""
  drawn = []
  for plot in section.plots:
    wide, narrow = plot.draw(False), plot.draw(True)
    if wide is not None and narrow is not None:
      pages = svg(wide, f"{plot.name}-wide", plot.title), svg(narrow, f"{plot.name}-phone", plot.title)
      drawn.append((plot, markupsafe.Markup(pages[0]), markupsafe.Markup(pages[1])))
  return drawn


def seed_table(summary: Summary, results: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
  """Headings and one line a trial, so that every average can be followed to its runs."""
  metric, split = summary.metric, summary.split
  others = sorted({name for record in results for name in record.metrics.get(split, {})} - {metric})
  headings = ["run", f"{split} {metric}", *others, "steps", "learning rate", "step", "trained for", "config"]
  rows = [
    [
      record.run,
      *(fmt.score_text(record.score(split, name), spec_of(name, summary.metrics_spec)) for name in (metric, *others)),
      fmt.whole(record.steps),
      fmt.rate(record.learning_rate),
      fmt.seconds(record.step_seconds),
      fmt.seconds(record.train_seconds),
      record.config_hash or fmt.NONE,
    ]
    for record in results
  ]
  return headings, rows


def test_table(summary: Summary) -> tuple[list[str], list[list[str]]]:
  """Headings and one line a comparison, with every p-value."""
  headings = ["method", "against", "difference [95%]", "p", "p, Holm", "p, equivalence", "p, sign flips", "verdict"]
  found = [(row.row, one) for row in summary.rows if (one := row.difference)]
  found += [(row.row, one) for row in summary.rows if (one := row.over_baseline)]
  rows = []
  for name, one in found:
    values = [_p(value) for value in (one.p, one.p_holm, one.p_equivalence, one.p_sign_flip)]
    rows.append([name, one.to, fmt.difference(one, summary.spec), *values, one.verdict])
  return headings, rows


def claims_said(verdicts: Sequence[Verdict]) -> str:
  """How many of the published claims this study measured, and how they came out."""
  words = [one.verdict for one in claims.decided_here(verdicts)]
  tally = ", ".join(f"{words.count(word)} {word}" for word in VERDICTS if word in words)
  return (
    f"This study measured what {len(words)} of {len(verdicts)} published claims speak of: {tally or 'none'}. The "
    "others are in claims.json, with the run that would test them."
  )


def _title(config: Mapping[str, Any]) -> str:
  model = Path(str(config["model"]["path"]).removeprefix("packaged:")).name
  named = str(config["data"]["name"]) or DEFAULT_DATA
  data = Path(named.partition(":")[2] or named).stem
  return f"{model} on {data.replace('_', ' ')}: full fine-tuning or PEFT?"


def _effect(verdict: Verdict) -> str:
  if verdict.effect is None:
    return fmt.NONE
  show = _points if verdict.unit.startswith("points") else _figure
  ends = f" [{', '.join(show(end) for end in verdict.interval)}]" if verdict.interval else ""
  return f"{show(verdict.effect)}{ends} {verdict.unit}"


def _points(value: float) -> str:
  return fmt.signed(value / 100, SHARE)


def _figure(value: float) -> str:
  return (fmt.whole(value) if abs(value) >= 1000 else f"{value:.3g}").replace("-", fmt.MINUS)


def _p(value: float) -> str:
  return "< 0.0001" if value < 1e-4 else f"{value:.4f}" if value < 0.01 else f"{value:.2f}"


def _cores() -> int:
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
