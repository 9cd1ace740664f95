"""SmolLM2-135M-Instruct tuned with LoRA on instructions, packed, loss on responses alone: `self_instruct` or `gsm8k`.

    peftjax train --config=configs/smollm2.py:self_instruct --workdir=runs/smollm2_self_instruct
    peftjax train --config=configs/smollm2.py:gsm8k --workdir=runs/smollm2_gsm8k

One seed, two shared cores, 60 updates of two rows of 256 tokens, mostly waiting for the processor (a step has 366
GFLOP); held-out loss on the responses in nats a token (validation: 19 instructions, 32 problems):

| data | before | 20 | 40 | 60 updates | what it writes, before and after | time |
|---|---|---|---|---|---|---|
| self_instruct | 2.280 | 2.182 | 2.163 | 2.156 | 8 answers: rouge-L 0.154, 0.184; chrF 21.8, 19.0 | 17 min |
| gsm8k | 1.297 | 1.119 | 1.082 | 1.073 | 16 answers: rouge-L 0.242, 0.333; the right number 0, 0 | 23 min |

Answers take the form of the data and become no truer. "Find the four smallest perfect numbers." gives "The smallest
perfect numbers are indeed the only numbers that can be expressed as the sum of two perfect numbers ..." before and
"The smallest perfect number is 1." after; to list things to do in Paris, "1. Visit the Eiffel Tower 2. Explore the
Louvre Museum 3. Visit the Eiffel Tower ..." before and "1. Visit the Louvre Museum" after, as most answers in the data
are short. All are in generations-validation-before.jsonl and generations-validation.jsonl of the run's folder.
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
