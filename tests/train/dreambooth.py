"""A tiny pipeline, pictures of a subject and of its class, and the config of a training on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from peftjax import config as config_lib
from peftjax import masks
from peftjax.train import finished
from tests.data.pictures import picture
from tests.oracles import pipelines


def write_material(folder: Path) -> Path:
  """Two pictures of a subject, and three of its class with captions, one of them held out; the folder."""
  for kind, seeds in (("dog", (0, 1)), ("dogs/train", (2, 3)), ("dogs/test", (4,))):
    (folder / kind).mkdir(parents=True)
    for seed in seeds:
      picture(31 + seed, 23, seed).save(folder / kind / f"{seed}.png")
  (folder / "dog" / "LICENSE.md").write_text("free\n")
  for split, names in (("train", "23"), ("test", "4")):
    rows = "".join(f"{name}.png,a photo of dog\n" for name in names)
    (folder / "dogs" / split / "metadata.csv").write_text(f"file_name,text\n{rows}")
  return folder


def config_of(material: Path) -> ConfigDict:
  """DreamBooth with all that is drawn; samples are made along the run."""
  config = config_lib.default()
  config.model.path = str(pipelines.pipeline(small=True)[1])
  config.data.name = f"pictures:{material / 'dog'},{material / 'dogs'}"
  config.data.retained = f"pictures:{material / 'dogs'}"
  config.task.update({"name": "denoising", "eval_timesteps": 2})
  config.input.update({"caption": "a photo of sks dog", "caption_dropout": 0.2, "flip": True, "random_crop": True})
  config.method = {"name": "lora", "rank": 2, "targets": ("unet.*.to_q", "unet.*.to_v", "text_encoder.*.q_proj")}
  config.train.update({"steps": 6, "batch_size": 2, "eval_batch_size": 2, "save_every": 2, "log_every": 1,
                       "eval_every": 3, "final_splits": ("train",), "tensorboard": False})  # fmt: skip
  config.train.evaluators = ("sample",)
  config.evaluators = {"sample": {"count": 1, "steps": 2, "features": "", "prior_prompts": ("a photo of dog",)}}
  config.optim.learning_rate = 1e-2
  return config


def short(config: ConfigDict, **more: Any) -> ConfigDict:
  """Two updates without evaluations, with other fields, such as `model__remat`."""
  changed = config.copy_and_resolve_references()
  changed.train.update({"evaluators": (), "eval_every": 0, "steps": 2, "save_every": 0, "final_splits": ("train",)})
  for name, value in more.items():
    section, field = name.split("__")
    changed[section][field] = value
  return changed


def leaves_in(folder: Path) -> dict[str, np.ndarray]:
  """A finished run's adapter."""
  model = finished.load_model(folder)[2]
  return {name: np.asarray(leaf) for name, leaf in masks.flatten(model.params).items() if "lora_" in name}
