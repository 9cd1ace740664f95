"""A small BERT (1.3M parameters) of molecules' strings, from scratch, and from it logP by one method.

    python -m peftjax.data.inputs.tokenizer_training --kind=smiles --data=packaged:molecules --vocab_size=128 \\
      --like=configs/bert_mini/config.json --out=runs/molecules/model
    peftjax train  --config=configs/molecules.py:pretraining --workdir=runs/molecules/pretraining
    peftjax export --workdir=runs/molecules/pretraining --format=merged --out=runs/molecules/pretrained
    peftjax train  --config=configs/molecules.py:lora --workdir=runs/molecules/lora

Gave, seed 0:
pretraining, 1,500 updates: .855 of the masked tokens of validation (loss .464).
lora, 1,000 molecules, 200 updates: test Pearson .811, MSE .467 (validation .817, .483).
The rates of the other rows are guesses that no run has confirmed.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from peftjax.config import default
from peftjax.errors import UserError, nearest

FOLDER = "runs/molecules"
# method -> fields of the method, peak learning rate
METHODS = {
  "full": ({}, 1e-3),
  "head": ({}, 1e-2),
  "lora": ({"rank": 8, "alpha": 16.0}, 3e-3),
  "ia3": ({}, 3e-2),
}
STAGES = ("pretraining", *METHODS)


def get_config(stage: str = "lora") -> ConfigDict:
  """`stage`: pretraining, or the method that learns logP: full, head, lora, ia3."""
  if stage not in STAGES:
    raise UserError(f"--config=...:{stage}; {nearest(stage, STAGES)}")
  config = default()
  config.data.name = "packaged:molecules"
  config.data.max_length = 48
  config.data.buckets = (32, 40)
  config.optim.weight_decay = 0.0
  config.train.update({"tensorboard": False, "final_splits": ("validation", "test")})
  if stage == "pretraining":
    config.model.path = f"{FOLDER}/model"
    config.model.init = "random"
    config.task.name = "masked_lm"
    config.method = ConfigDict({"name": "full"})
    config.optim.learning_rate = 1e-3
    config.train.update({"batch_size": 64, "steps": 1500, "eval_every": 500, "save_every": 250, "log_every": 50})
    config.data.eval_examples = 500
    return config
  config.model.path = f"{FOLDER}/pretrained"
  config.data.label_column = "logp"
  config.data.train_examples = 1000
  config.method = ConfigDict({"name": stage, **METHODS[stage][0]})
  config.optim.learning_rate = METHODS[stage][1]
  config.optim.groups = ConfigDict({"head": {"learning_rate": 1e-2}})
  config.train.update({"batch_size": 16, "steps": 200, "save_every": 0})
  return config
