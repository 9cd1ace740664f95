"""DINOv2-S/14 on generated radiographs of a phantom chest, with or without a nodule: 400 to train on.

peftjax compare --config=experiments/studies/phantoms/config.py --workdir=runs/study_phantoms

No run has been recorded.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from peftjax.config import default

# row -> fields of the method, peak learning rate in the middle of the search
METHODS = {
  "full": ({}, 3e-5),
  "head": ({}, 3e-3),
  "lora": ({"rank": 8, "alpha": 16.0}, 1e-3),
  "ia3": ({}, 1e-2),
}
HEAD_RATE = 1e-3  # of the head beside a method


def get_config() -> ConfigDict:
  config = default()
  config.model.path = "packaged:dinov2-small-focus"
  config.data.name = "phantoms:400"
  config.data.eval_examples = 200
  config.input = ConfigDict({"name": "images", "size": 70, "flip": True})
  config.train.update({"batch_size": 16, "eval_batch_size": 50, "steps": 100, "save_every": 0, "log_every": 10})
  config.train.update({"tensorboard": False, "final_splits": ("validation",)})
  config.compare.methods = ConfigDict({row: _row(row) for row in METHODS})
  config.compare.seeds = (0, 1, 2, 3, 4)
  config.compare.together = 5
  config.compare.search.update({"seeds": (100,), "trials": 3})
  config.compare.dimensions = ("confusion",)
  config.compare.timing_rounds = 0
  return config


def _row(name: str) -> dict:
  fields, rate = METHODS[name]
  row = {"method": {"name": name, **fields}, "optim": {"learning_rate": rate}}
  if name != "head":  # whose own rate it is
    row["optim"]["groups"] = {"head": {"learning_rate": HEAD_RATE}}
  return row
