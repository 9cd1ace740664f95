"""A small YOLOS, from nothing, on generated scenes of balls, cones and pyramids (`peftjax.data.sources.scenes`).

peftjax train --config=configs/scenes.py --workdir=runs/scenes

Gave, seed 0, 24,000 updates: test mAP .903 at an IoU of .50, .843 at .75, and .732 over .50 to .95, COCO's (validation
.901, .828, .728); 1.49 GFLOP an update.
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
  config.optim.schedule = "cosine"
  config.train.batch_size = 16
  config.train.steps = 24000
  config.train.eval_batch_size = 100
  config.train.save_every = 2000
  config.train.eval_every = 2000
  config.train.log_every = 200
  config.train.final_splits = ("validation", "test")
  return config
