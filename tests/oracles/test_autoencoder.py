"""Stable Diffusion's autoencoder against diffusers on torch: both ways, gradients, older names, the way back."""

from __future__ import annotations

import inspect
import json

import diffusers
import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import peftjax
from peftjax import UserError
from peftjax.loading import from_config
from peftjax.models import writing
from peftjax.models.autoencoder import AUTOENCODER_TABLE
from tests.oracles.diffusion import VAE, assert_close, vae

CASES = {
  "kl": {},
  "bare": {
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "mid_block_add_attention": False,
    "layers_per_block": 2,
    "act_fn": "gelu",
  },
  "mish": {"act_fn": "mish"},
}
FILE = "diffusion_pytorch_model.safetensors"


def pixels(height=12, width=9):
  return np.random.default_rng(1).normal(size=(2, 3, height, width)).astype(np.float32)


@pytest.mark.parametrize("name", CASES)
def test_both_ways(name):
  reference, folder = vae(**CASES[name])
  ours = peftjax.load(folder)
  with torch.no_grad():
    expected = reference.encode(torch.tensor(pixels())).latent_dist
    decoded = reference.decode(expected.mean).sample
  found = ours(x=pixels())
  assert found.keys() == {"mean", "logvar"}
  assert_close(found["mean"], expected.mean)
  assert_close(found["logvar"], expected.logvar)
  assert_close(ours(z=expected.mean.numpy())["sample"], decoded)
  assert_close(ours(sample=pixels())["sample"], decoded, 2e-5)


def test_gradients():
  reference, folder = vae()
  ours = peftjax.load(folder)

  def loss(params):
    outputs = ours.forward(params, {"sample": pixels()})
    return (outputs["sample"] ** 2).sum() + (outputs["logvar"] ** 2).sum()

  found = writing.to_checkpoint(ours.family, jax.jit(jax.grad(loss))(ours.params), ours.stacks)
  reference.zero_grad()
  dist = reference.encode(torch.tensor(pixels())).latent_dist
  ((reference.decode(dist.mean).sample ** 2).sum() + (dist.logvar**2).sum()).backward()
  theirs = {name: one.grad.numpy() for name, one in reference.named_parameters()}
  assert found.keys() == theirs.keys()
  largest = max(np.abs(one).max() for one in theirs.values())
  for name, gradient in found.items():
    atol = 1e-5 * max(np.abs(theirs[name]).max(), 0.1 * largest)
    np.testing.assert_allclose(gradient, theirs[name], rtol=1e-4, atol=atol, err_msg=name)


def test_saved_models_load_in_diffusers(tmp_path):
  reference, folder = vae()
  peftjax.load(folder).save(tmp_path)
  again, report = diffusers.AutoencoderKL.from_pretrained(tmp_path, output_loading_info=True)
  assert not any(report.values())
  for (key, mine), (_, theirs) in zip(again.state_dict().items(), reference.state_dict().items(), strict=True):
    assert torch.equal(mine, theirs), key
  before, after = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path))
  assert before == after


def test_weights_as_published_call_attention_s_modules_otherwise(tmp_path):
  _, folder = vae()
  (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
  then = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
  tensors = load_file(folder / FILE)
  for name, before in then.items():
    tensors = {key.replace(f".{name}.", f".{before}."): value for key, value in tensors.items()}
  save_file(tensors, tmp_path / FILE)
  assert_close(peftjax.load(tmp_path)(x=pixels())["mean"], peftjax.load(folder)(x=pixels())["mean"], 1e-7)


def test_other_precisions_beside_the_weights_are_not_read(tmp_path):
  _, folder = vae()
  for path in folder.iterdir():
    (tmp_path / path.name).write_bytes(path.read_bytes())
  (tmp_path / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"another")
  peftjax.load(tmp_path)


def test_every_field_of_diffusers_stands_in_one_place():
  theirs = inspect.signature(diffusers.AutoencoderKL.__init__).parameters
  table = AUTOENCODER_TABLE
  places = [set(table.read), set(table.refused), set(table.ignored)]
  assert set(theirs) - {"self"} <= set.union(*places)
  assert sum(map(len, places)) == len(set.union(*places))
  for name, field in table.read.items():
    assert name == "architectures" or field.default == theirs[name].default, name


@pytest.mark.parametrize(
  ("changed", "said"),
  [
    ({"down_block_types": ["AttnDownEncoderBlock2D"] * 2}, "'AttnDownEncoderBlock2D' is not computed here"),
    ({"up_block_types": ["UpDecoderBlock2D"]}, "up_block_types has 1 entries; expected 2"),
    ({"norm_num_groups": 5}, "block_out_channels=6 does not divide among norm_num_groups=5"),
    ({"shift_factor": 0.1}, "shift_factor=0.1: latents that are shifted; expected null"),
  ],
)
def test_what_is_not_computed_is_said(changed, said):
  with pytest.raises(UserError, match=said):
    from_config({"_class_name": "AutoencoderKL", **VAE, **changed})


def test_one_input_of_the_right_channels():
  model = peftjax.load(vae()[1])
  with pytest.raises(UserError, match=r"z: shape \[2, 3, 12, 9\]; expected \[batch, 2, height, width\]"):
    model(z=pixels())
  with pytest.raises(UserError, match="takes one of sample, x"):
    model(z=pixels(), x=pixels())
