"""What frozen encoders give once: the same training without their work."""

from __future__ import annotations

import numpy as np
import pytest

from peftjax import UserError
from peftjax.train import loop
from tests.train import dreambooth


@pytest.fixture
def config(tmp_path, monkeypatch):
  monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path / "cache"))
  made = dreambooth.short(dreambooth.config_of(dreambooth.write_material(tmp_path / "pictures")), model__remat="none")
  made.input.update({"caption_dropout": 0.0, "flip": False, "random_crop": False})
  made.method.targets = ("unet.*.to_q", "unet.*.to_v")
  made.train.update({"steps": 3, "batch_size": 2})
  return made


def test_the_same_training_costs_less(config, tmp_path):
  """Two pictures of the subject and two of the class, under two captions, in an epoch of one batch."""
  plain = loop.train(config, tmp_path / "plain")
  config.input.cache = ("latents", "text")
  kept = loop.train(config, tmp_path / "kept")
  assert kept["step_flops"] < plain["step_flops"]
  for name, leaf in dreambooth.leaves_in(tmp_path / "plain").items():
    np.testing.assert_allclose(dreambooth.leaves_in(tmp_path / "kept")[name], leaf, atol=1e-5, err_msg=name)
  assert kept["metrics"]["train"]["loss"] == pytest.approx(plain["metrics"]["train"]["loss"], rel=1e-5)


def test_one_of_both(config):
  config.input.cache = ("latents",)
  config.method.targets = ("text_encoder.*.q_proj",)
  run = loop.make_run(config)
  batch = next(run.loaders.train)
  assert {name: one.shape for name, one in run.loaders.inputs.training().batch_spec(2).items()} == {
    name: one.shape for name, one in batch.items()
  }
  assert "kept of the frozen encoders: 4 of latents" in run.notes
  assert {"input_ids", "latent_mean", "prior_latent_logvar"} <= batch.keys() and "pixel_values" not in batch
  pixels = run.loaders.inputs.raw(run.loaders.dataset.split("train")[0], "", "latents", None)["pixel_values"]
  direct = run.model(vae={"x": pixels[None]})
  row = int(np.flatnonzero(batch["index"] == 0)[0])
  np.testing.assert_allclose(batch["latent_mean"][row], direct["vae"]["mean"][0], atol=1e-5)


@pytest.mark.parametrize(
  ("section", "fields", "message"),
  [
    ("input", {"cache": ("text",)}, "text changes with every update, as text_encoder.*lora_a trains"),
    ("input", {"cache": ("latents",), "flip": True}, "with input.flip=True there is no one value to keep of latents"),
    ("input", {"cache": ("text",), "caption_dropout": 0.5}, "with input.caption_dropout=0.5"),
    ("input", {"cache": ("latent",)}, "did you mean 'latents'"),
    ("input", {"cache": "text"}, "expected several, such as"),
  ],
)
def test_what_cannot_be_kept_is_one_line(config, section, fields, message):
  config.method.targets = ("text_encoder.*.q_proj",)
  config[section].update(fields)
  with pytest.raises(UserError, match=message):
    loop.make_run(config)
