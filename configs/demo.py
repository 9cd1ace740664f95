"""Seven ways to fine-tune MiniLM on movie reviews, two seeds each: what `make demo` runs.

peftjax compare --config=configs/demo.py --workdir=runs/demo

@@RECORD@@
"""

from encoder import get_config as encoder
from encoder import rows
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = encoder()
  config.data.train_examples = 800
  config.train.batch_size = 16
  config.train.epochs = 2.0
  config.train.save_every = 0
  config.train.final_splits = ()  # the study's own split alone
  config.compare.methods = rows()
  config.compare.seeds = (0, 1)
  config.compare.timing_rounds = 8
  return config
