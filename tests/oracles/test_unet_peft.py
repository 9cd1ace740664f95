"""Methods on Stable Diffusion's denoiser against PEFT's on diffusers': outputs, gradients, merging, the way back."""

from __future__ import annotations

import copy

import diffusers
import jax
import numpy as np
import peft
import pytest
import torch

import peftjax
from peftjax import masks, methods
from peftjax.interop.formats import FORMATS
from peftjax.interop.leaves import write_adapter
from tests.oracles.diffusion import assert_close, noisy, run, unet

SMALL = {
  "block_out_channels": (6,),
  "down_block_types": ("CrossAttnDownBlock2D",),
  "up_block_types": ("CrossAttnUpBlock2D",),
}
ATTENTION = ["to_q", "to_v", "to_out.0"]
TARGETS = [*ATTENTION, "conv1", "conv_shortcut", "proj_in", "time_emb_proj", "ff.net.0.proj"]
CONFIGS = {
  "lora": peft.LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS, rank_pattern={"to_v": 2}),
  "loha": peft.LoHaConfig(r=2, alpha=3, target_modules=TARGETS),
  "lokr": peft.LoKrConfig(r=2, alpha=3, target_modules=TARGETS, decompose_factor=2),
  # Where a window has more than one place, PEFT's OFT acts otherwise than its own merged weights.
  "oft": peft.OFTConfig(r=0, oft_block_size=3, target_modules=[name for name in TARGETS if name != "conv1"]),
  "dora": peft.LoraConfig(r=2, use_dora=True, target_modules=TARGETS),
  "ia3": peft.IA3Config(target_modules=TARGETS, feedforward_modules=["to_out.0", "conv1"]),
  "boft": peft.BOFTConfig(boft_block_size=3, target_modules=ATTENTION),
}
IN_CI = ("lora", "loha", "lokr", "oft", "dora")


def adapted_by_peft(name):
  torch.manual_seed(1)
  made = peft.get_peft_model(copy.deepcopy(unet(**SMALL)[0]), CONFIGS[name]).eval()
  for key, parameter in made.named_parameters():
    if parameter.requires_grad and "magnitude" not in key:
      torch.nn.init.normal_(parameter, mean=1.0 if "ia3" in key else 0.0, std=0.2)
  return made


@pytest.mark.parametrize(
  "name", [pytest.param(name, marks=() if name in IN_CI else pytest.mark.slow) for name in CONFIGS]
)
def test_outputs_gradients_and_files_are_pefts(name, tmp_path):
  theirs, inputs = adapted_by_peft(name), noisy(4, 5)
  theirs.save_pretrained(tmp_path / "theirs")
  expected = run(theirs, inputs)
  (expected**2).sum().backward()
  ours = peftjax.load(unet(**SMALL)[1], tmp_path / "theirs")
  trainable, frozen = masks.partition(ours.params, ours.labels())

  def loss(part):
    sample = ours.forward(masks.combine(part, frozen), inputs)["sample"]
    return (sample**2).sum(), sample

  gradient, found = jax.jit(jax.grad(loss, has_aux=True))(trainable)
  assert_close(found, expected, 2e-5)
  one = ours.bound[0]
  form = next(form for form in FORMATS if type(one.method) is form.method)
  mine = write_adapter(ours.with_params(masks.combine(gradient, frozen)), one, form)
  wanted = {
    key.replace(".default", ""): one.grad.numpy() for key, one in theirs.named_parameters() if one.requires_grad
  }
  named = {key.replace("magnitude_vector.weight", "magnitude_vector"): value for key, value in wanted.items()}
  assert mine.keys() == named.keys()
  largest = max(np.abs(value).max() for value in named.values())
  for key, value in named.items():
    np.testing.assert_allclose(mine[key].reshape(value.shape), value, rtol=2e-4, atol=1e-5 * largest, err_msg=key)
  ours.save_adapter(tmp_path / "ours")
  again = peft.PeftModel.from_pretrained(copy.deepcopy(unet(**SMALL)[0]), tmp_path / "ours").eval()
  with torch.no_grad():
    assert_close(run(again, inputs), expected, 1e-6)


@pytest.mark.parametrize("name", ["lora", *(pytest.param(name, marks=pytest.mark.slow) for name in IN_CI[1:])])
def test_merged_folders_are_read_by_diffusers(name, tmp_path):
  theirs, inputs = adapted_by_peft(name), noisy(4, 5)
  theirs.save_pretrained(tmp_path / "theirs")
  peftjax.load(unet(**SMALL)[1], tmp_path / "theirs").merge().save(tmp_path / "merged")
  merged = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "merged").eval()
  with torch.no_grad():
    assert_close(run(merged, inputs), run(theirs, inputs), 1e-4)


@pytest.mark.parametrize(
  ("method", "count"),
  [
    (methods.Full(), lambda name, leaf: True),
    (methods.BitFit(), lambda name, leaf: name.endswith(".bias")),
    (methods.LayerNormTuning(), lambda name, leaf: "norm" in name),
    (
      methods.Patterns(train=("attn2.to_k", "attn2.to_v")),
      lambda name, leaf: ".attn2.to_k" in name or ".attn2.to_v" in name,
    ),
  ],
  ids=["full", "bitfit", "layernorm", "custom-diffusion"],
)
def test_masks(method, count):
  model = peftjax.load(unet(**SMALL)[1])
  groups = masks.flatten(model.add(method).labels())
  assert {name for name, group in groups.items() if group != masks.FROZEN} == {
    name for name, leaf in masks.flatten(model.params).items() if count(name, leaf)
  }
