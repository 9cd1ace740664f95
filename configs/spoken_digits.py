"""Whisper tiny.en's encoder on spoken digits by one method: 320 recordings of four speakers, two speakers unheard.

peftjax train --config=configs/spoken_digits.py:lora --workdir=runs/spoken_digits-lora

Gave, seed 0, 80 updates (200 test recordings of the speakers that were heard, 100 of the two others; one of them is 0.5
and 1 points):
lora: test accuracy .995, of unheard speakers .990 (validation 1.000), 50 GFLOP an update.
ia3: test accuracy .990, of unheard speakers .980 (validation .988), 50 GFLOP an update.
head: test accuracy .980, of unheard speakers .970 (validation .938), 26 GFLOP an update.
The rates of the other rows are guesses; experiments/studies/spoken_digits searched for those of 20 shorter updates.
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
  "prompt": ({"num_virtual_tokens": 10}, 3e-2, 3e-3),
}


def get_config(method: str = "lora") -> ConfigDict:
  config = default()
  config.model.path = "packaged:whisper-tiny.en"
  config.data.name = "packaged:spoken_digits"
  config.data.shifted = ("packaged:spoken_digits_unheard",)
  config.input = ConfigDict({"name": "audio", "seconds": 1.0})
  config.train.epochs = 8.0
  config.train.save_every = 0
  config.train.final_splits = ("validation", "test", "spoken_digits_unheard")
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
