"""The comparison as a table: on the terminal, in Markdown, and in LaTeX."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from peftjax.compare import formatting as fmt
from peftjax.compare.analysis import MIDDLE, Row, Summary

STYLES = {"better": "green", "matches": "green", "worse": "red", "inconclusive": "yellow"}
LEFT = (0, 3)  # columns of words


def columns(summary: Summary) -> list[str]:
  """The headings, in the order of `cells`."""
  sign = " %" if summary.spec.share else ""
  reference = summary.reference or "reference"
  return [
    "method",
    f"{summary.split} {summary.metric}{sign} [95%]",
    f"to {reference} [95%]",
    "verdict",
    *([f"mean{sign}"] if summary.location == MIDDLE else []),
    "failed runs",
    "trainable",
    f"step (/ {reference})",
    f"FLOPs / {reference}",
    "gradients + optimizer",
    "adapter file",
  ]


def cells(row: Row, summary: Summary) -> list[str]:
  """One row of the table."""
  return [
    row.row,
    fmt.estimate(row, summary.spec),
    fmt.difference(row.difference, summary.spec),
    row.difference.verdict if row.difference else fmt.NONE,
    *([fmt.score_text(row.mean.estimate if row.mean else None, summary.spec)] if summary.location == MIDDLE else []),
    f"{row.failures.count} of {row.failures.started}" if row.failures else fmt.NONE,
    _with(fmt.short(row.parameters.trainable), fmt.percent(row.parameters.percent)),
    _with(fmt.seconds(row.step_seconds), f"{row.step_ratio.estimate:.2f}" if row.step_ratio else fmt.NONE),
    f"{row.flops_ratio:.2f}" if row.flops_ratio else fmt.NONE,
    fmt.size(row.bytes.gradients + row.bytes.optimizer),
    fmt.size(row.bytes.adapter_file),
  ]


def show(summary: Summary, console: Console | None = None) -> None:
  """Prints the table, what its words mean, and the trials that failed."""
  console = console or Console(width=None if sys.stdout.isatty() else 160)
  if summary.rows:
    everything = list(range(len(columns(summary))))
    parts = [everything] if console.width >= 140 else [everything[:4], [0, *everything[4:]]]
    for number, part in enumerate(parts):
      console.print(_table(summary, part, heading(summary) if number == 0 else ""))
    for note in notes(summary):
      console.print(note, style="dim", highlight=False)
  for run, error in summary.failed.items():
    console.print(f"failed: {run}: {error}", style="red", markup=False, highlight=False)


def _table(summary: Summary, part: list[int], title: str) -> Table:
  headings = columns(summary)
  table = Table(title=title or None, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
  for index in part:
    table.add_column(headings[index], justify="left" if index in LEFT else "right", overflow="fold")
  for row in summary.rows:
    texts = cells(row, summary)
    table.add_row(*(Text(texts[index], style=STYLES.get(texts[index], "")) for index in part))
  return table


def _with(text: str, extra: str) -> str:
  return text if extra == fmt.NONE else f"{text} ({extra})"


def heading(summary: Summary) -> str:
  """What was compared, on how much."""
  examples = f" × {fmt.whole(summary.examples)} {summary.split} examples" if summary.examples else ""
  return f"{len(summary.rows)} methods, {len(summary.seeds)} seeds{examples}"


def notes(summary: Summary) -> list[str]:
  """What a reader must know to read the table right."""
  margin = fmt.score_text(summary.margin, summary.spec) + fmt.unit(summary.spec)
  lines = [
    f"Intervals are 95%, over new seeds and new examples. 'matches': within ±{margin}.",
    "'better', 'worse': p < 0.05 after Holm's correction over the methods. 'inconclusive': this study cannot tell.",
  ]
  if summary.location == MIDDLE:
    lines.append(
      "Scores are interquartile means, of the middle half of the runs, and differences those of two such means: few "
      "failed runs do not move them. The mean of all runs and the failed ones stand beside."
    )
  if len(summary.seeds) == 1:
    lines.append("One seed: intervals speak of new examples only, and nothing can be concluded about the methods.")
  elif len(summary.seeds) < 5:
    lent = ", so the spread is taken from all methods together, or from its own where that is larger"
    lent = lent if summary.pooled_seeds else ": intervals are wide"
    lines.append(f"{len(summary.seeds)} seeds tell little about how much one method's runs differ{lent}.")
  lines += [
    f"{row.row} has {len(row.seeds)} of {len(summary.seeds)} seeds."
    for row in summary.rows
    if len(row.seeds) < len(summary.seeds)
  ]
  if any(row.step_seconds and not row.interleaved for row in summary.rows):
    lines.append("Step times are each run's own, taken at different moments: compare FLOPs instead.")
  return lines


def markdown_grid(headings: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] | None = None) -> str:
  """A table in Markdown; with `left` given, all other columns stand at the right."""
  rule = ["---" if left is None or index in left else "---:" for index in range(len(headings))]
  lines = ["| " + " | ".join(headings) + " |", "|" + "|".join(rule) + "|"]
  return "\n".join(lines + ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows])


def markdown(summary: Summary) -> str:
  """The table in Markdown, with its notes."""
  table = markdown_grid(columns(summary), [cells(row, summary) for row in summary.rows], LEFT)
  return table + "\n\n" + "\n\n".join(notes(summary)) + "\n"


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
    f"\\begin{{tabular}}{{{''.join('l' if number in LEFT else 'r' for number in range(len(headings)))}}}",
    "\\toprule",
    " & ".join(_escaped(one) for one in headings) + r" \\",
    "\\midrule",
    *(" & ".join(_escaped(cell) for cell in cells(row, summary)) + r" \\" for row in summary.rows),
    "\\bottomrule",
    "\\end{tabular}",
    f"\\caption{{{_escaped(heading(summary) + '. ' + ' '.join(notes(summary)))}}}",
    "\\end{table}",
  ]
  return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
  return "".join(_LATEX.get(one, one) for one in text)
