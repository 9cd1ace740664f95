"""Sounds from the command line: classified, transcribed, drawn, resumed to the same bytes, and what is wrong said."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from peftjax import cli
from peftjax import config as configs
from peftjax.compare.dimensions.base import Trained
from peftjax.compare.dimensions.confusion import measure
from peftjax.train import loop
from tests.data.recordings import TONES, encoded, tone, toned, whisper_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp("sounds")
  whisper_folder(root / "whisper")
  toned(root / "data", {"train": 12, "val": 2, "test": 4})
  for split, count in (("train", 4), ("test", 2)):
    (root / "said" / split).mkdir(parents=True)
    rows = []
    for name, hertz in TONES.items():
      for index in range(count):
        file = f"{name}{index}.flac"
        (root / "said" / split / file).write_bytes(encoded(tone(hertz, 0.15, seed=index), kind="FLAC"))
        rows.append(f"{file},{name}")
    (root / "said" / split / "metadata.csv").write_text("\n".join(["file_name,text", *rows]) + "\n")
  return root


def overrides(folder, data, *more):
  return (
    f"model.path={folder / 'whisper'}",
    "model.init=random",
    f"data.name=folder:{folder / data}",
    "method.name=full",
    "optim.learning_rate=1e-2",
    "train.batch_size=12",
    "train.steps=12",
    "train.save_every=4",
    "train.tensorboard=False",
    "train.final_splits=('test',)",
    *more,
  )


VARIED = ("input.shift=0.03", "input.time_masks=1", "input.time_width=3", "input.mel_masks=1", "input.mel_width=3")


def test_a_run_learns_tones_draws_them_and_goes_on_where_it_died(folder, tmp_path, train_in_two):
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  config = configs.load("", overrides(folder, "data", *VARIED))
  summary = loop.train(config, whole)
  assert summary["metrics"]["test"]["accuracy"] > 0.8 and summary["main_metric"] == "accuracy"
  for name, least in (("examples", 100), ("confusion", 200)):
    assert min(Image.open(whole / f"{name}-test.png").size) > least
  with np.load(whole / "predictions-test.npz") as rows:
    matrix = measure(Trained(config, whole, summary, {"split": "test"}))
    assert np.trace(np.array(matrix["matrix"])) == rows["correct"].sum() and len(matrix["pictures"]) == 12

  train_in_two(config, parts, 7)
  for name in ("metrics.jsonl", "predictions-test.npz", "examples-test.png"):
    assert (parts / name).read_bytes() == (whole / name).read_bytes(), name


def test_what_is_said_is_learned_and_transcribed(folder, tmp_path):
  steps = ("train.steps=80", "train.save_every=0", "data.max_length=16", "data.buckets=()")
  config = configs.load("", overrides(folder, "said", *steps, "evaluators.transcribe.max_new_tokens=9"))
  summary = loop.train(config, tmp_path / "run")
  found = summary["metrics"]["test"]
  assert found["word_error_rate"] == 0 and found["character_error_rate"] == 0 and found["loss"] < 0.3
  rows = [json.loads(line) for line in (tmp_path / "run" / "transcripts-test.jsonl").read_text().splitlines()]
  assert len(rows) == 6 and {row["text"] for row in rows} == set(TONES)
  assert all(row["target"] == row["text"] and row["where"].endswith(".flac") for row in rows)


WAV = encoded(tone(seconds=0.12))


@pytest.mark.parametrize(
  ("content", "said"),
  [
    (WAV[:400], "the recording is cut off"),
    (b"no sound at all", "no WAV or FLAC file by its first bytes"),
    (encoded(np.array([0.1, np.nan], np.float32), subtype="FLOAT"), "holds NaN or infinite samples"),
    (encoded(np.zeros(0, np.float32)), "the recording has no samples; it lasts 0 seconds"),
    (WAV[:24] + bytes(4) + WAV[28:], "a sample rate of 0 Hz; expected 1,000 to 768,000"),
  ],
  ids=("cut off", "another kind", "NaN", "0 seconds", "0 Hz"),
)
def test_a_recording_that_cannot_be_used_ends_the_run_in_one_line_with_its_file(
  folder, tmp_path, capsys, content, said
):
  toned(tmp_path / "data", {"train": 4, "test": 2})
  (tmp_path / "data" / "train" / "low" / "2.wav").write_bytes(content)
  assert re.search(rf"train/low/2.wav: .*{said}", last_line(folder, tmp_path, capsys))


def test_a_folder_of_recordings_that_is_no_good_is_one_line(folder, tmp_path, capsys):
  toned(tmp_path / "data", {"train": 4, "test": 2})
  (tmp_path / "data" / "test" / "lo").mkdir()
  shutil.copy(tmp_path / "data" / "test" / "low" / "0.wav", tmp_path / "data" / "test" / "lo")
  line = last_line(folder, tmp_path, capsys)
  assert re.search(r"test/lo/0.wav: class 'lo' is none of the 3 of the training split; did you mean 'low'", line)
  shutil.move(tmp_path / "data" / "test" / "lo" / "0.wav", tmp_path / "data" / "train" / "low" / "9.mp3")
  line = last_line(folder, tmp_path, capsys)
  assert "train/low/9.mp3 is no picture or recording by its ending" in line
  shutil.rmtree(tmp_path / "data")
  (tmp_path / "data").mkdir()
  assert re.search(r"data'? holds no folder of a class", last_line(folder, tmp_path, capsys))


def last_line(folder, tmp_path, capsys):
  given = [f"--config.{one}" for one in overrides(folder, "data", f"data.name=folder:{tmp_path / 'data'}")]
  assert cli.main(["train", f"--workdir={tmp_path / 'run'}", *given]) == 2
  return capsys.readouterr().err.strip().splitlines()[-1]
