"""Folders of Stable Diffusion's pipelines in and out, against diffusers' own reader."""

from __future__ import annotations

import json
import shutil

import diffusers
import jax
import numpy as np
import pytest
import torch
import transformers

import peftjax
from peftjax import UserError, masks, methods
from peftjax.composite import component, components
from peftjax.data import load_tokenizer
from peftjax.loading import inputs_folder
from tests.oracles.diffusion import assert_close, noisy, run, text, tokens, unet, vae

SCHEDULER = diffusers.DDIMScheduler(num_train_timesteps=50, beta_start=0.003)
PIXELS = np.random.default_rng(3).normal(size=(1, 3, 8, 6)).astype(np.float32)


def tokenizer(folder):
  """CLIP's, of the letters and two merges."""
  folder.mkdir()
  letters = [chr(code) for code in range(97, 123)]
  merges = ["d o", "do g</w>"]
  words = [*letters, *(f"{one}</w>" for one in letters), "do", "dog</w>", "<|startoftext|>", "<|endoftext|>"]
  (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
  (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
  return transformers.CLIPTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
  """(diffusers' pipeline, its folder), with a safety checker as the published ones list it."""
  folder = tmp_path_factory.mktemp("diffusers")
  made = diffusers.StableDiffusionPipeline(
    vae()[0], text()[0], tokenizer(folder / "words"), unet()[0], SCHEDULER, None, None, requires_safety_checker=False
  )
  made.save_pretrained(folder / "pipe")
  checker = folder / "pipe" / "safety_checker"
  checker.mkdir()
  (checker / "config.json").write_text(json.dumps({"model_type": "clip"}))
  index = json.loads((folder / "pipe" / "model_index.json").read_text())
  index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
  (folder / "pipe" / "model_index.json").write_text(json.dumps(index))
  return made, folder / "pipe"


def test_all_components_are_one_model(pipeline):
  theirs, folder = pipeline
  model = peftjax.load(folder)
  assert set(components(model)) == {"text_encoder", "unet", "vae"}
  found = model(unet=noisy(), vae={"x": PIXELS}, text_encoder={"input_ids": tokens()})
  with torch.no_grad():
    assert_close(found["unet"]["sample"], run(theirs.unet, noisy()))
    assert_close(found["vae"]["mean"], theirs.vae.encode(torch.tensor(PIXELS)).latent_dist.mean)
    expected = theirs.text_encoder(torch.tensor(tokens())).last_hidden_state
    assert_close(found["text_encoder"]["last_hidden_state"], expected)
  words = ["A dog", "dogged  DO"]
  found = load_tokenizer(inputs_folder(folder), 13).encode(words).ids
  assert [list(row) for row in found] == theirs.tokenizer(words).input_ids


def test_what_was_trained_is_read_by_diffusers(pipeline, tmp_path):
  theirs, folder = pipeline
  model = peftjax.load(folder).add(
    methods.LoRA(rank=2, init="gaussian", targets=("unet.*.to_k", "text_encoder.*.fc1", "unet.*.conv2")),
    jax.random.key(1),
  )
  flat = masks.flatten(model.params)
  for path in model.adapter_paths():
    flat[path] = 0.2 * jax.random.normal(jax.random.key(len(path)), flat[path].shape)
  model = model.with_params(masks.unflatten(flat))
  model.merge().save(tmp_path / "merged")
  merged = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "merged", local_files_only=True)
  with torch.no_grad():
    assert_close(run(merged.unet, noisy()), component(model, "unet")(**noisy())["sample"], 1e-4)
    states = merged.text_encoder(torch.tensor(tokens())).last_hidden_state
  assert_close(states, component(model, "text_encoder")(input_ids=tokens())["last_hidden_state"], 1e-4)
  for name, value in theirs.scheduler.config.items():
    assert name.startswith("_") or merged.scheduler.config[name] == value
  assert merged.tokenizer("a dog").input_ids == theirs.tokenizer("a dog").input_ids
  assert merged.safety_checker is None


@pytest.mark.parametrize(
  ("change", "said"),
  [
    (lambda pipe: shutil.rmtree(pipe / "vae"), "lists 'vae', and there is no such folder; the download is incomplete"),
    (lambda pipe: index(pipe, unet=["diffusers", "UNet3DConditionModel"]),
     "component 'unet': .* a UNet3DConditionModel, and its config.json is 'UNet2DConditionModel''s"),
    (lambda pipe: index(pipe, text_encoder=["transformers", "T5EncoderModel"]), "component 'text_encoder'.*T5Encoder"),
    (lambda pipe: entry(pipe / "unet", in_channels=9), "component 'unet': 'conv_in.weight' has shape .3, 3, 4, 6."),
    (lambda pipe: entry(pipe / "vae", latent_channels=3), "component 'vae'"),
    (lambda pipe: entry(pipe / "unet", cross_attention_dim=32), "component 'unet'.*to_k"),
    (lambda pipe: entry(pipe / "unet", _class_name=["x"]), "'unet': config.json: _class_name=.* expected a text"),
    (lambda pipe: entry(pipe / "text_encoder", model_type={}), "component 'text_encoder': config.json"),
    (lambda pipe: index(pipe, vae=["diffusers", {}]), "component 'vae': model_index.json says that it is a {}"),
  ],
)  # fmt: skip
def test_folders_that_do_not_fit_are_one_line(pipeline, tmp_path, change, said):
  shutil.copytree(pipeline[1], tmp_path / "pipe")
  change(tmp_path / "pipe")
  with pytest.raises(UserError, match=said):
    peftjax.load(tmp_path / "pipe")


def index(pipe, **entries):
  given = json.loads((pipe / "model_index.json").read_text())
  (pipe / "model_index.json").write_text(json.dumps({**given, **entries}))


def entry(folder, **fields):
  given = json.loads((folder / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps({**given, **fields}))
