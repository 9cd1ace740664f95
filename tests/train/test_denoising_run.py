"""DreamBooth on a tiny pipeline: trained, killed, resumed, sampled along the way; mistakes are one line."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from peftjax import UserError, cli, masks
from peftjax.train import assemble, finished
from peftjax.train.loop import make_run, train
from peftjax.train.rows import read_rows
from tests.train import dreambooth


@pytest.fixture(scope="module")
def material(tmp_path_factory):
  return dreambooth.write_material(tmp_path_factory.mktemp("dreambooth"))


@pytest.fixture
def config(material, monkeypatch):
  monkeypatch.setenv("PEFTJAX_CACHE", str(material / "cache"))
  return dreambooth.config_of(material)


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
    (lambda pipe: shutil.rmtree(pipe / "text_encoder"), "lists 'text_encoder', and there is no such folder"),
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
