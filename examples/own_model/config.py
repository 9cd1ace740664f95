"""Behaviour cloning in a small grid world, with a policy of one's own."""

from __future__ import annotations

from ml_collections import ConfigDict

from peftjax.config import default


def get_config(method: str = "full") -> ConfigDict:
  """The policy of grid_model.py by one method; the study sets LoRA beside full fine-tuning."""
  config = default()
  config.model.path = "grid_model:make_model"
  config.data.name = "grid_source:walks"
  config.task.name = "grid_task:Cloning"
  config.method.name = method
  if method == "lora":
    config.method.update({"rank": 8, "alpha": 16.0, "targets": ("layers.*", "see")})
  config.optim.learning_rate = 1e-2 if method == "lora" else 2e-3
  config.train.update({"batch_size": 128, "epochs": 20.0, "eval_batch_size": 128, "save_every": 120})
  config.train.final_splits = ("validation", "test")
  config.compare.methods = {
    "full": {},
    "lora": {"rank": 8, "alpha": 16.0, "targets": ("layers.*", "see"), "optim": {"learning_rate": 1e-2}},
  }
  config.compare.baseline = ""
  config.compare.timing_rounds = 0
  return config
