"""MiniLM on ner_optimus by one method.

peftjax train --config=configs/ner_optimus.py:lora --workdir=runs/ner_optimus-lora

@@RECORD@@
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
