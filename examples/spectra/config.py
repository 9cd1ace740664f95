"""Spectra, which the package knows nothing of, on a small encoder that starts from nothing.

peftjax train --config=examples/spectra/config.py --workdir=runs/spectra
Gave, in under a minute on two cores: test accuracy 1.000, loss 0.033, far 0.000.

peftjax compare --config=examples/spectra/config.py --workdir=runs/spectra_study
"""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from peftjax.config import default


def get_config() -> ConfigDict:
  """Full fine-tuning; the study sets LoRA beside it."""
  config = default()
  config.model.path = str(Path(__file__).parent / "model")
  config.model.init = "random"
  config.data.name = "spectra_source:spectra"
  config.task.name = "spectra_task:Kind"
  config.task.doubt = 0.05
  config.input.noise = 0.1
  config.method.name = "full"
  config.optim.learning_rate = 3e-3
  config.train.update({"batch_size": 24, "epochs": 40.0, "eval_batch_size": 24, "save_every": 20})
  config.train.final_splits = ("validation", "test")
  config.compare.methods = {"full": {}, "lora": {"optim": {"learning_rate": 1e-2}}}
  config.compare.baseline = ""
  config.compare.timing_rounds = 0
  return config
