"""Seven ways to fine-tune MiniLM on movie reviews, two seeds each: what `make demo` runs.

peftjax compare --config=configs/demo.py --workdir=runs/demo
"""

from ml_collections import ConfigDict

from peftjax.config import default


def get_config() -> ConfigDict:
  config = default()
  config.data.name = "packaged:movie_reviews"
  config.data.train_examples = 1500
  config.data.max_length = 40  # seven of eight sentences are shorter
  config.data.buckets = (16, 24, 40)
  config.model.dropout = 0.0  # two epochs do not overfit; the random numbers would cost a tenth of a step
  config.train.epochs = 2.0
  config.train.save_every = 0
  config.train.final_splits = ()  # the study's own split alone
  config.optim.groups = ConfigDict({"head": {"learning_rate": 5e-3}})
  config.compare.methods = ConfigDict(
    {
      "full": {"optim": {"learning_rate": 2e-4}},
      "head": {"optim": {"groups": {"head": {"learning_rate": 3e-2}}}},
      "bitfit": {"optim": {"learning_rate": 4e-3}},
      "lora": {"method": {"rank": 8, "alpha": 16.0}, "optim": {"learning_rate": 2e-3}},
      "ia3": {"optim": {"learning_rate": 2e-2}},
      "houlsby": {"method": {"bottleneck_dim": 32}, "optim": {"learning_rate": 2e-3}},
      "prompt": {"method": {"num_virtual_tokens": 10}, "optim": {"learning_rate": 1e-1}},
    }
  )
  config.compare.seeds = (0, 1)
  return config
