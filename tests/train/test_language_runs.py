"""Whole runs of language models by config: from nothing but config.json, packed, generating, classifying."""

from __future__ import annotations

import json
import shutil

import pytest

from peftjax import config as configs
from peftjax.data import load_tokenizer
from peftjax.errors import UserError
from peftjax.train import finished
from peftjax.train.loop import train
from tests.data.language_folders import LLAMA, T5, language_folder, reversal_data, reversals
from tests.data.tiny import jsonl


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  folder = tmp_path_factory.mktemp("lm")
  return {name: language_folder(folder / name, one) for name, one in (("llama", LLAMA), ("t5", T5))}


@pytest.fixture
def config(tmp_path, monkeypatch, folders):
  monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path / "cache"))
  config = configs.default()
  config.data.name = reversal_data(tmp_path / "data")
  config.data.update({"max_length": 40, "buckets": ()})
  config.model.path = str(folders["llama"])
  config.model.init = "random"
  config.optim.learning_rate = 1e-2
  config.train.update({"batch_size": 8, "steps": 20, "log_every": 5, "tensorboard": False})
  return config


def rows(folder) -> list[dict]:
  return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_t5_is_trained_from_config_json_exported_and_adapted(config, folders, tmp_path):
  config.model.path = str(folders["t5"])
  config.method.name = "full"
  config.task.generate = config.train.eval_first = True
  config.task.generate_examples, config.task.max_new_tokens = 4, 8
  config.task.text_metrics = ("exact_match", "character_error_rate")
  summary = train(config, tmp_path / "run")
  assert summary["task"] == "seq2seq_lm"
  first, last = (row for row in rows(tmp_path / "run") if row.get("split") == "validation")
  assert first["step"] == 0 and last["step"] == 20
  assert last["loss"] < 0.9 * first["loss"]
  assert {"exact_match", "character_error_rate", "perplexity"} <= set(last)
  written = [json.loads(line) for line in (tmp_path / "run" / "generations-validation.jsonl").read_text().splitlines()]
  before = (tmp_path / "run" / "generations-validation-before.jsonl").read_text().splitlines()
  assert len(written) == len(before) == 4
  assert all(row["target"] == row["prompt"][::-1] for row in written)
  again = finished.evaluate_run(tmp_path / "run")["metrics"]["validation"]
  assert again["loss"] == pytest.approx(last["loss"], rel=1e-5)
  assert again["character_error_rate"] == pytest.approx(last["character_error_rate"])

  finished.export(tmp_path / "run", "merged", tmp_path / "pretrained")
  assert load_tokenizer(tmp_path / "pretrained").eos_id == 1
  config.model.path, config.model.init = str(tmp_path / "pretrained"), "pretrained"
  config.method.name = "lora"
  config.train.steps = 2
  train(config, tmp_path / "adapted")
  start = next(row for row in rows(tmp_path / "adapted") if row.get("split") == "validation")
  assert start["loss"] == pytest.approx(last["loss"], rel=1e-4)


def test_continued_pretraining_is_packed_and_learns_every_token(config, tmp_path):
  texts = [{"text": row["source"] + " ; " + row["target"]} for row in reversals(40)]
  jsonl(tmp_path / "texts" / "train.jsonl", texts)
  jsonl(tmp_path / "texts" / "validation.jsonl", texts[:7])
  config.data.name = f"jsonl:{tmp_path / 'texts'}"
  config.data.packing = True
  config.method.name = "full"
  config.train.batch_size = 4
  config.train.eval_every = 5
  assert train(config, tmp_path / "run")["task"] == "causal_lm"
  losses = [row["loss"] for row in rows(tmp_path / "run") if row.get("split") == "validation"]
  assert losses[-1] < 0.9 * losses[0]
  config.task.generate = True
  with pytest.raises(UserError, match="a text without a prompt"):
    train(config, tmp_path / "other")


def test_a_decoder_answers_prompts_and_a_packed_run_resumes_bitwise(config, tmp_path):
  config.data.packing = True
  config.train.update({"batch_size": 4, "steps": 8, "save_every": 4})
  config.method.name = "lora"
  config.task.generate = True
  config.task.max_new_tokens = 6
  summary = train(config, tmp_path / "whole")
  assert summary["task"] == "causal_lm"
  final = rows(tmp_path / "whole")
  for path in ("summary.json", "checkpoints/8"):
    target = tmp_path / "whole" / path
    target.rename(tmp_path / path.replace("/", "-"))
  train(config, tmp_path / "whole")
  assert rows(tmp_path / "whole") == final


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_an_end_token_beyond_the_table_is_said_before_the_first_update(config, folders, tmp_path, family):
  """Its label would make every loss NaN."""
  shutil.copytree(folders[family], tmp_path / "model")
  for name, changed in (("config.json", {"eos_token_id": 32000}), ("tokenizer_config.json", {"eos_token": None})):
    path = tmp_path / "model" / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
  config.model.path = str(tmp_path / "model")
  with pytest.raises(UserError, match="a text ends with token 32000, .* and the model embeds 300"):
    train(config, tmp_path / "run")
  assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_what_cannot_be_written_for_is_said_before_the_first_update(config, tmp_path):
  """Neither the length, nor a shifted set without prompts, nor too few positions are found out after the last step."""
  config.task.generate = True
  config.train.update({"steps": 2, "save_every": 1})
  pairs = [{"source": row["source"], "target": row["target"]} for row in reversals(9)]
  for split in ("train", "test"):
    jsonl(tmp_path / "plain" / f"{split}.jsonl", [{"text": row["source"]} for row in pairs])
    jsonl(tmp_path / "empty" / f"{split}.jsonl", [*pairs, {"source": "", "target": "a"}])
  for fields, message in (
    ({"task.max_new_tokens": 0}, r"max_new_tokens"),
    ({"task.num_beams": 0}, r"num_beams"),
    ({"data.shifted": (f"jsonl:{tmp_path / 'plain'}",)}, r"data\.shifted|without a prompt"),
    ({"data.separator": "", "data.shifted": (f"jsonl:{tmp_path / 'empty'}",)}, "example 9: an empty prompt"),
  ):
    other = config.copy_and_resolve_references()
    other.update_from_flattened_dict(fields)
    with pytest.raises(UserError, match=message):
      train(other, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists(), fields


def test_retained_text_is_not_written_for_and_shifted_sets_are(config, tmp_path):
  config.task.generate = True
  config.task.max_new_tokens = config.task.generate_examples = 3
  config.train.update({"steps": 2, "predictions": False})
  texts = [{"text": row["source"] + " ; " + row["target"]} for row in reversals(9)]
  for split in ("train", "test"):
    jsonl(tmp_path / "retained" / f"{split}.jsonl", texts)
    jsonl(tmp_path / "shifted" / f"{split}.jsonl", reversals(5))
  config.data.retained = f"jsonl:{tmp_path / 'retained'}"
  config.data.shifted = (f"jsonl:{tmp_path / 'shifted'}",)
  summary = train(config, tmp_path / "run")
  assert set(summary["metrics"]) == {"validation", "shifted", "retained"}
  assert {path.name for path in (tmp_path / "run").glob("generations-*")} == {
    "generations-validation.jsonl", "generations-shifted.jsonl"}  # fmt: skip
  assert set(finished.evaluate_run(tmp_path / "run")["metrics"]) >= {"validation", "shifted", "retained"}


def test_text_classification_on_a_decoder(config, tmp_path):
  words = {"good": "a b", "bad": "f g"}
  texts = [{"text": f"{words[label]} {index}", "label": label} for index in range(30) for label in words]
  jsonl(tmp_path / "texts" / "train.jsonl", texts)
  jsonl(tmp_path / "texts" / "validation.jsonl", texts[:11])
  config.data.name = f"jsonl:{tmp_path / 'texts'}"
  config.method.name = "lora"
  config.train.steps = 30
  assert train(config, tmp_path / "run")["task"] == "text_classification"
  assert rows(tmp_path / "run")[-1]["accuracy"] == 1.0


def train_with(config, folder, override):
  configs.apply(config, override)
  return train(config, folder)


def test_settings_that_do_not_fit_are_said(config, tmp_path, folders):
  for key, value, message in (
    ("model.init", "rnadom", "did you mean 'random'"),
    ("task.text_metrics", "('bleuu',)", "did you mean 'bleu'"),
    ("task.name", "text_classification", "holds data for 'seq2seq_lm'"),
    ("model.init", "pretrained", "no .*safetensors"),
  ):
    other = config.copy_and_resolve_references()
    other.task.generate = True
    with pytest.raises(UserError, match=message):
      train_with(other, tmp_path / "run", f"{key}={value}")
