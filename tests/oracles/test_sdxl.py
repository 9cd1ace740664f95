"""SDXL, two text encoders and a denoiser that is told sizes, against diffusers on torch."""

from __future__ import annotations

import json
import shutil

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

import peftjax
from peftjax import UserError, methods, tasks
from peftjax import image_generation as images
from peftjax.data.inputs.pipeline import Pipeline
from peftjax.diffusion.texts import NO_TEXT, Texts
from peftjax.files import read_json
from peftjax.interop import lora_files
from peftjax.train import loop
from tests.oracles import pipelines
from tests.oracles.diffusion import acting
from tests.train import dreambooth

PROMPTS = ["a photo of sks dog", "a red cat"]


def test_ten_steps_with_guidance():
  """Without a negative prompt guidance goes away from zeros, and not from an empty text."""
  made, folder = pipelines.xl_pipeline()
  found, starts = sampled(peftjax.load(folder), folder, ("blue", ""))
  for pictures, negative in zip(found, ("blue", None), strict=True):
    wanted = theirs(made, starts, 10, negative)
    assert wanted.std() > 0.02
    np.testing.assert_allclose(pictures, wanted, atol=1e-4)
  assert (Pipeline(folder).negative_ids("") == NO_TEXT).all()


def sampled(model, folder, negatives=("",), steps=10):
  """What this package makes of the prompts under each negative prompt, and the noise that it starts from."""
  starts = np.random.default_rng(0).normal(size=(2, 4, 8, 8)).astype("f4")
  plan, reads = images.plan_of(folder, "", steps, 4.0), Pipeline(folder)
  run = images.make_sampling(model.forward, plan)
  ids, numbers = reads.ids(PROMPTS), jnp.arange(2)
  found = [run(model.params, ids, reads.negative_ids(one).repeat(2, 0), starts, numbers) for one in negatives]
  return [np.asarray(one).transpose(0, 2, 3, 1) for one in found], torch.tensor(starts)


def theirs(made, starts, steps, negative=None):
  """What diffusers makes of them."""
  with torch.no_grad():
    return made(PROMPTS, num_inference_steps=steps, guidance_scale=4.0, latents=starts, output_type="np",
                negative_prompt=negative and [negative] * 2).images  # fmt: skip


def batch_of(folder):
  random = np.random.default_rng(0)
  return {
    "pixel_values": random.uniform(-1, 1, size=(2, 3, 8, 8)).astype("f4"),
    "input_ids": Pipeline(folder).ids(PROMPTS),
    "time_ids": np.array([[31, 20, 3, 0, 8, 8], [8, 17, 0, 4, 8, 8]], "f4"),
    "weight": np.ones(2, "f4"),
    "index": np.arange(2, dtype="i4"),
  }


def test_the_loss_under_texts_and_sizes():
  """As train_text_to_image_sdxl.py of diffusers computes it, from the same noise."""
  made, folder = pipelines.xl_pipeline()
  task = tasks.make("denoising").of_model(folder)
  model, batch, key = peftjax.load(folder), batch_of(folder), jax.random.key(3)
  first, second = jax.random.split(key)
  total, count, _ = jax.jit(lambda params: task.loss(lambda one: model.forward(params, one), batch, key))(model.params)
  drawn = torch.tensor(np.asarray(jax.random.normal(first, (2, 4, 8, 8))))
  timesteps, noise = (torch.tensor(np.asarray(one)) for one in task.draw(second, jnp.zeros((2, 4, 8, 8))))
  with torch.no_grad():
    latent = made.vae.encode(torch.tensor(batch["pixel_values"])).latent_dist
    latents = (latent.mean + latent.std * drawn) * 0.13
    states, _, pooled, _ = made.encode_prompt(PROMPTS, device="cpu", do_classifier_free_guidance=False)
    told = {"text_embeds": pooled, "time_ids": torch.tensor(batch["time_ids"])}
    schedule = diffusers.DDPMScheduler.from_config(made.scheduler.config)
    noisy = schedule.add_noise(latents, noise, timesteps)
    predicted = made.unet(noisy, timesteps, states, added_cond_kwargs=told).sample
  np.testing.assert_allclose(total / count, ((predicted - noise) ** 2).mean(), rtol=1e-5)


def test_a_saved_model_is_read_by_diffusers(tmp_path):
  """Layers of a text encoder are written though they are read from inside."""
  made, folder = pipelines.xl_pipeline()
  model = peftjax.load(folder)
  model.save(tmp_path / "saved")
  again = type(made).from_pretrained(tmp_path / "saved")
  for name in ("unet", "text_encoder", "text_encoder_2", "vae"):
    theirs, ours = (getattr(one, name).state_dict() for one in (made, again))
    for key, tensor in theirs.items():
      torch.testing.assert_close(ours[key], tensor, rtol=0, atol=0)


def test_a_lora_file_of_all_three(tmp_path):
  """`load_lora_weights` of diffusers gives the same pictures."""
  _, folder = pipelines.xl_pipeline()
  base = peftjax.load(folder)
  targets = ("unet.*.to_q", "text_encoder.*.q_proj", "text_encoder_2.*.v_proj")
  model = acting(base.add(methods.LoRA(rank=3, alpha=5, targets=targets), jax.random.key(1)))
  lora_files.save(model, tmp_path / "lora")
  (found,), starts = sampled(model, folder, steps=3)
  made = diffusers.StableDiffusionXLPipeline.from_pretrained(folder)
  made.set_progress_bar_config(disable=True)
  before = theirs(made, starts, 3)
  made.load_lora_weights(tmp_path / "lora")
  wanted = theirs(made, starts, 3)
  assert np.abs(wanted - before).max() > 0.05
  np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.fixture
def config(tmp_path, monkeypatch):
  monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path / "cache"))
  _, folder = pipelines.xl_pipeline()
  made = dreambooth.short(dreambooth.config_of(dreambooth.write_material(tmp_path / "pictures")), model__remat="none")
  made.model.path = str(folder)
  made.input.update({"caption_dropout": 0.0, "flip": False, "random_crop": False, "size": 0})
  made.method.targets = ("unet.*.to_q", "unet.add_embedding.linear_1")
  made.train.update({"steps": 3, "batch_size": 2})
  return made


def test_what_encoders_give_once_is_the_same_loss(config):
  """A batch of pictures and captions, and one of latents, states and pooled texts in their place."""
  run = loop.make_run(config)
  config.input.cache = ("latents", "text")
  kept = loop.make_run(config)
  batch, other = next(run.loaders.train), next(kept.loaders.train)
  assert {name: one.shape for name, one in kept.loaders.inputs.training().batch_spec(2).items()} == {
    name: one.shape for name, one in other.items()
  }
  assert {"text_pooled", "time_ids", "prior_text_states"} <= other.keys() and "input_ids" not in other
  loss = jax.jit(lambda batch: run.task.loss(lambda one: run.model(**one), batch, jax.random.key(3))[:2])
  (total, count), (other_total, other_count) = loss(batch), loss(other)
  np.testing.assert_allclose(other_total / other_count, total / count, rtol=1e-5)


def test_a_training_moves_what_it_is_told_to(config, tmp_path):
  summary = loop.train(config, tmp_path / "run")
  moved = {
    name.split(".")[1]
    for name, leaf in dreambooth.leaves_in(tmp_path / "run").items()
    if "lora_b" in name and np.abs(leaf).max() > 0
  }
  assert summary["step"] == 3 and {"add_embedding", "down_blocks", "up_blocks"} <= moved


def test_sizes_of_a_picture(config, tmp_path):
  """Height and width as in the file; what is cut out is counted in the resized picture, and from the other side where
  left and right are exchanged."""
  run = loop.make_run(config)
  inputs, picture = run.loaders.inputs, Image.new("RGB", (40, 16))
  buffer = tmp_path / "wide.png"
  picture.save(buffer)
  example = {"image": buffer.read_bytes()}
  assert inputs.raw(example, "", "latents", None)["time_ids"].tolist() == [16, 40, 0, 6, 8, 8]
  inputs.options.random_crop, inputs.options.flip = True, True
  lefts = {int(inputs.raw(example, "", "latents", np.random.default_rng(one))["time_ids"][3]) for one in range(40)}
  assert min(lefts) <= 2 and max(lefts) >= 10 and lefts <= set(range(13))
  wide = np.zeros((16, 40, 3), np.uint8)
  wide[:, :, 0] = np.arange(40) * 6
  example["image"] = wide
  for seed in range(8):
    found = inputs.raw(example, "", "latents", np.random.default_rng(seed))
    row = (found["pixel_values"][0, 0] + 1) * 127.5 / 12  # the resized picture's column, about
    shown = 19.5 - row if row[0] > row[-1] else row  # exchanged, it counts from the other side
    assert abs(shown[0] - found["time_ids"][3]) < 1.5


@pytest.mark.parametrize(
  ("component", "fields", "message"),
  [
    (
      "text_encoder_2",
      {"hidden_size": 15},
      "cross_attention_dim=34, and text_encoder/.* has hidden_size=20 and text_e",
    ),
    ("text_encoder_2", {"architectures": ["CLIPTextModel"]}, "reads pooled texts; expected \\['CLIPTextModelWithPro"),
    ("unet", {"projection_class_embeddings_input_dim": 30}, "expected 10 of the pooled text and 6 times addition_time"),
    ("text_encoder_2", {"max_position_embeddings": 8}, "text_encoder reads 9 tokens and text_encoder_2 reads 8 tokens"),
  ],
)
def test_what_does_not_fit_is_one_line(tmp_path, component, fields, message):
  _, folder = pipelines.xl_pipeline()
  copy = shutil.copytree(folder, tmp_path / "copy")
  path = copy / component / "config.json"
  path.write_text(json.dumps({**read_json(path), **fields}))
  with pytest.raises(UserError, match=message):
    _ = Texts.of(copy), Pipeline(copy).length


def test_a_denoiser_of_two_text_encoders_needs_both(tmp_path):
  _, folder = pipelines.xl_pipeline()
  copy = shutil.copytree(folder, tmp_path / "copy")
  index = read_json(copy / "model_index.json")
  (copy / "model_index.json").write_text(json.dumps({**index, "text_encoder_2": [None, None]}))
  with pytest.raises(UserError, match="no component 'text_encoder_2'; its denoiser is told by text_encoder and text_e"):
    images.plan_of(copy)
