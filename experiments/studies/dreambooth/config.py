"""DreamBooth on a small Stable Diffusion: five pictures of a sign that it never saw, with and without preservation.

    python -m experiments.diffusion_mini
    peftjax compare --config=experiments/studies/dreambooth/config.py --workdir=runs/dreambooth

The model knows hands that sign one to nine (configs/diffusion_mini.py); the subject is the sign for zero. Scores are
the denoising loss on fifteen other pictures of that sign, at eight timesteps each, with noise that all runs share. Rows
whose name ends in "_alone" have no loss on pictures of the class. With

    peftjax compare --config=experiments/studies/dreambooth/config.py:DOG --workdir=runs/dreambooth_dog

it is about your own folder DOG, with pictures of a subject in DOG/train, DOG/validation and DOG/test.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from peftjax.config import default

FOLDER = "runs/diffusion_mini"
CLASS, SUBJECT = "a photo of a hand", "a photo of sks hand"
SKS = 119  # the token "sks" of configs/diffusion_mini/tokenizer
ATTENTION = tuple(f"unet.*attn*.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0"))

# row -> the method, peak learning rate in the middle of the search
METHODS: dict[str, tuple[dict[str, Any], float]] = {
  "full": ({"name": "patterns", "train": ("unet.*",)}, 3e-4),
  "lora_r4": ({"name": "lora", "rank": 4, "alpha": 4.0, "targets": ATTENTION}, 3e-3),
  "lora_r32": ({"name": "lora", "rank": 32, "alpha": 32.0, "targets": ATTENTION}, 1e-3),
  "oft": ({"name": "oft", "oft_block_size": 16, "targets": ATTENTION}, 3e-3),
  "loha": ({"name": "loha", "rank": 4, "alpha": 4.0, "targets": ATTENTION}, 3e-3),
  "token": (
    {"name": "trainable_tokens", "targets": ("text_encoder.*token_embedding",), "token_indices": (SKS,)}, 1e-2
  ),
}  # fmt: skip


def get_config(subject: str = f"{FOLDER}/subject") -> ConfigDict:
  """`subject`: the folder of its pictures."""
  config = default()
  config.model.path = f"{FOLDER}/model"
  config.model.remat = "none"
  config.data.name = f"pictures:{subject},{FOLDER}/class"
  config.data.retained = f"pictures:{FOLDER}/pictures"
  config.data.eval_examples = 64
  config.input = ConfigDict({"name": "captioned_images", "caption": SUBJECT, "prior_caption": CLASS})
  config.input.cache = ("latents", "text")
  config.task = ConfigDict({**config.task, "name": "denoising", "eval_timesteps": 8})
  config.optim.weight_decay = 0.0
  config.optim.schedule = "constant"
  config.train.update({"batch_size": 2, "eval_batch_size": 16, "steps": 60, "eval_every": 60, "eval_first": True})
  config.train.update({"save_every": 0, "log_every": 10, "tensorboard": False, "final_splits": ()})
  config.train.evaluators = ("sample",)
  config.evaluators = ConfigDict(
    {"sample": {"prior_prompts": (CLASS,), "count": 8, "steps": 10, "guidance": 3.0, "features_size": 56}}
  )
  rows = {}
  for row, (method, rate) in METHODS.items():
    rows[row] = {"method": method, "optim": {"learning_rate": rate}}
    if row == "token":  # alone nothing else would happen to the class: its prompts have no such token
      rows[row]["input"] = {"cache": ("latents",)}
    else:
      rows[f"{row}_alone"] = {**rows[row], "task": {"prior_weight": 0.0}}
  config.compare.methods = ConfigDict(rows)
  config.compare.seeds = (0, 1, 2, 3, 4, 5)
  config.compare.baseline = "token"
  config.compare.margin = 0.005
  config.compare.together = 1  # convolutions of several runs at once are grouped ones, which a CPU computes slowly
  config.compare.search.update({"seeds": (100,), "trials": 5})
  config.compare.dimensions = ("samples",)
  config.compare.timing_rounds = 10
  return config
