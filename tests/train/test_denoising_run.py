"""DreamBooth on a tiny pipeline: trained, killed, resumed, sampled along the way; the settings of text hold for it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from peftjax import UserError, cli, masks
from peftjax import config as config_lib
from peftjax.train import assemble, finished
from peftjax.train.loop import make_run, train
from peftjax.train.rows import read_rows
from tests.data.pictures import picture
from tests.oracles import pipelines


@pytest.fixture(scope="module")
def material(tmp_path_factory):
  """Two pictures of a subject, and three of its class with captions, one of them held out."""
  folder = tmp_path_factory.mktemp("dreambooth")
  for kind, seeds in (("dog", (0, 1)), ("dogs/train", (2, 3)), ("dogs/test", (4,))):
    (folder / kind).mkdir(parents=True)
    for seed in seeds:
      picture(31 + seed, 23, seed).save(folder / kind / f"{seed}.png")
  (folder / "dog" / "LICENSE.md").write_text("free\n")
  for split, names in (("train", "23"), ("test", "4")):
    rows = "".join(f"{name}.png,a photo of dog\n" for name in names)
    (folder / "dogs" / split / "metadata.csv").write_text(f"file_name,text\n{rows}")
  return folder


@pytest.fixture
def config(material, monkeypatch):
  monkeypatch.setenv("PEFTJAX_CACHE", str(material / "cache"))
  config = config_lib.default()
  config.model.path = str(pipelines.pipeline(small=True)[1])
  config.data.name = f"pictures:{material / 'dog'},{material / 'dogs'}"
  config.data.retained = f"pictures:{material / 'dogs'}"
  config.task.update({"name": "denoising", "eval_timesteps": 2})
  config.input.update({"caption": "a photo of sks dog", "caption_dropout": 0.2, "flip": True, "random_crop": True})
  config.method = {"name": "lora", "rank": 2, "targets": ("unet.*.to_q", "unet.*.to_v", "text_encoder.*.q_proj")}
  config.train.update({"steps": 6, "batch_size": 2, "eval_batch_size": 2, "save_every": 2, "log_every": 1,
                       "eval_every": 3, "final_splits": ("train",), "tensorboard": False})  # fmt: skip
  config.train.evaluators = ("sample",)
  config.evaluators = {"sample": {"count": 1, "steps": 2, "features": "", "prior_prompts": ("a photo of dog",)}}
  config.optim.learning_rate = 1e-2
  return config


SCHEDULER = "scheduler/scheduler_config.json"


class Killed(BaseException):
  """As if the process were gone."""


def test_killed_and_resumed_ends_with_the_same_bytes(config, tmp_path):
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  summary = train(config, whole)
  assert set(summary["metrics"]) == {"train", "retained"}
  counts = summary["parameters"]
  assert 0 < counts["trainable"] < counts["total"] / 10

  def dying(given):
    run = make_run(given)
    loader, seen = run.loaders.train, iter(range(100))

    class Ending(type(loader)):
      def __next__(self):
        if next(seen) == 4:
          raise Killed
        return super().__next__()

    loader.__class__ = Ending
    return run

  with pytest.raises(Killed):
    train(config, parts, dying)
  assert not (parts / "summary.json").exists()
  train(config, parts)
  names = ("metrics.jsonl", "predictions-train.npz", "samples/000003.png", "samples/000006.png")
  assert all((whole / name).read_bytes() == (parts / name).read_bytes() for name in names)
  rows = read_rows(whole / "metrics.jsonl")
  assert {"loss", "subject_loss", "prior_loss"} <= set(rows[0])
  losses = [row["loss"] for row in rows if row.get("split") == "retained"]
  assert len(losses) == 2


def leaves(config, folder, **more):
  changed = config.copy_and_resolve_references()
  changed.train.update({"evaluators": (), "eval_every": 0, "steps": 2, "save_every": 0})
  for name, value in more.items():
    section, field = name.split("__")
    changed[section][field] = value
  train(changed, folder)
  model = finished.load_model(folder)[2]
  return {name: np.asarray(leaf) for name, leaf in masks.flatten(model.params).items() if "lora_" in name}


@pytest.mark.slow
def test_remat_and_bfloat16_train_as_without(config, tmp_path):
  plain = leaves(config, tmp_path / "plain", model__remat="none", input__caption_dropout=0.0)
  full = leaves(config, tmp_path / "full", model__remat="full", input__caption_dropout=0.0)
  for name, leaf in plain.items():
    np.testing.assert_allclose(full[name], leaf, atol=2e-5)
  half = leaves(config, tmp_path / "half", model__compute_dtype="bfloat16", input__caption_dropout=0.0)
  moved = np.concatenate([np.ravel(leaf) for name, leaf in plain.items() if "lora_b" in name])
  near = np.concatenate([np.ravel(leaf) for name, leaf in half.items() if "lora_b" in name])
  assert np.corrcoef(moved, near)[0, 1] > 0.9


def test_pictures_are_sampled_by_the_command_line(config, material, tmp_path, capsys):
  changed = config.copy_and_resolve_references()
  changed.train.update({"evaluators": (), "eval_every": 0, "steps": 2})
  train(changed, tmp_path / "run")
  finished.export(tmp_path / "run", "peft", tmp_path / "lora")
  flags = ["--prompt=a photo of sks dog|a red cat", "--count=2", "--steps=2", "--sampler=euler", "--seed=7", "--json"]
  code = cli.main(["sample", f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'by_run'}", "--before", *flags])
  assert code == 0, capsys.readouterr().err
  told = json.loads(capsys.readouterr().out)
  assert told["seeds"] == [7, 8]
  assert (tmp_path / "by_run" / "metadata.csv").read_text().splitlines()[:2] == [
    "file_name,text,seed", "00000.png,a photo of sks dog,7",
  ]  # fmt: skip
  one, other = tmp_path / "lora", f"{tmp_path / 'lora'}=0.5"
  pipe = f"--model={config.model.path}"
  for spec, out in ((str(one), "by_adapter"), (other, "half")):
    assert cli.main(["sample", pipe, f"--adapter={spec}", f"--out={tmp_path / out}", *flags]) == 0
  first, again, half = (
    np.asarray(Image.open(tmp_path / out / "00002.png"), int) for out in ("by_run", "by_adapter", "half")
  )
  assert first.shape == (8, 8, 3)
  assert np.abs(first - again).max() <= 1
  assert np.abs(first - half).max() > 1
  capsys.readouterr()
  assert cli.main(["sample", pipe, f"--out={tmp_path / 'by_adapter'}", "--prompt=a dog", "--guidance=x"]) == 2
  assert capsys.readouterr().err == "peftjax: sample --guidance='x': expected a number\n"


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda pipe: (pipe / SCHEDULER).unlink(), "has no scheduler/scheduler_config.json"),
    (lambda pipe: _edit(pipe / "unet/config.json", in_channels=5), "in_channels=5 and out_channels=4"),
    (lambda pipe: _edit(pipe / "vae/config.json", latent_channels=3), "latent_channels=3, and unet/config.json has"),
    (lambda pipe: _edit(pipe / SCHEDULER, prediction_type="flow"), "expected one of epsilon"),
    (lambda pipe: _edit(pipe / "vae/config.json", _class_name="VAE"), "component 'vae'.*'VAE' is not supported"),
  ],
)  # fmt: skip
def test_bad_folders_are_one_line(config, tmp_path, change, message):
  shutil.copytree(config.model.path, tmp_path / "pipe")
  change(tmp_path / "pipe")
  config.model.path = str(tmp_path / "pipe")
  with pytest.raises(UserError, match=message):
    assemble.setting(config, trains=True)


def _edit(path, **changes):
  path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_settings_that_there_are_not(config):
  for field, value, message in (
    ("prior_weight", -1, "task.prior_weight=-1: expected a number of at least 0"),
    ("latents", "mod", "did you mean 'mode'"),
    ("eval_timesteps", 0, "expected a whole number from 1"),
  ):
    changed = config.copy_and_resolve_references()
    changed.task[field] = value
    with pytest.raises(UserError, match=message):
      assemble.setting(changed, trains=True)
  config.input.caption = ""
  with pytest.raises(UserError, match="input.caption is empty, and pictures of"):
    assemble.setting(config, trains=True).inputs()


def test_the_denoiser_alone_trains(config):
  config.method = {"name": "patterns", "train": ("unet.*",)}
  model = assemble.setting(config, trains=True).model(abstract=True)
  groups = masks.flatten(model.labels())
  assert {name.partition(".")[0] for name, group in groups.items() if group != masks.FROZEN} == {"unet"}
