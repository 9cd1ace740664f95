"""The small Stable Diffusion of configs/diffusion_mini.py, pretrained here, and the pictures of its DreamBooth study.

    python -m experiments.diffusion_mini           with the model that is kept in experiments/studies/dreambooth/model
    python -m experiments.diffusion_mini --anew    trains it from nothing: half an hour on two cores

leaves in runs/diffusion_mini

    pictures/     hands that sign one to nine, out of packaged:sign_digits, as "a photo of a hand" and with the digit
    subject/      five pictures of the sign for zero, which the model never sees; more of them to validate and test
    model/        what diffusers loads
    class/        64 pictures that the model makes of "a photo of a hand"
    autoencoder/  with --anew, the run that trains the autoencoder; denoiser/, the run that trains denoiser and text
                  encoder; encoded/, the folder between the two

and goes on where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from peftjax import cli
from peftjax.config import load
from peftjax.data import open_data
from peftjax.files import read_json, write_text
from peftjax.outputs import new_folder
from peftjax.train import finished
from peftjax.train.loop import train

CONFIG = "configs/diffusion_mini.py"
KEPT = Path(__file__).parent / "studies" / "dreambooth" / "model"
CLASS, SUBJECT = "a photo of a hand", "a photo of sks hand"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
HELD_BACK = 0  # the digit that the model never sees
SHOTS = 5  # pictures of it that methods learn from
SPLITS = ("train", "validation", "test")


def write_pictures(folder: Path) -> None:
  """Writes the hands that sign other digits, each with two captions."""
  with new_folder(folder) as place:
    for split in SPLITS:
      table = io.StringIO()
      writer = csv.writer(table, lineterminator="\n")
      writer.writerow(["file_name", "text"])
      (place / split).mkdir()
      for number, example in enumerate(_examples(split)):
        if example["label"] == HELD_BACK:
          continue
        name = f"{number:03}.jpg"
        (place / split / name).write_bytes(example["image"])
        writer.writerows([(name, CLASS), (name, f"{CLASS} showing {WORDS[example['label']]}")])
      write_text(place / split / "metadata.csv", table.getvalue())


def write_subject(folder: Path) -> None:
  """Writes the hands that sign the digit that was held back: a few to train on, the others to evaluate."""
  with new_folder(folder) as place:
    for split in SPLITS:
      own = [example for example in _examples(split) if example["label"] == HELD_BACK]
      (place / split).mkdir()
      for number, example in enumerate(own[:SHOTS] if split == "train" else own):
        (place / split / f"{number:02}.jpg").write_bytes(example["image"])


def _examples(split: str) -> list[Any]:
  source = open_data("packaged:sign_digits").split(split)
  return [source[index] for index in range(len(source))]


def main() -> int:
  """Does what is not there yet; the exit code."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--anew", action="store_true", help="train the model instead of copying the one that is kept")
  anew = parser.parse_args().anew
  root = Path(load(CONFIG).model.path).parent
  for name, write in (("pictures", write_pictures), ("subject", write_subject)):
    if not (root / name).is_dir():
      write(root / name)
  if not anew and not (root / "model").is_dir():
    with new_folder(root / "model") as place:
      shutil.copytree(KEPT, place, dirs_exist_ok=True)
  for stage, out in (("autoencoder", "encoded"), ("denoiser", "model")):
    if (root / "model").is_dir() or (root / out).is_dir():
      continue
    summary = train(load(f"{CONFIG}:{stage}"), root / stage)
    with new_folder(root / out) as place:
      finished.export(root / stage, "merged", place)
      if stage == "autoencoder":
        deviation = summary["metrics"]["validation"]["latent_deviation"]
        _scale(place / "vae" / "config.json", 1 / deviation)
  if (root / "class").is_dir():
    return 0
  flags = ["--count=64", "--steps=50", "--guidance=3", "--batch=16"]
  return cli.main(["sample", f"--model={root / 'model'}", f"--prompt={CLASS}", f"--out={root / 'class'}", *flags])


def _scale(path: Path, factor: float) -> None:
  """Latents of deviation 1 are what the noise is made for (Rombach et al. 2022, appendix G)."""
  write_text(path, json.dumps({**read_json(path), "scaling_factor": round(factor, 4)}, indent=2) + "\n")


if __name__ == "__main__":
  sys.exit(main())
