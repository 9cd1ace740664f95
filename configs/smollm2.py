"""SmolLM2-135M-Instruct tuned with LoRA on instructions, packed, loss on responses alone: `self_instruct` or `gsm8k`.

    peftjax train --config=configs/smollm2.py:self_instruct --workdir=runs/smollm2_self_instruct

self_instruct, one seed, two cores shared with several other jobs, about 8 minutes, most of it compiling and
evaluating: held-out loss on the responses (8 examples of `validation`) 2.219 before, 2.174 after 8 updates, 2.152
after 16, in nats a token. The run was stopped and went on once. gsm8k stands ready and has no record yet.
"Give three words that rhyme with day." (`peftjax generate --chat=yes`, greedy) gives "1. day 2. daylight 3. moon" and
an explanation before, and "The only two words that rhyme with day are "day" and "day" and ..." after: no better.
`--config.task.generate=True` also writes answers before and after (generations-validation*.jsonl) and scores them.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from peftjax.config import default


def get_config(data: str = "self_instruct") -> ConfigDict:
  """`data`: self_instruct or gsm8k."""
  config = default()
  config.model.path = "packaged:smollm2-135m-instruct"
  config.method = ConfigDict({"name": "lora", "rank": 8, "targets": ("q_proj", "v_proj")})
  config.data.name = f"packaged:{data}"
  config.data.packing = True
  config.data.max_length = 256
  config.data.buckets = ()
  config.data.eval_examples = 19 if data == "self_instruct" else 32
  config.optim.learning_rate = 1e-3
  config.optim.weight_decay = 0.0
  config.task.generate = True
  config.task.generate_examples = 8 if data == "self_instruct" else 16
  config.task.max_new_tokens = 48
  config.task.text_metrics = ("rougeL", "last_number") if data == "gsm8k" else ("rougeL", "chrf")
  config.train.update({"batch_size": 2, "eval_batch_size": 4, "steps": 60, "eval_every": 20, "save_every": 20})
  config.train.update({"log_every": 4, "eval_first": True, "tensorboard": False})
  return config
