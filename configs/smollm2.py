"""SmolLM2-135M-Instruct tuned with LoRA on instructions: `self_instruct` or `gsm8k`."""

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
  config.data.eval_examples = 8
  config.optim.learning_rate = 1e-3
  config.optim.weight_decay = 0.0
  config.task.generate_examples = 4
  config.task.max_new_tokens = 48
  config.task.text_metrics = ("rougeL", "last_number") if data == "gsm8k" else ("rougeL", "chrf")
  config.train.update({"batch_size": 2, "eval_batch_size": 4, "steps": 16, "eval_every": 8, "save_every": 8})
  config.train.update({"log_every": 4, "eval_first": True, "tensorboard": False})
  return config
