"""Whisper tiny.en's encoder on spoken digits: 320 recordings of four speakers, tested on two others, too.

peftjax compare --config=experiments/studies/spoken_digits/config.py --workdir=runs/study_spoken_digits
"""

from __future__ import annotations

from ml_collections import ConfigDict

from peftjax.config import default

# row -> fields of the method, peak learning rate in the middle of the search
METHODS = {
  "full": ({}, 1e-4),
  "head": ({}, 1e-2),
  "bitfit": ({}, 3e-3),
  "lora": ({"rank": 8, "alpha": 16.0}, 2e-3),
  "ia3": ({}, 2e-2),
  "houlsby": ({"bottleneck_dim": 32}, 2e-3),
  "prompt": ({"num_virtual_tokens": 10, "deep": True}, 3e-2),
}
HEAD_RATE = 1e-2  # of the head beside a method


def get_config() -> ConfigDict:
  config = default()
  config.model.path = "packaged:whisper-tiny.en"
  config.data.name = "packaged:spoken_digits"
  config.data.shifted = ("packaged:spoken_digits_unheard",)
  config.input = ConfigDict({"name": "audio", "seconds": 0.48})
  config.train.update({"batch_size": 16, "eval_batch_size": 50, "steps": 20, "save_every": 0, "log_every": 8})
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
