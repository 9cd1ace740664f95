"""DINOv2-S/14 on pictures of signed digits: 370 to train on, at 56 x 56 pixels.

peftjax compare --config=experiments/studies/sign_digits/config.py --workdir=runs/study_sign_digits
"""

from __future__ import annotations

from ml_collections import ConfigDict

from peftjax.config import default

# row -> fields of the method, peak learning rate in the middle of the search
METHODS = {
  "full": ({}, 3e-5),
  "head": ({}, 3e-3),
  "bitfit": ({}, 1e-3),
  "lora": ({"rank": 8, "alpha": 16.0}, 1e-3),
  "ia3": ({}, 1e-2),
  "houlsby": ({"bottleneck_dim": 32}, 1e-3),
  "prompt": ({"num_virtual_tokens": 10, "deep": True}, 1e-2),
}
HEAD_RATE = 1e-3  # of the head beside a method


def get_config() -> ConfigDict:
  config = default()
  config.model.path = "packaged:dinov2-small-focus"
  config.data.name = "packaged:sign_digits"
  config.input = ConfigDict({"name": "images", "size": 56})
  config.train.update({"batch_size": 16, "eval_batch_size": 50, "steps": 120, "save_every": 0, "log_every": 10})
  config.train.update({"tensorboard": False, "final_splits": ("validation",)})
  config.compare.methods = ConfigDict({row: _row(row) for row in METHODS})
  config.compare.seeds = (0, 1, 2, 3, 4)
  config.compare.together = 5
  config.compare.search.update({"seeds": (100,), "trials": 4})
  config.compare.dimensions = ("confusion",)
  config.compare.timing_rounds = 0
  return config


def _row(name: str) -> dict:
  fields, rate = METHODS[name]
  row = {"method": {"name": name, **fields}, "optim": {"learning_rate": rate}}
  if name != "head":  # whose own rate it is
    row["optim"]["groups"] = {"head": {"learning_rate": HEAD_RATE}}
  return row
