"""What the command line shows of a run that has ended: scores, counts and files, in a short table."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from peftjax.train import folder as folder_lib
from peftjax.train.hint import export_form, trust_flag


def show(summary: Mapping[str, Any], workdir: str | Path, console: Console) -> None:
  """A run's `summarize`, and what can be done with the run."""
  counts = summary["parameters"]
  rates = ", ".join(f"{group} {rate:.2g}" for group, rate in summary.get("learning_rates", {}).items())
  seconds = summary.get("step_seconds")
  lines = {
    "method": f"{summary['method']}, task {summary['task']}",
    "trained": f"{counts['trainable']:,} of {counts['total']:,} parameters ({counts['percent']:.3g} %)",
    "updates": f"{summary['step']:,}" + (f", {1000 * seconds:,.0f} ms each" if seconds else ""),
    "learning rates": rates,
    "best": _best(summary),
    "training loss": _number(summary["train"]["loss"]) if "loss" in summary["train"] else "",
  }
  for name, text in lines.items():
    if text:
      console.print(f"{name:<15} {text}", highlight=False, markup=False)
  if summary["metrics"]:
    show_scores(summary["metrics"], console)
  config, resolved = folder_lib.read_config(Path(workdir))
  trust, form = trust_flag(config), export_form(summary, config)
  console.print(
    f"In {workdir}: summary.json, metrics.jsonl, predictions. Next: peftjax predict --workdir={workdir} "
    f"{_new_example(resolved.fields)}{trust}, peftjax export --workdir={workdir} --format={form} --out=FOLDER{trust}",
    highlight=False,
    markup=False,
  )


def _best(summary: Mapping[str, Any]) -> str:
  best = summary.get("best")
  if not best:
    return ""
  scored = "; it is what the scores are of" if summary.get("result_step") == best["step"] else ""
  return f"step {best['step']}: {best['split']} {best['metric']} {best['value']:.4f}{scored}; ended: {summary['ended']}"


def show_scores(metrics: Mapping[str, Mapping[str, float]], console: Console) -> None:
  """A row for each split, a column for each metric."""
  names = list(dict.fromkeys(name for values in metrics.values() for name in values))
  table = Table("split", *names, box=None, header_style="bold", pad_edge=False)
  for split, values in metrics.items():
    table.add_row(split, *(_number(values[name]) if name in values else "" for name in names))
  console.print(table)


def _number(value: Any) -> str:
  """Files hold null in place of a number that is not finite."""
  return f"{value:.4f}" if isinstance(value, int | float) and math.isfinite(value) else "not finite"


def _new_example(fields: Collection[str]) -> str:
  """How `predict` is given an example of such fields.

  >>> _new_example(("text", "label")), _new_example(("image", "label")), _new_example(("spectrum", "label"))
  ('--text=...', '--file=PICTURE', '--file=ROWS.jsonl')
  """
  if {"image", "audio"} & set(fields):
    return "--file=PICTURE" if "image" in fields else "--file=RECORDING"
  return "--text=..." if {"text", "tokens", "source", "messages"} & set(fields) else "--file=ROWS.jsonl"
