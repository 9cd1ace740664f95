"""Names of latent-diffusion's modules against diffusers' own reading of such files."""

from __future__ import annotations

import re

import diffusers
import jax
import numpy as np
import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors.numpy import load_file, save_file

import peftjax
from peftjax import methods
from peftjax.interop import lora_files
from peftjax.interop.ldm_names import ldm_name
from tests.oracles import pipelines
from tests.oracles.diffusion import acting, unet

THREE = {
  "block_out_channels": (6, 12, 9), "layers_per_block": 2, "attention_head_dim": 3,
  "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
  "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
  "transformer_layers_per_block": (1, 2, 1), "addition_embed_type": "text_time", "addition_time_embed_dim": 4,
  "projection_class_embeddings_input_dim": 30,
}  # fmt: skip


def attends(name):
  found = re.match(r"(down|up)_blocks\.(\d+)", name)
  return bool(found) and "Attn" in THREE[f"{found[1]}_block_types"][int(found[2])]


def test_every_module_of_a_denoiser():
  made = unet(**THREE)[0]
  keys = {
    f"{name}.weight": name for name, module in made.named_modules() if getattr(module, "weight", None) is not None
  }
  older = {f"model.diffusion_model.{ldm_name(name, 2, attends(name))}.weight": key for key, name in keys.items()}
  assert len(older) == len(keys)
  marked = {name: torch.full((2,), float(number)) for number, name in enumerate(older)}
  # what else says how many blocks there are
  biases = {name.replace(".weight", ".bias"): torch.zeros(2) for name in older}
  found = convert_ldm_unet_checkpoint({**marked, **biases}, dict(made.config))
  assert {key: float(tensor[0]) for key, tensor in found.items() if key.endswith("weight")} == {
    key: float(marked[name][0]) for name, key in older.items()
  }


@pytest.fixture(scope="module")
def held(tmp_path_factory):
  """(a LoRA of SDXL, the tensors of its file as this package writes them)."""
  base = peftjax.load(pipelines.xl_pipeline()[1])
  targets = (
    "unet.*.to_q",
    "unet.*.conv1",
    "unet.time_embedding.linear_2",
    "text_encoder.*.q_proj",
    "text_encoder_2.*.fc1",
  )
  model = base.add(methods.LoRA(rank=3, targets=targets), jax.random.key(1))
  model, folder = acting(model), tmp_path_factory.mktemp("lora")
  lora_files.save(model, folder)
  return model, load_file(folder / lora_files.NAME)


def as_kohya(tensors):
  """As kohya's scripts write SDXL's."""
  found = {}
  for key, value in tensors.items():
    name, which = key.removesuffix(".weight").rsplit(".lora_", 1)
    component, below = name.split(".", 1)
    before = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}[component]
    below = ldm_name(below, 1, attends=True) if component == "unet" else below
    stem = f"{before}_{below}".replace(".", "_")
    found[f"{stem}.lora_{'down' if which == 'A' else 'up'}.weight"] = value
    if which == "A":
      found[f"{stem}.alpha"] = np.array(len(value), np.float32)
  return found


def test_a_file_of_kohya_for_sdxl(held, tmp_path):
  model, tensors = held
  made, folder = pipelines.xl_pipeline()
  save_file(as_kohya(tensors), tmp_path / "kohya.safetensors")
  again = peftjax.load(folder, tmp_path / "kohya.safetensors")
  assert again.adapter_paths() == model.adapter_paths()
  lora_files.save(again, tmp_path / "saved")
  for key, tensor in load_file(tmp_path / "saved" / lora_files.NAME).items():
    np.testing.assert_allclose(tensor, tensors[key], rtol=1e-6, err_msg=key)
  theirs, _ = diffusers.StableDiffusionXLPipeline.lora_state_dict(
    str(tmp_path / "kohya.safetensors"), unet_config=made.unet.config
  )
  attention = {key: tensor for key, tensor in tensors.items() if ".to_q." in key}
  assert attention
  for key, tensor in attention.items():
    spelled = key.replace("to_q.lora_A", "processor.to_q_lora.down").replace("to_q.lora_B", "processor.to_q_lora.up")
    np.testing.assert_array_equal(theirs[spelled], tensor, err_msg=key)
