"""What a pipeline's folder says of sampler, noise, sizes and texts, as diffusers' StableDiffusionPipeline runs it."""

from __future__ import annotations

import json
import shutil

import diffusers
import numpy as np
import pytest

from peftjax import UserError
from peftjax.data.inputs.pipeline import Pipeline
from peftjax.diffusion.latents import Latents
from peftjax.diffusion.noise import Noise
from peftjax.diffusion.samplers import of_pipeline
from peftjax.diffusion.texts import Texts
from peftjax.image_generation import plan_of
from tests.oracles import pipelines

SCHEDULER, UNET, TEXT = "scheduler/scheduler_config.json", "unet/config.json", "text_encoder/config.json"
TOKENS = "tokenizer/tokenizer_config.json"


@pytest.fixture
def changed(tmp_path):
  """A function of a file and its new fields to a tiny pipeline's folder with them; ... takes one out."""
  folder = tmp_path / "pipeline"
  shutil.copytree(pipelines.pipeline(small=True)[1], folder)

  def change(file, **fields):
    given = json.loads((folder / file).read_text()) | fields
    (folder / file).write_text(json.dumps({name: value for name, value in given.items() if value is not ...}))
    return folder

  return change


def loaded(folder):
  return diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)


@pytest.mark.parametrize(
  "fields", [{}, {"clip_sample": True}, {"clip_sample": ...}, {"steps_offset": 0}, {"steps_offset": ...}]
)
def test_a_sampler_is_settled_as_the_pipeline_settles_it(changed, fields):
  folder = changed(SCHEDULER, **fields)
  theirs, ours = loaded(folder).scheduler, of_pipeline(folder)
  assert (ours.clip is not None, ours.steps_offset) == (theirs.config.clip_sample, theirs.config.steps_offset)
  theirs.set_timesteps(7)
  np.testing.assert_array_equal(ours.timesteps(7), theirs.timesteps)


def test_other_pipelines_take_what_the_file_says(changed):
  changed("model_index.json", _class_name="DiffusionPipeline")
  ours = of_pipeline(changed(SCHEDULER, clip_sample=True, clip_sample_range=2.0, steps_offset=0))
  assert (ours.clip, ours.steps_offset) == (2.0, 0)


def test_the_index_and_the_file_name_one_scheduler(changed):
  folder = changed(SCHEDULER, _class_name="EulerDiscreteScheduler")
  with pytest.raises(UserError, match='names the scheduler "DDIMScheduler", and .*_config.json "Euler'):
    of_pipeline(folder)
  assert of_pipeline(folder, "euler").kind == "EulerDiscreteScheduler"
  assert of_pipeline(changed(SCHEDULER, _class_name=...)).kind == type(loaded(folder).scheduler).__name__


@pytest.mark.parametrize(("version", "sample", "side"), [("0.8.1", 8, 64), ("0.9.0.dev0", 8, 8), ("0.2.2", 96, 96)])
def test_a_denoiser_of_the_first_versions_has_64_places(changed, version, sample, side):
  folder = changed(UNET, _diffusers_version=version, sample_size=sample)
  assert Pipeline(folder).side == loaded(folder).unet.config.sample_size == side


@pytest.mark.parametrize("longest", [5, 9, ...])
def test_texts_have_the_tokenizer_s_length(changed, longest):
  folder = changed(TOKENS, model_max_length=longest)
  found = Pipeline(folder).ids(["a photo of sks dog", "a"])
  tokenizer = loaded(pipelines.pipeline(small=True)[1]).tokenizer
  most = 9 if longest is ... else longest
  wanted = tokenizer(["a photo of sks dog", "a"], padding="max_length", max_length=most, truncation=True).input_ids
  np.testing.assert_array_equal(found, wanted)


def test_the_first_text_that_is_cut_is_said(changed, caplog):
  reads = Pipeline(changed(TOKENS))
  reads.ids(["a photo of sks dog", ""])
  assert not caplog.records
  for _ in range(2):
    reads.ids(["a dog", "a red dog " * 20])
  (said,) = caplog.messages
  assert "cut at 9 tokens" in said and "a red dog a red dog" in said


def test_texts_that_are_filled_up_in_front_are_one_line(changed):
  with pytest.raises(UserError, match="padding_side='left': texts are filled up behind here; expected 'right'"):
    Pipeline(changed(TOKENS, padding_side="left")).ids(["a"])


@pytest.mark.parametrize(
  ("file", "fields", "said"),
  [
    (TEXT, {"use_attention_mask": True}, "use_attention_mask=true: what fills up a text is seen here"),
    (TEXT, {"hidden_size": 24}, "cross_attention_dim=20, and text_encoder/config.json has hidden_size=24"),
    ("vae/config.json", {"block_out_channels": 6}, "block_out_channels=6: expected"),
    ("vae/config.json", {"latent_channels": 3}, "latent_channels=3, and unet/config.json has in_channels=4"),
  ],
)
def test_components_that_do_not_fit_are_one_line(changed, file, fields, said):
  folder = changed(file, **fields)
  with pytest.raises(UserError, match=said):
    (Texts if file == TEXT else Latents).of(folder)
  with pytest.raises(UserError, match=said):
    plan_of(folder)


@pytest.mark.parametrize(("name", "listed"), [("unet", [None, None]), ("text_encoder", ...), ("vae", None)])
def test_a_component_that_the_index_does_not_list_is_none(changed, name, listed):
  with pytest.raises(UserError, match=f"no component '{name}'"):
    plan_of(changed("model_index.json", **{name: listed}))


@pytest.mark.parametrize(
  ("config", "said"),
  [
    ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, "nothing is said of betas"),
    ({"_class_name": "IPNDMScheduler", "trained_betas": None}, "nothing is said of betas"),
    ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, "use_flow_sigmas=true: noise that"),
    ({"_class_name": "CogVideoXDDIMScheduler", "beta_start": 0.00085, "snr_shift_scale": 3.0}, "snr_shift_scale=3.0"),
  ],
)
def test_noise_that_follows_from_no_betas_is_one_line(config, said):
  with pytest.raises(UserError, match=said):
    Noise.of(config)


@pytest.mark.parametrize("name", ["PNDMScheduler", "DPMSolverMultistepScheduler", "EulerAncestralDiscreteScheduler"])
def test_noise_by_betas_whatever_the_sampler(name):
  theirs = getattr(diffusers, name)(beta_schedule="scaled_linear")
  np.testing.assert_allclose(Noise.of(dict(theirs.config) | {"_class_name": name}).alphas_cumprod,
                             theirs.alphas_cumprod, rtol=1e-6)  # fmt: skip
  assert Noise.of({"_class_name": name}) == Noise()
