"""A small BERT of molecules' strings (configs/molecules.py) learns logP from 1,000 of them.

The first three commands of configs/molecules.py make the pretrained model; then

    peftjax compare --config=experiments/studies/molecules/config.py --workdir=runs/study_molecules
"""

from __future__ import annotations

from ml_collections import ConfigDict

from peftjax.config import default

# row -> fields of the method, peak learning rate in the middle of the search
METHODS = {
  "full": ({}, 1e-3),
  "head": ({}, 3e-3),
  "bitfit": ({}, 1e-2),
  "lora": ({"rank": 8, "alpha": 16.0}, 3e-3),
  "ia3": ({}, 3e-2),
  "houlsby": ({"bottleneck_dim": 16}, 3e-3),
}
# of the head beside a method: where the search begins, and what else it tries
HEAD_RATE = 3e-3
HEAD_RATES = (1e-2,)


def get_config() -> ConfigDict:
  config = default()
  config.model.path = "runs/molecules/pretrained"
  config.model.dropout = 0.0
  config.data.name = "packaged:molecules"
  config.data.label_column = "logp"
  config.data.train_examples = 1000
  config.data.eval_examples = 200
  config.data.max_length = 48
  config.data.buckets = ()
  config.optim.weight_decay = 0.0
  config.train.update({"batch_size": 16, "eval_batch_size": 100, "steps": 250, "save_every": 0, "log_every": 10})
  config.train.update({"tensorboard": False, "final_splits": ("validation",)})
  config.compare.methods = ConfigDict({row: _row(row) for row in METHODS})
  config.compare.seeds = (0, 1, 2, 3, 4)
  config.compare.margin = 0.02
  config.compare.together = 5
  config.compare.search.update({"seeds": (100,), "trials": 6})
  config.compare.dimensions = ()
  config.compare.timing_rounds = 0
  return config


def _row(name: str) -> dict:
  fields, rate = METHODS[name]
  row = {"method": {"name": name, **fields}, "optim": {"learning_rate": rate}}
  if name != "head":  # whose own rate it is
    row["optim"]["groups"] = {"head": {"learning_rate": HEAD_RATE}}
    row["search"] = {"optim": {"groups": {"head": {"learning_rate": HEAD_RATES}}}}
  return row
