"""`peftjax runs`: the runs and studies below a folder, as a table, and their curves as a picture."""

from __future__ import annotations

import fnmatch
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from peftjax import outputs
from peftjax.errors import UserError, nearest
from peftjax.files import read_json, write_bytes
from peftjax.train import folder as folder_lib
from peftjax.train.rows import read_rows

Row = dict[str, Any]
CURVES = 12  # lines that one picture can tell apart
_DRAWN = "peftjax runs --plot"  # stands in the file, which may be drawn anew


def found(root: str | Path, pattern: str = "") -> list[Row]:
  """What lies below a folder, by name.

  Args:
    pattern: FIELD=GLOB to keep rows of, such as "method=lora", "run=lr*" or "state=finished"; a bare glob is of "run".

  Returns:
    Of a run {"run", "kind": "run", "state", "method", "data", "seed", "learning_rate", "step", "loss", "metric",
    "scores": {split: value}, "trainable"}, None where it is not known yet; of a study {"run", "kind": "study", "state",
    "report", "methods"}. Trials of a study are runs.

  Raises:
    UserError: there is no such folder, or the pattern names no field.
  """
  root = Path(root)
  if not root.is_dir():
    raise UserError(f"peftjax runs: no folder {str(root)!r}")
  field, equals, glob = pattern.partition("=")
  field, glob = (field, glob) if equals else ("run", field or "*")
  rows = []
  for place, folders, files in os.walk(root):
    folders[:] = sorted(one for one in folders if one not in ("checkpoints", "tensorboard") and one[:1] != ".")
    if folder_lib.CONFIG in files and (row := _row(Path(place), root)) is not None:
      rows.append(row)
  known = dict.fromkeys(name for row in rows for name in row)
  if rows and field not in known:
    raise UserError(f"peftjax runs: no field {field!r} to filter by; {nearest(field, known)}")
  return [row for row in rows if fnmatch.fnmatch(str(row.get(field, "")), glob)]


def _row(folder: Path, root: Path) -> Row | None:
  """A run's or a study's; None of a folder that is neither, such as a model's."""
  name = str(folder.relative_to(root)) if folder != root else folder.resolve().name
  try:
    config = read_json(folder / folder_lib.CONFIG)
  except UserError:
    return None
  if "compare" in config and "resolved" not in config and isinstance(config["compare"], Mapping):
    report = folder / "report.html"
    done = {"report": str(report)} if report.is_file() else {}
    rows = config["compare"].get("rows") or config["compare"].get("methods", {})
    return {"run": name, "kind": "study", "state": "finished" if done else "under way",
            "methods": list(rows), **done}  # fmt: skip
  if "resolved" not in config or not isinstance(config.get("method"), Mapping):
    return None
  try:
    return _of_run(name, folder, config)
  except UserError as error:
    return {"run": name, "kind": "run", "state": f"damaged: {error}"}


def _of_run(name: str, folder: Path, config: Mapping[str, Any]) -> Row:
  finished = (folder / folder_lib.SUMMARY).is_file()
  summary = folder_lib.read_summary(folder) if finished else {}
  rows = read_rows(folder / "metrics.jsonl")
  train = [row for row in rows if "split" not in row]
  rates = summary.get("learning_rates") or {}
  main = summary.get("main_metric", "")
  scores = {split: values.get(main) for split, values in summary.get("metrics", {}).items()}
  total = config["resolved"].get("total_steps")
  step = summary.get("step", train[-1]["step"] if train else 0)
  return {
    "run": name,
    "kind": "run",
    "state": "finished" if finished else f"stopped or under way at {step} of {total}",
    "method": str(config["method"].get("name", "")),
    "data": str(config.get("data", {}).get("name", "")),
    "seed": config.get("seed"),
    "learning_rate": rates.get("adapter", next(iter(rates.values()), None)),
    "step": step,
    "loss": train[-1].get("loss") if train else None,
    "metric": main,
    "scores": scores,
    "trainable": summary.get("parameters", {}).get("trainable"),
  }


def show(rows: Sequence[Row], console: Console) -> None:
  """The runs as a table, the studies with their reports under it."""
  runs = [row for row in rows if row["kind"] == "run"]
  splits = list(dict.fromkeys(split for row in runs for split in row.get("scores", {})))
  if runs:
    table = Table("run", "state", "method", "data", "seed", "rate", "trainable", "loss", "metric", *splits, box=None,
                  header_style="bold")  # fmt: skip
    for row in runs:
      scores = [row.get("scores", {}).get(split) for split in splits]
      table.add_row(
        *(str(row.get(name, "")) for name in ("run", "state", "method", "data", "seed")),
        _number(row.get("learning_rate"), ".3g"), _number(row.get("trainable"), ","), _number(row.get("loss"), ".4f"),
        str(row.get("metric", "")), *(_number(score, ".4f") for score in scores),
      )  # fmt: skip
    console.print(table)
  for row in rows:
    if row["kind"] == "study":
      console.print(f"study {row['run']}, {row['state']}: {', '.join(row['methods'])} {row.get('report', '')}".rstrip())
  if not rows:
    console.print("no run here; a run's folder holds config.json and metrics.jsonl")


def _number(value: Any, form: str) -> str:
  return format(value, form) if isinstance(value, int | float) and not isinstance(value, bool) else ""


def plot(rows: Sequence[Row], root: str | Path, out: str | Path) -> Path:
  """Draws the training loss and the main metric of runs along their updates, as .png, .svg or .pdf.

  Args:
    rows: as `found` gives them.
    root: the folder that they were found below.

  Raises:
    UserError: the ending is of no picture, no run has logged anything, or there is a file that this did not draw.
  """
  from matplotlib.figure import Figure  # slow to import

  out, root = Path(out), Path(root)
  if out.suffix not in (".png", ".svg", ".pdf"):
    raise UserError(f"peftjax runs --plot={out}: expected a name that ends with .png, .svg or .pdf")
  outputs.check_own(
    out.parent,
    (out.name,),
    "move it, or choose another name",
    whose="plot of `peftjax runs`",
    kind="plot",  # which is no part of a folder's list
    is_own=lambda path: path.is_file() and _DRAWN.encode() in path.read_bytes(),
  )
  runs = [row["run"] for row in rows if row["kind"] == "run"]
  curves = {name: read_rows((root / name if (root / name).is_dir() else root) / "metrics.jsonl") for name in runs}
  curves = {name: found for name, found in curves.items() if found}
  if not curves:
    raise UserError(f"peftjax runs --plot: no run below {root} has logged anything yet")
  if len(curves) > CURVES:
    raise UserError(f"peftjax runs --plot: {len(curves)} runs; choose {CURVES} or fewer by --filter")
  figure = Figure(figsize=(10, 4), layout="constrained")
  loss, score = figure.subplots(1, 2)
  for name, found in curves.items():
    points = [(row["step"], row["loss"]) for row in found if "split" not in row and row.get("loss") is not None]
    loss.plot(*zip(*points), label=name, linewidth=1.2) if points else None
    main = next((row["metric"] for row in rows if row["run"] == name and row.get("metric")), "loss") or "loss"
    rows_of = [row for row in found if "split" in row and not row.get("final")]
    for split in dict.fromkeys(row["split"] for row in rows_of):
      points = [(row["step"], row[main]) for row in rows_of if row["split"] == split and row.get(main) is not None]
      label = f"{name}, {split} {main}"
      score.plot(*zip(*points), marker="o", markersize=3, linewidth=1, label=label) if points else None
  loss.set(xlabel="update", ylabel="training loss")
  score.set(xlabel="update", ylabel="evaluations")
  for axes in (loss, score):
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
      axes.legend(fontsize=7, frameon=False)
  content = io.BytesIO()
  field = "Software" if out.suffix == ".png" else "Creator"
  figure.savefig(content, format=out.suffix[1:], dpi=150, metadata={field: _DRAWN})
  write_bytes(out, content.getvalue())
  return out
