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

from peftjax.compare import answer, claims, dimensions, table
from peftjax.compare import formatting as fmt
from peftjax.compare.analysis import Summary
from peftjax.compare.dimensions.base import Plot, Section
from peftjax.compare.drawing import plots
from peftjax.compare.drawing.svg import svg
from peftjax.compare.records import Record
from peftjax.compare.verdicts import VERDICTS
from peftjax.config import DEFAULT_DATA
from peftjax.files import write_text

PACKAGES = ("peftjax", "jax", "jaxlib", "flax", "optax", "numpy", "scipy", "matplotlib")


def write(
  workdir: Path,
  config: Mapping[str, Any],
  summary: Summary,
  results: Sequence[Record],
  verdicts: Sequence[Mapping[str, Any]],
) -> Path:
  """``D/report.html``, ``D/report.md`` and the table as ``D/report.tex``; the path of the first."""
  page = html(config, summary, results, verdicts)
  write_text(workdir / "report.md", markdown(config, summary, results, verdicts))
  write_text(workdir / "report.tex", table.latex(summary))
  write_text(workdir / "report.html", page)
  return workdir / "report.html"


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


def html(
  config: Mapping[str, Any], summary: Summary, results: Sequence[Record], verdicts: Sequence[Mapping[str, Any]]
) -> str:
  """The page."""
  loader = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
  template = loader.from_string(
    resources.files("peftjax.compare").joinpath("report.html.j2").read_text(encoding="utf-8")
  )
  main = [one for one in results if (one.get("size") or 0) == (summary.get("size") or 0)]
  drawn = {
    name: (markupsafe.Markup(wide), markupsafe.Markup(narrow))
    for name, (wide, narrow) in plots.all_plots(summary, main).items()
  }
  return template.render(
    title=_title(config),
    headline=answer.headline(summary),
    sentences=answer.sentences(summary),
    summary=summary,
    columns=table.columns(summary),
    cells=[table.cells(row, summary) for row in summary["rows"]],
    notes=table.notes(summary),
    heading=table.heading(summary),
    plots=drawn,
    timed=any(row["step_ratio"] for row in summary["rows"]),
    seeds=seed_table(summary, results),
    tests=test_table(summary),
    searches=search_table(summary),
    dimensions=[(name, one, _drawn(one)) for name, one in dimensions.sections(summary, results)],
    claims={
      "said": claims_said(verdicts),
      "measured": [dict(one) | {"shown": _effect(one)} for one in claims.measured(verdicts)],
    },
    environment=summary.get("environment") or environment(),
    config=json.dumps(config, indent=2, sort_keys=True),
    fmt=fmt,
  )


def markdown(
  config: Mapping[str, Any], summary: Summary, results: Sequence[Record], verdicts: Sequence[Mapping[str, Any]]
) -> str:
  """The same without plots."""
  columns, rows = seed_table(summary, results)
  around = dict(summary.get("environment") or environment())
  failed = [list(one) for one in summary["failed"].items()]
  judged = [
    [one["claim"], one["verdict"], _effect(one), one["reason"], fmt.runs(one["runs"])]
    for one in claims.measured(verdicts)
  ]
  parts = [
    f"# {_title(config)}",
    f"**{answer.headline(summary)}.** " + " ".join(answer.sentences(summary)),
    f"## The methods\n\n{table.heading(summary)}\n\n" + table.markdown(summary),
    *(["## Failed trials\n\n" + _grid(["run", "error"], failed)] if failed else []),
    *(_told(one) for _, one in dimensions.sections(summary, results)),
    "## All seeds\n\n" + _grid(columns, rows),
    *(["## The search\n\n" + _grid(*search_table(summary))] if summary["search"] else []),
    f"## Published claims\n\n{claims_said(verdicts)}\n\n"
    + _grid(["claim", "verdict", "effect", "reason", "runs"], judged),
    "## How to repeat it\n\n```\n"
    + around.pop("command")
    + "\n```\n\n"
    + "\n".join(f"- {name}: {value}" for name, value in around.items())
    + "\n\n```json\n"
    + json.dumps(config, indent=2, sort_keys=True)
    + "\n```",
  ]
  return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _told(section: Section) -> str:
  return f"## {section.heading}\n\n" + " ".join(section.sentences) + "\n\n" + _grid(section.columns, section.rows)


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
  metric, split = summary["metric"], summary["split"]
  others = sorted({name for record in results for name in record["metrics"].get(split, {})} - {metric})
  headings = ["run", f"{split} {metric}", *others, "steps", "learning rate", "step", "trained for", "config"]
  rows = []
  for record in results:
    scores = record["metrics"].get(split, {})
    rows.append(
      [
        record["run"],
        fmt.score(scores.get(metric), metric),
        *(fmt.score(scores.get(name), name) for name in others),
        fmt.whole(record.get("steps")),
        fmt.rate(record.get("learning_rate")),
        fmt.seconds(record.get("step_seconds")),
        fmt.seconds(record.get("train_seconds")),
        record.get("config_hash", fmt.NONE),
      ]
    )
  return headings, rows


def test_table(summary: Summary) -> tuple[list[str], list[list[str]]]:
  """Headings and one line a comparison, with every p-value."""
  metric = summary["metric"]
  headings = ["method", "against", "difference [95%]", "p", "p, Holm", "p, equivalence", "p, sign flips", "verdict"]
  rows = []
  for key in ("difference", "over_baseline"):
    for row in summary["rows"]:
      if one := row[key]:
        values = [_p(one[name]) for name in ("p", "p_holm", "p_equivalence", "p_sign_flip")]
        rows.append([row["row"], one["to"], fmt.difference(one, metric), *values, one["verdict"]])
  return headings, rows


def search_table(summary: Summary) -> tuple[list[str], list[list[str]]]:
  """Headings and one line a setting that the search tried; the chosen one is marked."""
  headings, rows = ["method", "learning rate", "other settings", "scores by seed", "mean", "chosen"], []
  metric = summary.get("metric", "accuracy")
  for one in summary["search"]:
    for tried in one["tried"]:
      chosen = tried["learning_rate"] == one["learning_rate"] and tried["knobs"] == one["knobs"]
      whole = None not in tried["scores"]
      rows.append(
        [
          one["row"],
          fmt.rate(tried["learning_rate"]),
          ", ".join(f"{name} {value}" for name, value in tried["knobs"].items()) or fmt.NONE,
          ", ".join("diverged" if score is None else fmt.score(score, metric) for score in tried["scores"]),
          fmt.score(sum(tried["scores"]) / len(tried["scores"]), metric) if whole else "diverged",
          ("yes" if one["interior"] else "yes, at the edge of what was tried") if chosen else "",
        ]
      )
  return headings, rows


def _title(config: Mapping[str, Any]) -> str:
  model = Path(str(config["model"]["path"]).removeprefix("packaged:")).name
  named = str(config["data"]["name"]) or DEFAULT_DATA
  data = Path(named.partition(":")[2] or named).stem
  return f"{model} on {data.replace('_', ' ')}: full fine-tuning or PEFT?"


def _effect(verdict: Mapping[str, Any]) -> str:
  if verdict["effect"] is None:
    return fmt.NONE
  in_points = verdict["unit"].startswith("points")
  text, *ends = [_figure(value, in_points) for value in (verdict["effect"], *(verdict["interval"] or ()))]
  if ends:
    text += f" [{', '.join(ends)}]"
  return f"{text} {verdict['unit']}"


def _figure(value: float, in_points: bool) -> str:
  if in_points:
    return fmt.signed(value / 100, "accuracy")
  return (fmt.whole(value) if abs(value) >= 1000 else f"{value:.3g}").replace("-", fmt.MINUS)


def claims_said(verdicts: Sequence[Mapping[str, Any]]) -> str:
  """How many of the published claims this study measured, and how they came out."""
  words = [one["verdict"] for one in claims.measured(verdicts)]
  tally = ", ".join(f"{words.count(word)} {word}" for word in VERDICTS if word in words)
  return (
    f"This study measured what {len(words)} of {len(verdicts)} published claims speak of: {tally or 'none'}. The "
    "others are in claims.json, with the run that would test them."
  )


def _p(value: float) -> str:
  return "< 0.0001" if value < 1e-4 else f"{value:.4f}" if value < 0.01 else f"{value:.2f}"


def _grid(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
  lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
  return "\n".join(lines)


def _cores() -> int:
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
