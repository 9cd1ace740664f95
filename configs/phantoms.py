r"""DINOv2-S/14 on generated radiographs of a phantom chest (`peftjax.data.sources.phantoms`): has a lung a nodule?

peftjax train --config=configs/phantoms.py:lora --workdir=runs/phantoms-lora

Rates are guesses: no run of it as it stands has been recorded. Of 400 radiographs at 70 x 70 pixels, 100 updates of 16,
at rates of 0.001, where the study in experiments/studies/phantoms begins, LoRA gave test accuracy .798 (seed 0):

    peftjax train --config=configs/phantoms.py:lora --workdir=runs/phantoms-small --config.data.name=phantoms:400 \
      --config.input.size=70 --config.train.epochs=0 --config.train.steps=100 --config.optim.learning_rate=1e-3 \
      --config.optim.groups.head.learning_rate=1e-3
"""

from __future__ import annotations

from ml_collections import ConfigDict

from peftjax.config import default
from peftjax.errors import UserError, nearest

# method -> fields of the method, peak learning rate, the head's peak learning rate
METHODS = {
  "full": ({}, 1e-4, 3e-3),
  "head": ({}, 1e-2, 1e-2),
  "lora": ({"rank": 8, "alpha": 16.0}, 2e-3, 3e-3),
  "ia3": ({}, 2e-2, 3e-3),
}


def get_config(method: str = "lora") -> ConfigDict:
  """`method`: full, head, lora or ia3."""
  if method not in METHODS:
    raise UserError(f"--config=...:{method}; {nearest(method, METHODS)}")
  config = default()
  config.model.path = "packaged:dinov2-small-focus"
  config.data.name = "phantoms:800"
  config.input = ConfigDict({"name": "images", "size": 98, "flip": True})
  config.train.update({"batch_size": 16, "epochs": 3.0, "save_every": 0, "tensorboard": False})
  config.train.final_splits = ("validation", "test")
  fields, rate, head_rate = METHODS[method]
  config.method = ConfigDict({"name": method, **fields})
  config.optim.learning_rate = rate
  config.optim.groups = ConfigDict({"head": {"learning_rate": head_rate}})
  return config
