"""MiniLM on reuters_r52 by one method.

peftjax train --config=configs/reuters_r52.py:lora --workdir=runs/reuters_r52-lora

lora: test accuracy .901, macro F1 .402 (many of the 52 topics are rare), 188 steps on two shared cores.
"""

from encoder import get_config as encoder
from ml_collections import ConfigDict


def get_config(method: str = "lora") -> ConfigDict:
  config = encoder(method)
  config.data.name = "packaged:reuters_r52"
  config.data.train_examples = 3000
  config.data.max_length = 64
  config.data.buckets = (24, 40, 64)
  config.train.epochs = 2.0
  config.train.final_splits = ("validation", "test")
  return config
