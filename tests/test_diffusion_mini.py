"""The small pipeline of configs/diffusion_mini, and the pictures that experiments/diffusion_mini.py makes for it."""

from __future__ import annotations

import csv
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image

from experiments import diffusion_mini
from experiments.studies.dreambooth import config as study
from peftjax import masks
from peftjax.data import open_data
from peftjax.data.inputs.pipeline import Pipeline
from peftjax.loading import described

FOLDER = Path("configs/diffusion_mini")


def test_its_tokenizer_is_read_alike_by_transformers():
  captions = [study.CLASS, study.SUBJECT, "", *(f"{study.CLASS} showing {word}" for word in diffusion_mini.WORDS)]
  theirs = transformers.CLIPTokenizer.from_pretrained(FOLDER / "tokenizer")
  ids = Pipeline(FOLDER).ids(captions)
  wanted = theirs(captions, padding="max_length", max_length=12, truncation=True)["input_ids"]
  assert ids.tolist() == wanted
  assert max((row != theirs.eos_token_id).sum() for row in ids) == 1 + 7  # every word is one token
  assert study.SKS in ids[1] and study.SKS not in ids[0]


def test_its_parts():
  leaves = masks.flatten(described(FOLDER).params)
  counts: dict[str, int] = {}
  for name, leaf in leaves.items():
    part = name.partition(".")[0]
    counts[part] = counts.get(part, 0) + leaf.size
  assert counts == {"unet": 1_001_828, "vae": 186_711, "text_encoder": 75_648}


def test_pictures_of_the_study(tmp_path):
  diffusion_mini.write_pictures(tmp_path / "pictures")
  diffusion_mini.write_subject(tmp_path / "subject")
  with (tmp_path / "pictures" / "test" / "metadata.csv").open() as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == 2 * 9 * 15 and rows[0]["text"] == study.CLASS
  assert len({row["text"] for row in rows}) == 10 and not any("zero" in row["text"] for row in rows)
  held = open_data(f"pictures:{tmp_path / 'pictures'}")
  assert dict(held.splits) == {"train": 2 * 9 * 37, "validation": 2 * 9 * 8, "test": 2 * 9 * 15}
  assert dict(open_data(f"pictures:{tmp_path / 'subject'}").splits) == {"train": 5, "validation": 8, "test": 15}


def test_the_kept_model_is_of_these_parts_and_has_learned_hands(tmp_path):
  made, kept = (masks.flatten(described(folder).params) for folder in (FOLDER, diffusion_mini.KEPT))
  assert {name: leaf.shape for name, leaf in kept.items()} == {name: leaf.shape for name, leaf in made.items()}
  autoencoder = diffusers.AutoencoderKL.from_pretrained(diffusion_mini.KEPT / "vae")
  diffusion_mini.write_subject(tmp_path / "subject")  # a sign that it never saw
  images = [np.asarray(Image.open(one).resize((64, 64))) for one in sorted((tmp_path / "subject" / "test").iterdir())]
  pixels = torch.tensor(np.stack(images) / 127.5 - 1.0, dtype=torch.float32).permute(0, 3, 1, 2)
  with torch.no_grad():
    again = autoencoder(pixels, sample_posterior=False).sample
  assert float(((again - pixels) ** 2).mean()) < 0.1 * float(pixels.var())
