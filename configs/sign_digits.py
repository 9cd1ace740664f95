"""DINOv2-S/14 on pictures of signed digits by one method: 370 pictures to train on, at 98 x 98 pixels.

peftjax train --config=configs/sign_digits.py:lora --workdir=runs/sign_digits-lora

Gave, seed 0, 96 updates (150 test pictures: one of them is 0.7 points):
lora: test accuracy .920, macro F1 .920 (validation .925), 143 GFLOP an update.
ia3: test accuracy .913, macro F1 .913 (validation .975), 142 GFLOP an update.
head: test accuracy .753, macro F1 .755 (validation .713), 70 GFLOP an update.
The rates of the other rows are guesses that no run has confirmed.
"""

from ml_collections import ConfigDict

from peftjax.config import default

# method -> fields of the method, peak learning rate, the head's peak learning rate
METHODS = {
  "full": ({}, 1e-4, 3e-3),
  "head": ({}, 1e-2, 1e-2),
  "bitfit": ({}, 3e-3, 3e-3),
  "lora": ({"rank": 8, "alpha": 16.0}, 2e-3, 3e-3),
  "ia3": ({}, 2e-2, 3e-3),
  "houlsby": ({"bottleneck_dim": 32}, 2e-3, 3e-3),
  "prompt": ({"num_virtual_tokens": 10, "deep": True}, 3e-2, 3e-3),
}


def get_config(method: str = "lora") -> ConfigDict:
  config = default()
  config.model.path = "packaged:dinov2-small-focus"
  config.data.name = "packaged:sign_digits"
  config.input = ConfigDict({"name": "images", "size": 98})
  config.train.epochs = 8.0
  config.train.save_every = 0
  config.train.final_splits = ("validation", "test")
  fields, rate, head_rate = METHODS[method]
  config.method = ConfigDict({"name": method, **fields})
  config.optim.learning_rate = rate
  config.optim.groups = ConfigDict({"head": {"learning_rate": head_rate}})
  return config


def rows() -> ConfigDict:
  """All methods as the rows of a study."""
  return ConfigDict(
    {
      name: {
        "method": {"name": name, **fields},
        "optim": {"learning_rate": rate, "groups": {"head": {"learning_rate": head_rate}}},
      }
      for name, (fields, rate, head_rate) in METHODS.items()
    }
  )
