"""MiniLM on ner_optimus by one method.

peftjax train --config=configs/ner_optimus.py:lora --workdir=runs/ner_optimus-lora

lora: test entity F1 .362 (precision .463, recall .298; validation F1 .512), 150 steps on two shared cores.
"""

from encoder import get_config as encoder
from ml_collections import ConfigDict


def get_config(method: str = "lora") -> ConfigDict:
  config = encoder(method)
  config.data.name = "packaged:ner_optimus"
  config.data.max_length = 64
  config.data.buckets = (24, 40, 64)
  config.train.epochs = 3.0
  config.train.final_splits = ("validation", "test")
  return config
