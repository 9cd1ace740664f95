"""MiniLM on movie reviews with 32, 128 and 512 training sentences, and on tweets, product reviews and editorials.

peftjax compare --config=experiments/studies/movie_reviews/config.py --workdir=runs/movie_reviews
"""

from __future__ import annotations

from ml_collections import ConfigDict

from peftjax.config import default

# row -> fields of the method, peak learning rate in the middle of the search, the head's
METHODS = {
  "full": ({}, 2e-4, 5e-3),
  "head": ({}, 3e-2, 3e-2),
  "bitfit": ({}, 8e-3, 5e-3),
  "lora": ({"rank": 8, "alpha": 16.0}, 2e-3, 5e-3),
  "ia3": ({}, 2e-2, 5e-3),
  "houlsby": ({"bottleneck_dim": 32}, 2e-3, 5e-3),
}


def get_config() -> ConfigDict:
  config = default()
  config.model.dropout = 0.0
  config.data.name = "packaged:movie_reviews"
  config.data.shifted = ("packaged:reviews_tweets", "packaged:reviews_products", "packaged:reviews_editorials")
  config.data.eval_examples = 200
  config.data.max_length = 24
  config.data.buckets = ()
  config.train.update({"batch_size": 16, "steps": 48, "save_every": 0, "log_every": 5, "tensorboard": False})
  config.train.final_splits = ("train", "validation")
  config.compare.methods = ConfigDict(
    {
      row: {
        "method": {"name": row, **fields},
        "optim": {"learning_rate": rate, "groups": {"head": {"learning_rate": head_rate}} if row != "head" else {}},
      }
      for row, (fields, rate, head_rate) in METHODS.items()
    }
  )
  config.compare.sizes = (32, 128, 512)
  config.compare.seeds = (0, 1, 2, 3, 4, 5)
  config.compare.search.update({"seeds": (100,), "trials": 5})
  config.compare.together = 6
  config.compare.dimensions = ("overfitting", "update", "memory", "inference", "switching")
  config.compare.timing_rounds = 12
  return config
