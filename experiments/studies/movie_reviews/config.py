"""MiniLM on movie reviews with 32, 128 and 512 training sentences, and on tweets, product reviews and editorials.

peftjax compare --config=experiments/studies/movie_reviews/config.py --workdir=runs/movie_reviews

The argument `again` is the same at 512 sentences with sixteen runs of four seeds for every row's search, where the kept
study had seven of one:

peftjax compare --config=experiments/studies/movie_reviews/config.py:again --workdir=runs/movie_reviews_again
"""

from __future__ import annotations

from ml_collections import ConfigDict

from peftjax.config import default
from peftjax.errors import UserError, nearest

# row -> fields of the method, peak learning rate in the middle of the search
METHODS = {
  "full": ({}, 2e-4),
  "head": ({}, 3e-2),
  "bitfit": ({}, 8e-3),
  "lora": ({"rank": 8, "alpha": 16.0}, 2e-3),
  "ia3": ({}, 2e-2),
  "houlsby": ({"bottleneck_dim": 32}, 2e-3),
}
# of the head beside a method: where the search begins, and what else it tries
HEAD_RATE = 3e-2
HEAD_RATES = (5e-3, 2e-1)


STUDIES = ("kept", "again")


def get_config(study: str = "kept") -> ConfigDict:
  """`study`: kept or again."""
  if study not in STUDIES:
    raise UserError(f"--config=...:{study}; {nearest(study, STUDIES)}")
  config = default()
  config.model.dropout = 0.0
  config.data.name = "packaged:movie_reviews"
  config.data.shifted = ("packaged:reviews_tweets", "packaged:reviews_products", "packaged:reviews_editorials")
  config.data.eval_examples = 200
  config.data.max_length = 24
  config.data.buckets = ()
  config.train.update({"batch_size": 16, "steps": 96, "save_every": 0, "log_every": 8, "tensorboard": False})
  config.train.final_splits = ("train", "validation")
  config.compare.methods = ConfigDict({row: _row(row) for row in METHODS})
  config.compare.sizes = (32, 128, 512)
  config.compare.seeds = (0, 1, 2, 3, 4, 5)
  config.compare.search.update({"seeds": (100,), "trials": 7})
  config.compare.together = 6
  config.compare.dimensions = ("overfitting", "update", "memory", "inference", "switching", "energy")
  config.compare.timing_rounds = 12
  if study == "again":
    config.data.train_examples = 512
    config.compare.sizes = ()
    config.compare.search.update({"seeds": (100, 101, 102, 103), "trials": 4})
    config.compare.dimensions = ("overfitting",)
  return config


def _row(name: str) -> dict:
  fields, rate = METHODS[name]
  row = {"method": {"name": name, **fields}, "optim": {"learning_rate": rate}}
  if name != "head":  # whose own rate it is
    row["optim"]["groups"] = {"head": {"learning_rate": HEAD_RATE}}
    row["search"] = {"optim": {"groups": {"head": {"learning_rate": HEAD_RATES}}}}
  return row
