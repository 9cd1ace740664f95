"""MiniLM on 77 banking intents, 770 training questions.

peftjax compare --config=experiments/studies/banking77/config.py --workdir=runs/banking77
"""

from __future__ import annotations

from ml_collections import ConfigDict

from peftjax.config import default

LORA = {"name": "lora", "rank": 8, "alpha": 16.0}
# row -> fields of the method, peak learning rate in the middle of the search
METHODS = {
  "full": ({}, 4e-4),
  "head": ({}, 1e-1),
  "bitfit": ({}, 1e-2),
  "lora": (LORA, 4e-3),
  "ia3": ({}, 3e-2),
  "houlsby": ({"bottleneck_dim": 32}, 4e-3),
  # LoRA in five of the six layers, and the last one as it is, at a tenth of LoRA's rate
  "hybrid": ({"methods": ({**LORA, "layers": (0, 1, 2, 3, 4)}, {"name": "last_k", "k": 1})}, 4e-3),
}
# of the head beside a method: where the search begins, and what else it tries
HEAD_RATE = 1e-1
HEAD_RATES = (1e-2, 3e-1)


def get_config() -> ConfigDict:
  config = default()
  config.model.dropout = 0.0
  config.data.name = "packaged:banking77"
  config.data.train_examples = 770
  config.data.eval_examples = 300
  config.data.max_length = 16
  config.data.buckets = ()
  config.train.update({"batch_size": 16, "steps": 90, "eval_every": 30, "eval_first": True, "save_every": 0})
  config.train.update({"log_every": 10, "tensorboard": False, "final_splits": ("train", "validation")})
  config.compare.methods = ConfigDict({row: _row(row) for row in METHODS})
  config.compare.seeds = (0, 1, 2, 3, 4, 5)
  config.compare.together = 6
  config.compare.search.update({"seeds": (100,), "trials": 7})
  config.compare.dimensions = ("overfitting", "update", "inference", "switching")
  config.compare.timing_rounds = 12
  return config


def _row(name: str) -> dict:
  fields, rate = METHODS[name]
  row = {"method": {"name": name, **fields}, "optim": {"learning_rate": rate}}
  if name != "head":  # whose own rate it is
    row["optim"]["groups"] = {"head": {"learning_rate": HEAD_RATE}}
    if name == "hybrid":
      row["optim"]["groups"]["last_k"] = {"learning_rate_multiplier": 0.1}
    row["search"] = {"optim": {"groups": {"head": {"learning_rate": HEAD_RATES}}}}
  return row
