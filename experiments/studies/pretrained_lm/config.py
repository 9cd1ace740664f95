"""A small GPT-2 (0.9M parameters) pretrained on newsgroup posts, then adapted to Portuguese interface strings.

    python -m peftjax.data.inputs.tokenizer_training --data=packaged:newsgroups20,packaged:interface_pt \\
      --examples=4000 --vocab_size=1024 --like=experiments/studies/pretrained_lm/model.json \\
      --out=runs/pretrained_lm/model
    peftjax train  --config=experiments/studies/pretrained_lm/config.py:pretraining \\
      --workdir=runs/pretrained_lm/pretraining
    peftjax export --workdir=runs/pretrained_lm/pretraining --format=merged --out=runs/pretrained_lm/pretrained
    peftjax compare --config=experiments/studies/pretrained_lm/config.py --workdir=runs/pretrained_lm/study

What was known before is known here: the newsgroups' test posts, which neither training saw, are evaluated along every
run, so that forgetting is measured on the pretraining distribution itself.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from peftjax.config import default
from peftjax.errors import UserError, nearest

FOLDER = "runs/pretrained_lm"
STAGES = ("study", "pretraining")

# row -> fields of the method, peak learning rate in the middle of the search
METHODS = {
  "full": ({}, 2e-3),
  "last_k": ({"k": 1}, 2e-3),
  "layernorm": ({}, 2e-2),
  "bitfit": ({}, 1e-2),
  "lora": ({"rank": 8, "alpha": 16.0}, 1e-2),
  "ia3": ({}, 5e-2),
  "houlsby": ({"bottleneck_dim": 16}, 5e-3),
}


def get_config(stage: str = "study") -> ConfigDict:
  """`stage`: study or pretraining."""
  if stage not in STAGES:
    raise UserError(f"--config=...:{stage}; {nearest(stage, STAGES)}")
  config = default()
  config.task.name = "causal_lm"
  config.data.max_length = 48
  config.data.buckets = ()
  config.train.update({"tensorboard": False, "eval_batch_size": 64, "final_splits": ("train", "validation")})
  if stage == "pretraining":
    config.model.path = f"{FOLDER}/model"
    config.model.init = "random"
    config.method = ConfigDict({"name": "full"})
    config.data.name = "packaged:newsgroups20"
    config.data.packing = True
    config.data.eval_examples = 256
    config.optim.learning_rate = 3e-3
    config.train.update({"batch_size": 32, "steps": 3000, "eval_every": 1000, "save_every": 500, "log_every": 100})
    return config
  config.model.path = f"{FOLDER}/pretrained"
  config.data.name = "packaged:interface_pt"
  config.data.retained = "packaged:newsgroups20"
  config.data.eval_examples = 128
  config.optim.weight_decay = 0.0
  config.train.update({"batch_size": 16, "steps": 120, "eval_every": 20, "eval_first": True})
  config.train.update({"save_every": 0, "log_every": 5})
  config.compare.methods = ConfigDict(
    {
      row: {"method": {"name": row, **fields}, "optim": {"learning_rate": rate}}
      for row, (fields, rate) in METHODS.items()
    }
  )
  config.compare.seeds = (0, 1, 2, 3, 4, 5)
  config.compare.baseline = "layernorm"
  config.compare.margin = 0.05  # nats a token
  config.compare.together = 6
  config.compare.search.update({"seeds": (100,), "trials": 5})
  config.compare.dimensions = ("overfitting", "update")
  config.compare.timing_rounds = 20
  return config
