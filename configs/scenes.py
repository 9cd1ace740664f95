"""A small YOLOS, from nothing, on generated scenes of balls, cones and pyramids (`peftjax.data.sources.scenes`).

peftjax train --config=configs/scenes.py --workdir=runs/scenes

Steps and rate are guesses: no run of it has been recorded.
"""

from ml_collections import ConfigDict

from peftjax.config import default


def get_config() -> ConfigDict:
  config = default()
  config.model.path = "configs/yolos_mini"
  config.model.init = "random"
  config.data.name = "scenes:10000"
  config.input = ConfigDict({"name": "boxes", "size": 64, "flip": True})
  config.method.name = "full"
  config.optim.learning_rate = 1e-3
  config.train.batch_size = 64
  config.train.steps = 4000
  config.train.eval_batch_size = 100
  config.train.save_every = 500
  config.train.eval_every = 500
  config.train.log_every = 50
  config.train.final_splits = ("validation", "test")
  return config
