"""Letters from sound: a run learns them, goes on where it died, and predicts; what is wrong is said in one line."""

from __future__ import annotations

import json
import re

import numpy as np
import optax
import pytest

from peftjax import cli
from peftjax import config as configs
from peftjax.data.inputs.waveforms import Waveforms, frames
from peftjax.data.sources.types import Header
from peftjax.errors import UserError
from peftjax.tasks.ctc import CTC
from peftjax.train import loop
from tests.data.recordings import TONES, encoded, tone

WAV2VEC2 = {
  "model_type": "wav2vec2", "architectures": ["Wav2Vec2ForCTC"], "vocab_size": 12, "hidden_size": 16,
  "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "conv_dim": [16, 16],
  "conv_kernel": [64, 4], "conv_stride": [32, 4], "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2,
  "pad_token_id": 0,
  "hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "final_dropout": 0.0,
  "initializer_range": 0.2, "feat_extract_norm": "layer",
}  # fmt: skip
VOCAB = {"<pad>": 0, "<unk>": 1, "|": 2, **{letter: 3 + at for at, letter in enumerate("HIGLOWMDE")}}
TEXTS = {"high": "hi", "low": "low", "middle": "mid"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp("ctc")
  (root / "model").mkdir()
  (root / "model" / "config.json").write_text(json.dumps(WAV2VEC2))
  (root / "model" / "vocab.json").write_text(json.dumps(VOCAB))
  for split, count in (("train", 8), ("test", 3)):
    (root / "data" / split).mkdir(parents=True)
    rows = ["file_name,text"]
    for name, text in TEXTS.items():
      for at in range(count):
        samples = tone(TONES[name], 0.1 + 0.01 * (at % 3), 16_000, seed=at + 100 * len(split))
        (root / "data" / split / f"{name}{at}.wav").write_bytes(encoded(samples, 16_000))
        rows.append(f"{name}{at}.wav,{text}")
    (root / "data" / split / "metadata.csv").write_text("\n".join(rows) + "\n")
  return root


def overrides(folder, *more):
  return (
    f"model.path={folder / 'model'}",
    "model.init=random",
    f"data.name=folder:{folder / 'data'}",
    "input.seconds=0.13",
    "data.max_length=6",
    "method.name=full",
    "optim.learning_rate=1e-2",
    "train.batch_size=12",
    "train.steps=120",
    "train.save_every=40",
    "train.tensorboard=False",
    "train.final_splits=('test',)",
    *more,
  )


def test_a_run_learns_letters_goes_on_where_it_died_and_predicts(folder, tmp_path, train_in_two, capsys):
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  config = configs.load("", overrides(folder))
  summary = loop.train(config, whole)
  found = summary["metrics"]["test"]
  assert summary["main_metric"] == "word_error_rate" and found["word_error_rate"] == 0 == found["character_error_rate"]
  train_in_two(config, parts, 70)
  assert (parts / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()

  capsys.readouterr()
  assert cli.main(["predict", f"--workdir={whole}", f"--file={folder / 'data' / 'test' / 'metadata.csv'}"]) == 0
  said = [json.loads(line)["text"].lower() for line in capsys.readouterr().out.splitlines()]
  assert said == [text for text in TEXTS.values() for _ in range(3)]
  file = folder / "data" / "test" / "low0.wav"  # without what is said in it
  assert cli.main(["predict", f"--workdir={whole}", f"--file={file}"]) == 0
  assert json.loads(capsys.readouterr().out) == {"file": str(file), "text": "LOW"}


@pytest.mark.parametrize(
  ("given", "said"),
  [
    (("input.seconds=0.05",), "it lasts 0.1. seconds, and input.seconds=0.05"),
    (("data.max_length=2",), "its text has 3 letters, and data.max_length=2"),
    (("input.time_masks=-1",), "expected a whole number from 0 to 100"),
    (("model.path={other}",), "has no vocab.json"),
  ],
)
def test_what_is_wrong_is_said_in_one_line(folder, tmp_path, capsys, given, said):
  (tmp_path / "other").mkdir()
  (tmp_path / "other" / "config.json").write_text(json.dumps(WAV2VEC2))
  flags = [f"--config.{one.format(other=tmp_path / 'other')}" for one in overrides(folder, *given)]
  assert cli.main(["train", f"--workdir={tmp_path / 'run'}", *flags]) == 2
  assert re.search(said, capsys.readouterr().err.strip().splitlines()[-1])


def test_a_text_that_no_frames_of_its_recording_could_say_is_told(folder):
  """As long a text as can be said has a finite loss; a letter more, or one that follows its like, has none."""
  config = configs.load("", overrides(folder, "input.seconds=0.13", "data.max_length=20"))
  inputs = Waveforms(config, Header("mine", fields=("audio", "text")), CTC(), folder / "model")
  samples = tone(seconds=0.06)
  held = frames(inputs.convolutions, len(samples))
  example = {"audio": samples, "sampling_rate": 16_000, "where": "a.wav"}
  assert held == 7
  for text in ("hiholow", "hollo"):
    labels = inputs.encode({**example, "text": text}, None)["labels"]
    args = np.zeros((1, held)), labels[None], np.zeros((1, len(labels)))
    assert optax.ctc_loss(np.zeros((1, held, 12)), *args)[0] < 100
  for text, letters, repeated in (("hiholowi", 8, 0), ("holloo", 6, 2)):
    with pytest.raises(UserError, match=f"a.wav: its text has {letters} letters, of which {repeated} .* 7 frames"):
      inputs.encode({**example, "text": text}, None)
  with config.unlocked():
    config.input.shift = 0.05
  moved = Waveforms(config, Header("mine", fields=("audio", "text")), CTC(), folder / "model")
  for seed in range(8):
    found = moved.encode({**example, "text": "hiholow"}, np.random.default_rng(seed))
    assert frames(inputs.convolutions, len(found["input_values"])) >= held
