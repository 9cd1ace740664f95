"""Published numbers of parameters of Stable Diffusion 1.5 and XL, exact and from its config.json files alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peftjax import cli, masks, methods
from peftjax.loading import described
from peftjax.methods.base import ADAPTER

FOLDER = Path(__file__).parents[1] / "published" / "stable-diffusion-1.5"
XL = FOLDER.with_name("stable-diffusion-xl-1.0")
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
PARTS = {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}
XL_PARTS = {**PARTS, "unet": 2_567_463_684, "text_encoder_2": 694_659_840}


@pytest.mark.parametrize("name", PARTS)
def test_a_component_s_folder(name):
  assert masks.count(described(FOLDER / name).params).parameters == PARTS[name]


def test_the_folder_of_xl():
  model = described(XL)
  assert {name: masks.count(leaves).parameters for name, leaves in model.params.items()} == XL_PARTS


def test_lora_of_rank_4_on_attention_as_the_training_scripts_have_it(capsys):
  flags = [f"--config.model.path={FOLDER / 'unet'}", "--config.method.name=lora", "--config.method.rank=4",
           f"--config.method.targets={ATTENTION}", "--config.task.name=none"]  # fmt: skip
  assert cli.main(["inspect", "--json", *flags]) == 0
  found = json.loads(capsys.readouterr().out)
  assert (found["trainable"], found["total"] - found["trainable"]) == (797_184, PARTS["unet"])


@pytest.mark.slow
def test_the_whole_pipeline():
  model = described(FOLDER)
  assert masks.count(model.params).parameters == sum(PARTS.values())
  added = model.add(methods.LoRA(rank=4, targets=tuple(f"unet.*.{name}" for name in ATTENTION)))
  groups = masks.flatten(added.labels())
  flat = {path: leaf for path, leaf in masks.flatten(added.params).items() if groups[path] == ADAPTER}
  assert masks.count(flat).parameters == 797_184
