"""Stable Diffusion's denoiser against diffusers on torch: outputs, gradients, fields of config.json, the way back."""

from __future__ import annotations

import inspect
import json

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import peftjax
from peftjax import UserError
from peftjax.loading import from_config
from peftjax.models import writing
from peftjax.models.layers import Runtime
from peftjax.models.unet_config import UNET_TABLE
from tests.oracles.diffusion import UNET, assert_close, noisy, run, unet

SD2 = {
  "use_linear_projection": True,
  "attention_head_dim": (3, 2),
  "layers_per_block": (1, 2),
  "upcast_attention": True,
}
SDXL = {
  "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
  "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
  "transformer_layers_per_block": (1, 2),
  "addition_embed_type": "text_time",
  "addition_time_embed_dim": 5,
  "projection_class_embeddings_input_dim": 37,
  "upcast_attention": None,  # as published
}
SMALL = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
CASES = {
  "sd1": ({}, (7, 10)),
  "sd2": (SD2, (8, 8)),
  "sdxl": (SDXL, (8, 4)),
  "time": (
    SMALL
    | {
      "resnet_time_scale_shift": "scale_shift",
      "freq_shift": 1,
      "flip_sin_to_cos": False,
      "time_embedding_dim": 10,
      "center_input_sample": True,
      "act_fn": "gelu",
      "norm_eps": 0.3,
    },
    (5, 3),
  ),
  "convolutions": (
    SMALL | {"downsample_padding": 0, "conv_in_kernel": 5, "conv_out_kernel": 1, "mid_block_scale_factor": 3.0},
    (11, 9),
  ),
  "no-middle": (SMALL | {"mid_block_type": None}, (6, 6)),
  "resnet-middle": (SMALL | {"mid_block_type": "UNetMidBlock2D"}, (6, 6)),
  "three-levels": (
    {
      "block_out_channels": (6, 12, 9),
      "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
      "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
      "layers_per_block": (1, 2, 1),
      "attention_head_dim": (1, 4, 3),
      "transformer_layers_per_block": (1, (1, 2), 1),
      "reverse_transformer_layers_per_block": (1, (1, 2, 1), 1),
    },
    (9, 13),
  ),
}
IN_CI = ("sd1", "sd2", "time", "convolutions")
SLOWLY = [pytest.param(name, marks=() if name in IN_CI else pytest.mark.slow) for name in CASES]


def case(name):
  changes, (height, width) = CASES[name]
  inputs = noisy(height, width)
  if name == "sdxl":
    rng = np.random.default_rng(2)
    texts, sizes = rng.normal(size=(2, 7)).astype(np.float32), rng.integers(0, 1024, (2, 6))
    inputs["added_cond_kwargs"] = {"text_embeds": texts, "time_ids": sizes}
  return *unet(**changes), inputs


@pytest.mark.parametrize("name", SLOWLY)
def test_outputs(name):
  reference, folder, inputs = case(name)
  with torch.no_grad():
    expected = run(reference, inputs)
  assert_close(peftjax.load(folder)(**inputs)["sample"], expected)


def test_gradients():
  reference, folder, inputs = case("sd1")
  ours = peftjax.load(folder)

  def loss(params):
    return (ours.forward(params, inputs)["sample"] ** 2).sum()

  found = writing.to_checkpoint(ours.family, jax.jit(jax.grad(loss))(ours.params), ours.stacks)
  reference.zero_grad()
  (run(reference, inputs) ** 2).sum().backward()
  theirs = {name: one.grad.numpy() for name, one in reference.named_parameters()}
  assert found.keys() == theirs.keys()
  largest = max(np.abs(one).max() for one in theirs.values())
  for name, gradient in found.items():
    atol = 1e-5 * max(np.abs(theirs[name]).max(), 0.1 * largest)
    np.testing.assert_allclose(gradient, theirs[name], rtol=1e-4, atol=atol, err_msg=name)


def test_a_mask_and_one_time_for_all():
  reference, folder, inputs = case("sd1")
  inputs |= {"timestep": 17, "encoder_attention_mask": np.asarray([[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]])}
  with torch.no_grad():
    expected = run(reference, inputs)
  assert_close(peftjax.load(folder)(**inputs)["sample"], expected)


@pytest.mark.parametrize("name", ["sd1", pytest.param("sd2", marks=pytest.mark.slow)])
def test_saved_models_load_in_diffusers(name, tmp_path):
  reference, folder, _ = case(name)
  peftjax.load(folder).save(tmp_path)
  again, report = diffusers.UNet2DConditionModel.from_pretrained(tmp_path, output_loading_info=True)
  assert not any(report.values())
  for (key, mine), (_, theirs) in zip(again.state_dict().items(), reference.state_dict().items(), strict=True):
    assert torch.equal(mine, theirs), key
  before, after = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path))
  assert before == after
  assert {path.name for path in folder.iterdir()} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("policy", ["full", "minimal"])
@pytest.mark.slow
def test_recomputing_changes_no_gradient(policy):
  _, folder, inputs = case("sd1")
  found = []
  for remat in ("none", policy):
    model = peftjax.load(folder, runtime=Runtime(remat=remat))
    loss = jax.jit(jax.grad(lambda params, model=model: (model.forward(params, inputs)["sample"] ** 2).sum()))
    found.append(loss(model.params))
  jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-2), *found)


def test_bfloat16_is_near():
  reference, folder, inputs = case("sd1")
  with torch.no_grad():
    expected = run(reference, inputs).numpy()
  found = peftjax.load(folder, dtype="bfloat16")(**inputs)["sample"]
  assert found.dtype == jnp.bfloat16
  assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_every_field_of_diffusers_stands_in_one_place():
  theirs = inspect.signature(diffusers.UNet2DConditionModel.__init__).parameters
  places = [set(UNET_TABLE.read), set(UNET_TABLE.refused), set(UNET_TABLE.ignored)]
  assert set(theirs) - {"self"} <= set.union(*places)
  assert sum(map(len, places)) == len(set.union(*places))
  for name, field in UNET_TABLE.read.items():
    assert name == "architectures" or field.default == theirs[name].default, name
  for name, only in UNET_TABLE.refused.items():
    assert theirs[name].default in only.values


@pytest.mark.parametrize(
  ("changed", "said"),
  [
    ({"dual_cross_attention": True}, "dual_cross_attention=true: two transformers at each place; expected false"),
    ({"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]}, "'AttnDownBlock2D' is not computed here; did you mean"),
    ({"up_block_types": ["UpBlock2D"]}, "up_block_types has 1 entries; expected 2, one for each block"),
    ({"norm_num_groups": 4}, "block_out_channels=6 does not divide among norm_num_groups=4"),
    ({"attention_head_dim": 5}, "attention_head_dim=5 heads, among which 6 channels do not divide"),
    ({"cross_attention_dim": [24, 8]}, r"cross_attention_dim=\[8, 24\]: one encoder's states"),
    ({"resnet_time_scale_shift": "spatial"}, "expected 'default' or 'scale_shift'"),
    ({"addition_embed_type": "image"}, "addition_embed_type='image' is not computed here"),
    ({"addition_embed_type": "text_time"}, "needs addition_time_embed_dim"),
    ({"transformer_layers_per_block": [[1], 1]}, "must say the way up"),
    ({"layers_per_block": "2"}, 'layers_per_block="2": expected a whole number .*, or one for each block'),
    ({"block_out_channels": 5}, "block_out_channels=5: expected a list of numbers of channels"),
  ],
)
def test_what_is_not_computed_is_said(changed, said):
  given = {name: list(value) if isinstance(value, tuple) else value for name, value in UNET.items()}
  with pytest.raises(UserError, match=said):
    from_config({"_class_name": "UNet2DConditionModel", **given, **changed})


def test_wrong_channels_are_one_line(tmp_path):
  _, folder, inputs = case("sd1")
  model = peftjax.load(folder)
  with pytest.raises(UserError, match=r"sample: shape \[2, 3, 8, 8\]; expected \[batch, 4, height, width\]"):
    model(**noisy(channels=3))
  with pytest.raises(UserError, match=r"expected \[batch, tokens, 24\]"):
    model(**{**inputs, "encoder_hidden_states": np.zeros((2, 5, 23))})
  with pytest.raises(UserError, match="added_cond_kwargs: the model needs 'text_embeds'"):
    peftjax.load(unet(**SDXL)[1])(**noisy())
  for name in ("diffusion_pytorch_model.safetensors", "config.json"):
    (tmp_path / name).write_bytes((folder / name).read_bytes())
  config = json.loads((tmp_path / "config.json").read_text())
  (tmp_path / "config.json").write_text(json.dumps({**config, "in_channels": 9}))
  with pytest.raises(UserError, match=r"'conv_in.weight' has shape \(3, 3, 4, 6\) as a leaf; config.json implies"):
    peftjax.load(tmp_path)
