"""LoRA files in and out against diffusers' own loader: equal outputs of denoiser and text encoder."""

from __future__ import annotations

import copy
import json

import jax
import numpy as np
import pytest
import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.numpy import load_file, save_file

import peftjax
from peftjax import UserError, adapters, methods
from peftjax.composite import component, compose
from peftjax.interop import lora_files
from tests.oracles.diffusion import acting, assert_close, noisy, run, text, tokens, unet

UNET_MODULES = ["to_q", "to_v", "to_out.0", "conv1", "proj_in", "ff.net.2"]
TEXT_MODULES = ["q_proj", "v_proj", "out_proj", "fc1"]


def torch_outputs(denoiser, encoder):
  with torch.no_grad():
    return run(denoiser, noisy()), encoder(torch.tensor(tokens())).last_hidden_state


def our_outputs(model):
  found = model(unet=noisy(), text_encoder={"input_ids": tokens()})
  return found["unet"]["sample"], found["text_encoder"]["last_hidden_state"]


def assert_equal(ours, theirs):
  for mine, expected in zip(ours, theirs, strict=True):
    assert_close(mine, expected, 2e-5)


@pytest.fixture(scope="module")
def base():
  return compose({"unet": peftjax.load(unet()[1]), "text_encoder": peftjax.load(text()[1])})


@pytest.fixture(scope="module")
def ours(base):
  """Ranks and scales that differ between modules, values that act."""
  model = base.add(
    methods.LoRA(
      rank=3, alpha=5, rank_pattern={"to_v": 2, "fc1": 1}, targets=tuple(UNET_MODULES + TEXT_MODULES), rslora=True
    ),
    jax.random.key(1),
  )
  return acting(model)


def loaded_in_diffusers(path):
  """(denoiser, text encoder) with the file that diffusers reads."""
  denoiser, encoder = copy.deepcopy(unet()[0]), copy.deepcopy(text()[0])
  mixin = StableDiffusionLoraLoaderMixin
  state, alphas, metadata = mixin.lora_state_dict(str(path), return_lora_metadata=True, local_files_only=True)
  mixin.load_lora_into_unet(state, alphas, denoiser, metadata=metadata)
  mixin.load_lora_into_text_encoder(state, alphas, encoder, metadata=metadata)
  return denoiser.eval(), encoder.eval()


def test_our_file_in_diffusers_and_back(base, ours, tmp_path):
  lora_files.save(ours, tmp_path)
  expected = our_outputs(ours)
  assert np.abs(expected[0] - our_outputs(base)[0]).max() > 0.1
  assert_equal(expected, torch_outputs(*loaded_in_diffusers(tmp_path)))
  assert_equal(our_outputs(lora_files.load(base, tmp_path)), expected)


def test_a_file_of_diffusers_here(base, tmp_path):
  """As training scripts write it: other scales than 1 stand in the file's metadata."""
  denoiser, encoder = copy.deepcopy(unet()[0]), copy.deepcopy(text()[0])
  configs = {
    "unet": LoraConfig(r=3, lora_alpha=5, target_modules=UNET_MODULES, alpha_pattern={"to_v": 7},
                       init_lora_weights=False),
    "text_encoder": LoraConfig(r=2, lora_alpha=3, target_modules=TEXT_MODULES, init_lora_weights=False),
  }  # fmt: skip
  denoiser.add_adapter(configs["unet"])
  encoder.add_adapter(configs["text_encoder"])
  said = {name: {**config.to_dict(), "target_modules": sorted(config.target_modules)}
          for name, config in configs.items()}  # fmt: skip
  StableDiffusionLoraLoaderMixin.save_lora_weights(
    tmp_path,
    get_peft_model_state_dict(denoiser),
    get_peft_model_state_dict(encoder),
    unet_lora_adapter_metadata=said["unet"],
    text_encoder_lora_adapter_metadata=said["text_encoder"],
  )
  assert_equal(our_outputs(peftjax.load({"unet": unet()[1], "text_encoder": text()[1]}, tmp_path)),
               torch_outputs(denoiser.eval(), encoder.eval()))  # fmt: skip


def respelled(tensors, form):
  """The tensors of our file as other writers spelled them; the scale is taken out into alphas."""
  found = {}
  for key, value in tensors.items():
    if form == "kohya":
      name, which = key.rsplit(".lora_", 1)
      part, rank = ("down", len(value)) if which[0] == "A" else ("up", value.shape[1])
      prefix = {"unet": "lora_unet_", "text_encoder": "lora_te_"}[name.split(".")[0]]
      name = prefix + name.split(".", 1)[1].replace(".", "_")
      found[f"{name}.lora_{part}.weight"] = value if part == "down" else value / np.float32(0.5)
      found[f"{name}.alpha"] = np.array(0.5 * rank, np.float32)
    else:
      between = "lora" if key.startswith("unet.") else "lora_linear_layer"
      found[key.replace("lora_A", f"{between}.down").replace("lora_B", f"{between}.up")] = value
  return found


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_other_spellings_here_and_in_diffusers(form, base, ours, tmp_path):
  lora_files.save(ours, tmp_path)
  tensors = respelled(load_file(tmp_path / lora_files.NAME), form)
  file = tmp_path / "other.safetensors"
  save_file(tensors, file)
  expected = our_outputs(ours)
  assert_equal(our_outputs(peftjax.load({"unet": unet()[1], "text_encoder": text()[1]}, file)), expected)
  if form == "diffusers":
    assert_equal(expected, torch_outputs(*loaded_in_diffusers(file)))


def test_one_component_and_some_of_a_stack_s_layers(ours, tmp_path):
  lora_files.save(ours, tmp_path)
  tensors = load_file(tmp_path / lora_files.NAME)
  save_file({key: value for key, value in tensors.items() if "layers.1." in key}, tmp_path / "one.safetensors")
  encoder = peftjax.load(text()[1], tmp_path / "one.safetensors")
  denoiser, reference = loaded_in_diffusers(tmp_path / "one.safetensors")
  del denoiser
  with torch.no_grad():
    expected = reference(torch.tensor(tokens())).last_hidden_state
  assert_close(encoder(input_ids=tokens())["last_hidden_state"], expected)
  lora_files.save(component(ours, "unet"), tmp_path / "alone")
  kept = {key: value for key, value in tensors.items() if key.startswith("unet.")}
  alone = load_file(tmp_path / "alone" / lora_files.NAME)
  assert alone.keys() == kept.keys()
  for key, value in alone.items():
    np.testing.assert_array_equal(value, kept[key])


@pytest.mark.parametrize(
  ("change", "said"),
  [
    (lambda held: held.pop("unet.conv_in.lora_B.weight"), "'conv_in' has no 'up' factor"),
    (
      lambda held: held.update({"unet.conv_on.lora_A.weight": np.zeros((2, 2))}),
      "belongs to no module of the model; did",
    ),
    (lambda held: held.update({"unet.conv_in.lora_magnitude_vector": np.zeros(2)}), "is no factor of LoRA"),
    (
      lambda held: held.update({"unet.conv_in.lora_A.weight": np.zeros((2, 3, 3, 3))}),
      "the model's is 4 to 6 with a win",
    ),
    (lambda held: held.clear(), "no factors of LoRA"),
    (lambda held: held.update({"unet.conv_in.alpha": np.ones(2)}), r"alpha of \[1.0, 1.0\]; expected one finite"),
    (lambda held: held.update({"unet.conv_in.alpha": np.full((), np.nan)}), "alpha of nan; expected one finite number"),
    (
      lambda held: held.update(
        {
          "unet.conv_in.lora_A.weight": np.zeros((0, 4, 3, 3)),
          "unet.conv_in.lora_B.weight": np.zeros((6, 0, 1, 1)),
        }
      ),
      "'conv_in' has factors of rank 0",
    ),
    (
      lambda held: held.update({"unet.conv_in.lora.down.weight": np.zeros((2, 4, 3, 3))}),
      "is there in another spelling, too",
    ),
  ],
)
def test_files_that_do_not_fit_are_one_line(change, said, tmp_path):
  tensors = {"unet.conv_in.lora_A.weight": np.zeros((2, 4, 3, 3), np.float32),
             "unet.conv_in.lora_B.weight": np.zeros((6, 2, 1, 1), np.float32)}  # fmt: skip
  change(tensors)
  save_file(tensors, tmp_path / lora_files.NAME)
  with pytest.raises(UserError, match=said):
    peftjax.load(unet()[1], tmp_path)


@pytest.mark.parametrize(
  ("told", "said"),
  [
    ({"unet.r": "2"}, 'unet.r="2": expected a whole number from 1'),
    ({"unet.r": 0}, "unet.r=0: expected a whole number from 1"),
    ({"unet.r": 4}, "'conv_in' has factors of rank 2, and the file's lora_adapter_metadata says 4"),
    ({"unet.r": 2, "unet.lora_alpha": [1]}, r"unet.lora_alpha=\[1\]: expected a finite number"),
    ({"unet.r": 2, "unet.rank_pattern": 5}, "unet.rank_pattern=5: expected an object"),
    ({"unet.r": 2, "unet.alpha_pattern": {"conv_in": "x"}}, "expected an object, each value a finite number"),
    ({"unet.r": 2, "unet.use_rslora": "no"}, 'unet.use_rslora="no": expected true or false'),
    ({"unet.r": 2, "unet.use_dora": True}, "unet.use_dora=true: PEFT computes more with it than the factors say"),
    ({"unet.r": 2, "unet.init_lora_weights": "pissa_niter_4"}, 'init_lora_weights="pissa_niter_4": PEFT computes more'),
  ],
)
def test_metadata_that_do_not_fit_are_one_line(told, said, tmp_path):
  tensors = {"unet.conv_in.lora_A.weight": np.zeros((2, 4, 3, 3), np.float32),
             "unet.conv_in.lora_B.weight": np.zeros((6, 2, 1, 1), np.float32)}  # fmt: skip
  save_file(tensors, tmp_path / lora_files.NAME, metadata={"lora_adapter_metadata": json.dumps(told)})
  with pytest.raises(UserError, match=said):
    peftjax.load(unet()[1], tmp_path)


def test_what_a_file_has_no_place_for(base, tmp_path):
  for method, said in ((methods.DoRA(rank=2, targets=("to_q",)), "holds LoRA alone, and the model has 'dora'"),):
    with pytest.raises(UserError, match=said):
      lora_files.save(base.add(method), tmp_path)
  with pytest.raises(UserError, match="no LoRA to save"):
    lora_files.save(base, tmp_path)
  lora = base.add(methods.LoRA(rank=2, targets=("to_q",)), jax.random.key(0))
  bank = adapters.Bank(base).add("x", lora).add("y", lora)
  for several in (bank.use("x", "y"), bank.mixed()):
    with pytest.raises(UserError, match="the model holds several adapters; save them one by one"):
      lora_files.save(several, tmp_path)
