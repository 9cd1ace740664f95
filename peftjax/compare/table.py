"""The comparison as a table: on the terminal, in Markdown, and in LaTeX."""

from __future__ import annotations

import sys
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from peftjax.compare import formatting as fmt
from peftjax.compare.analysis import Summary

STYLES = {"better": "green", "matches": "green", "worse": "red", "inconclusive": "yellow"}


def columns(summary: Summary) -> list[str]:
  """The headings, in the order of `cells`."""
  sign = " %" if fmt.is_share(summary["metric"]) else ""
  reference = summary["reference"] or "reference"
  return [
    "method",
    f"{summary['split']} {summary['metric']}{sign} [95%]",
    f"to {reference} [95%]",
    "verdict",
    "trainable",
    f"step (/ {reference})",
    f"FLOPs / {reference}",
    "gradients + optimizer",
    "adapter file",
  ]


def cells(row: dict[str, Any], summary: Summary) -> list[str]:
  """One row of the table."""
  metric, parameters, held = summary["metric"], row["parameters"] or {}, row["bytes"] or {}
  difference, ratio = row["difference"], row["step_ratio"]
  training = [held[key] for key in ("gradients", "optimizer") if held.get(key) is not None]
  return [
    row["row"],
    fmt.estimate(row, metric),
    fmt.difference(difference, metric),
    difference["verdict"] if difference else fmt.NONE,
    _with(fmt.short(parameters.get("trainable")), fmt.percent(parameters.get("percent"))),
    _with(fmt.seconds(row["step_seconds"]), f"{ratio['estimate']:.2f}" if ratio else fmt.NONE),
    f"{row['flops_ratio']:.2f}" if row["flops_ratio"] else fmt.NONE,
    fmt.size(sum(training)) if len(training) == 2 else fmt.NONE,
    fmt.size(held.get("adapter_file")),
  ]


def show(summary: Summary, console: Console | None = None) -> None:
  """Prints the table, what its words mean, and the trials that failed."""
  console = console or Console(width=None if sys.stdout.isatty() else 160)
  if summary["rows"]:
    everything = list(range(len(columns(summary))))
    parts = [everything] if console.width >= 140 else [everything[:4], [0, *everything[4:]]]
    for number, part in enumerate(parts):
      console.print(_table(summary, part, heading(summary) if number == 0 else ""))
    for note in notes(summary):
      console.print(note, style="dim", highlight=False)
  for run, error in summary["failed"].items():
    console.print(f"failed: {run}: {error}", style="red", markup=False, highlight=False)


def _table(summary: Summary, part: list[int], title: str) -> Table:
  headings = columns(summary)
  table = Table(title=title or None, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
  for index in part:
    table.add_column(headings[index], justify="left" if index in (0, 3) else "right", overflow="fold")
  for row in summary["rows"]:
    texts = cells(row, summary)
    table.add_row(*(Text(texts[index], style=STYLES.get(texts[index], "")) for index in part))
  return table


def _with(text: str, extra: str) -> str:
  return text if extra == fmt.NONE else f"{text} ({extra})"


def heading(summary: Summary) -> str:
  """What was compared, on how much."""
  examples = f" × {fmt.whole(summary['examples'])} test examples" if summary["examples"] else ""
  return f"{len(summary['rows'])} methods, {len(summary['seeds'])} seeds{examples}"


def notes(summary: Summary) -> list[str]:
  """What a reader must know to read the table right."""
  metric = summary["metric"]
  margin = fmt.score(summary["margin"], metric) + fmt.unit(metric)
  lines = [
    f"Intervals are 95%, over new seeds and new examples. 'matches': within ±{margin}.",
    "'better', 'worse': p < 0.05 after Holm's correction over the methods. 'inconclusive': this study cannot tell.",
  ]
  if len(summary["seeds"]) == 1:
    lines.append("One seed: intervals speak of new examples only, and nothing can be concluded about the methods.")
  elif len(summary["seeds"]) < 5:
    lent = ", so the spread is taken from all methods together, or from its own where that is larger"
    lent = lent if summary["pooled_seeds"] else ": intervals are wide"
    lines.append(f"{len(summary['seeds'])} seeds tell little about how much one method's runs differ{lent}.")
  lines += [
    f"{row['row']} has {len(row['seeds'])} of {len(summary['seeds'])} seeds."
    for row in summary["rows"]
    if len(row["seeds"]) < len(summary["seeds"])
  ]
  if any(row["step_seconds"] and not row["interleaved"] for row in summary["rows"]):
    lines.append("Step times are each run's own, taken at different moments: compare FLOPs instead.")
  return lines


def markdown(summary: Summary) -> str:
  """The table in Markdown, with its notes."""
  lines = ["| " + " | ".join(columns(summary)) + " |"]
  lines.append("|" + "|".join("---" if number in (0, 3) else "---:" for number in range(len(columns(summary)))) + "|")
  lines += ["| " + " | ".join(cells(row, summary)) + " |" for row in summary["rows"]]
  return "\n".join(lines) + "\n\n" + "\n\n".join(notes(summary)) + "\n"


_LATEX = {
  "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
  "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", fmt.MINUS: "$-$", "±": r"$\pm$", "×": r"$\times$", "–": "--",
  "<": "$<$", ">": "$>$",
}  # fmt: skip


def latex(summary: Summary) -> str:
  """The table as a ``table`` float for LaTeX with booktabs, its notes in the caption."""
  headings = columns(summary)
  lines = [
    "% \\usepackage{booktabs}",
    "\\begin{table}",
    "\\centering",
    f"\\begin{{tabular}}{{{''.join('l' if number in (0, 3) else 'r' for number in range(len(headings)))}}}",
    "\\toprule",
    " & ".join(_escaped(one) for one in headings) + r" \\",
    "\\midrule",
    *(" & ".join(_escaped(cell) for cell in cells(row, summary)) + r" \\" for row in summary["rows"]),
    "\\bottomrule",
    "\\end{tabular}",
    f"\\caption{{{_escaped(heading(summary) + '. ' + ' '.join(notes(summary)))}}}",
    "\\end{table}",
  ]
  return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
  return "".join(_LATEX.get(one, one) for one in text)
