"""A budget of FLOPs in place of a number of updates: each row trains for as many updates as it can pay."""

from __future__ import annotations

import copy
import json
from pathlib import Path

from ml_collections import ConfigDict

from peftjax.compare.trainer import Trainer
from peftjax.compare.trials import fingerprint, is_frozen, plain_config, row_config, rows_of
from peftjax.errors import UserError
from peftjax.files import read_json, write_text
from peftjax.kinds import SETTINGS, number, value_of


def within_budget(config: ConfigDict, workdir: Path, trainer: Trainer) -> ConfigDict:
  """The study's config with ``train.steps`` of every row set to what `compare.budget_flops` pays for.

  ``D/budget.json`` keeps the FLOPs of each row's update, so that a study that goes on does not trace its steps again.

  Raises:
    UserError: a budget that some row cannot pay one update with, or a row with its own `train.steps`.
  """
  budget = float(config.compare.get("budget_flops", 0.0))
  if not budget:
    return config
  changed, path, rows = copy.deepcopy(config), workdir / "budget.json", rows_of(config)
  kept = value_of(str(path), "rows", read_json(path).get("rows"), SETTINGS) if path.is_file() else {}
  found = {}
  for row, overrides in rows.items():
    one = row_config(config, row, overrides, config.compare.seeds[0])
    if is_frozen(one):
      continue
    if (overrides.get("train") or {}).get("steps"):
      raise UserError(f"compare.methods.{row}.train.steps: compare.budget_flops decides the updates; leave one out")
    known, content = value_of(str(path), row, kept.get(row, {}), SETTINGS), fingerprint(plain_config(one))
    if known.get("config_hash") == content:
      flops = value_of(str(path), f"{row}.flops_per_step", known.get("flops_per_step"), number(above=0.0))
    else:
      flops = float(trainer.step_flops(one))
    steps = int(budget // flops)
    if steps < 1:
      raise UserError(f"compare.budget_flops={budget:.3g}: one update of {row} takes {flops:.3g}")
    found[row] = {"flops_per_step": flops, "steps": steps, "config_hash": content}
    rows[row] = {**overrides, "train": {**(overrides.get("train") or {}), "steps": steps}}
  with changed.unlocked():
    changed.compare.methods = ConfigDict(rows)
  write_text(path, json.dumps({"budget_flops": budget, "rows": found}, indent=2) + "\n")
  return changed
