"""A real `train` of MiniLM on movie reviews."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from peftjax import config as config_lib


def check(checks: Any, out: Path, model: str, data: str) -> None:
  """LoRA and full fine-tuning in bfloat16."""
  for name, rate in (("lora", 1e-3), ("full", 1e-4)):
    checks.attempt(f"train {name}", trained, name, rate, out, model, data)


def trained(name: str, rate: float, out: Path, model: str, data: str) -> Any:
  """Scores on the validation split, compilations, step times."""
  from peftjax.train.loop import train

  config = config_lib.default()
  if model:
    config.model.path = model
  config.data.name = data
  config.model.compute_dtype = "bfloat16"
  with config.unlocked():
    config.method = {"name": name} | ({"targets": "all-linear"} if name == "lora" else {})
  config.optim.learning_rate = rate
  config.data.update({"max_length": 64, "buckets": (32, 64)})
  config.train.update({"steps": 250, "batch_size": 32, "save_every": 0, "tensorboard": False})
  folder = out / f"train_{name}"
  shutil.rmtree(folder, ignore_errors=True)
  summary = train(config, folder)
  shutil.rmtree(folder, ignore_errors=True)
  scores = summary["metrics"]["validation"]
  figures = {name: summary[name] for name in ("step_seconds", "train", "devices")} | {"validation": scores}
  figures["compilations"] = len(summary["compiled"])
  return scores["accuracy"] > 0.68 and figures["compilations"] <= 2, figures
