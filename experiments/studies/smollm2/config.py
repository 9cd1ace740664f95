"""SmolLM2-135M-Instruct carried to Portuguese: the strings of an interface, English in, Portuguese out.

peftjax compare --config=experiments/studies/smollm2/config.py --workdir=runs/smollm2

An update takes seconds on two cores, so that this study is short: 16 updates of 8 strings. Newsgroup posts, in English
as most of its pretraining was, are evaluated from before the first update, so that forgetting is seen.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from peftjax.config import default

# row -> fields of the method, peak learning rate in the middle of the search
METHODS = {
  "full": ({}, 1e-4),
  "last_k": ({"k": 2}, 3e-4),
  "layernorm": ({}, 1e-2),
  "lora": ({"rank": 8, "alpha": 16.0}, 3e-3),
  "ia3": ({}, 3e-2),
  "houlsby": ({"bottleneck_dim": 32}, 3e-3),
}


def get_config() -> ConfigDict:
  config = default()
  config.model.path = "packaged:smollm2-135m-instruct"
  config.data.name = "packaged:interface_pt"
  config.data.retained = "packaged:newsgroups20"
  config.data.format = "plain"  # without turns of a chat, which are longer than the strings
  config.data.max_length = 40
  config.data.buckets = ()
  config.data.eval_examples = 48
  config.optim.weight_decay = 0.0
  config.train.update({"batch_size": 8, "eval_batch_size": 16, "steps": 16, "eval_every": 8, "eval_first": True})
  config.train.update({"save_every": 0, "log_every": 4, "tensorboard": False, "final_splits": ()})
  config.compare.methods = ConfigDict(
    {
      row: {"method": {"name": row, **fields}, "optim": {"learning_rate": rate}}
      for row, (fields, rate) in METHODS.items()
    }
  )
  config.compare.seeds = (0, 1, 2, 3, 4, 5)
  config.compare.baseline = "layernorm"
  config.compare.margin = 0.05  # nats a token
  config.compare.search.update({"seeds": (100,), "trials": 5})
  config.compare.dimensions = ()
  config.compare.timing_rounds = 5
  return config
