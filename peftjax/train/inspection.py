"""`peftjax inspect`: the table of leaves, from shapes alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from peftjax import masks
from peftjax.buffers import is_parameter
from peftjax.model import HEAD, Model
from peftjax.quantities import prefixed
from peftjax.quantize import kind_of, tree_bytes
from peftjax.train import assemble
from peftjax.wrap.table import rows_of


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One row of the table; a stack of layers is one leaf."""

  path: str
  shape: tuple[int, ...]
  dtype: str
  group: str
  pattern: str
  parameters: int
  bytes: int


def inspect(config: ConfigDict) -> dict[str, Any]:
  """Counts and leaves of the configured model; see `report`. "notes" are lines for the user."""
  setting = assemble.setting(config)
  return report(setting.model(abstract=True)) | {"notes": list(setting.notes)}


def report(model: Model) -> dict[str, Any]:
  """What trains, counted.

  Returns:
    `trainable`: all parameters that train; `adapter`: those the method adds or frees outside the head; `freed`: of
    these the base's own; `head`: the task's head where it trains; `total`: all parameters, added ones included;
    `percent`: 100 · trainable / total;
    `buffers`: values beside them that are no parameters, such as a method's drawn indices or batch statistics;
    `peft_total`: the total as Hugging Face PEFT counts it, which holds a second copy of every module it saves whole;
    `groups`: parameters by group; `bytes`: of their leaves, buffers included, with scales of quantised leaves;
    `leaves`: the rows; `sites`, of a model of the user's own: how its program uses each leaf.
  """
  groups = masks.flatten(model.labels())
  patterns = _patterns(model)
  leaves = []
  for path, leaf in masks.flatten(model.params).items():
    parameters = int(np.prod(leaf.shape, dtype=np.int64))
    pattern = patterns.get(path.rpartition(".")[0], "") if groups[path] != masks.FROZEN else ""
    size = tree_bytes(leaf)
    leaves.append(Leaf(path, tuple(leaf.shape), kind_of(leaf), groups[path], pattern, parameters, size))
  buffers, added = _buffers(model), model.adapter_paths()
  by_group: dict[str, int] = {}
  bytes_of: dict[str, int] = {}
  for row in leaves:
    bytes_of[row.group] = bytes_of.get(row.group, 0) + row.bytes
    if row.path not in buffers:
      by_group[row.group] = by_group.get(row.group, 0) + row.parameters
  total = sum(by_group.values())
  head = by_group.get(HEAD, 0)
  trainable = total - by_group.get(masks.FROZEN, 0)
  of_base = [row for row in leaves if row.group not in (masks.FROZEN, HEAD) and row.path not in buffers]
  freed = sum(row.parameters for row in of_base if row.path not in added)
  copies = (head if added else 0) + by_group.get("saved", 0)
  return {
    "trainable": trainable,
    "adapter": trainable - head,
    "freed": freed,
    "head": head,
    "total": total,
    "buffers": sum(row.parameters for row in leaves if row.path in buffers),
    "percent": 100.0 * trainable / total if total else 0.0,
    "peft_total": total + copies,
    "architecture": model.architecture,
    "methods": [method.name for method in model.methods],
    "groups": dict(sorted(by_group.items())),
    "bytes": dict(sorted(bytes_of.items())),
    "leaves": [dataclasses.asdict(row) for row in leaves],
    **({"sites": [dataclasses.asdict(row) for row in sites]} if (sites := rows_of(model)) else {}),
  }


def _buffers(model: Model) -> set[str]:
  names = {name for method in model.methods for name in method.buffer_names}
  added = {path for path in model.adapter_paths() if path.rpartition(".")[2] in names}
  return added | {path for path in masks.flatten(model.params) if not is_parameter(path)}


def _patterns(model: Model) -> dict[str, str]:
  """Tree path of a module -> the target pattern that chose it."""
  found = {}
  for one in model.bound:
    entries = masks.as_entries(getattr(one.method, "targets", ()))
    whole = isinstance(getattr(one.method, "targets", ()), str)
    for site in one.sites:
      hits = [entry for entry in entries if masks.matches(entry if whole else (entry,), site.names[0])]
      found[".".join(site.leaf_path)] = ", ".join(hits) or one.method.name
  return found


def show(result: dict[str, Any], console: Console) -> None:
  """Prints the table and the totals."""
  table = Table("leaf", "shape", "dtype", "group", "chosen by", box=None, header_style="bold", pad_edge=False)
  for row in result["leaves"]:
    style = "" if row["group"] == masks.FROZEN else "bold green"
    shape = "×".join(str(size) for size in row["shape"]) or "scalar"
    table.add_row(row["path"], shape, row["dtype"], row["group"], row["pattern"], style=style)
  console.print(table)
  for name, count in result["groups"].items():
    console.print(f"{name:>12} {count:>16,} {prefixed(result['bytes'][name], 'B'):>12}")
  freed = result["freed"]
  parts = {"adapter": result["adapter"] - freed, "of the base": freed, "head": result["head"]}
  named = ", ".join(f"{name} {count:,}" for name, count in parts.items() if count or name != "of the base")
  console.print(
    f"{'trainable':>12} {result['trainable']:>16,} of {result['total']:,} ({result['percent']:.4f} %): {named}"
  )
