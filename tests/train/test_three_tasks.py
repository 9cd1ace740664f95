"""Question answering, masked tokens and sentence embeddings from the command line: verbs, a kill, what is exported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers

from peftjax import cli
from peftjax.data import open_data
from tests.data.tiny import jsonl
from tests.tasks import small
from tests.tasks.test_question_answering import run_qa
from tests.test_adding_a_modality import KILLED, ROOT

TASKS = ("question_answering", "masked_lm", "contrastive")
AUTO = dict(zip(TASKS, ("AutoModelForQuestionAnswering", "AutoModelForMaskedLM", "AutoModel")))
HEAD = {"question_answering": 12 * 2 + 2, "masked_lm": 0, "contrastive": 0}
STUDY = """
from peftjax.config import default

def get_config():
  config = default()
  config.compare.update({"seeds": (0,), "reference": "lora", "baseline": "", "timing_rounds": 0})
  config.compare.methods = {name: {"method": {"name": name}} for name in ("lora", "bitfit")}
  return config
"""
MAIN = dict(zip(TASKS, ("f1", "log_likelihood", "spearman")))


@pytest.fixture(scope="module")
def given(tmp_path_factory):
  """Task -> the overrides of its run."""
  folder = tmp_path_factory.mktemp("three")
  random = np.random.default_rng(0)
  rows = [{"text": f"{small.text(random, 9)} {index}"} for index in range(90)]
  bare, masked = small.encoder(folder / "bare"), small.encoder(folder / "masked", "BertForMaskedLM")
  for seed, split in enumerate(("train", "dev", "test")):
    small.squad(folder / "squad" / f"{split}.json", contexts=6, seed=seed)
  pairs = f"pairs:{small.pairs(folder / 'pairs.csv', rows=30)}"
  return {
    "question_answering": small.flags(bare, f"squad:{folder / 'squad'}", **{"task.null_threshold": 1000.0}),
    "masked_lm": small.flags(masked, f"jsonl:{jsonl(folder / 'rows.jsonl', rows)}", **{"data.max_length": 14}),
    "contrastive": small.flags(bare, pairs, **{"task.positive_score": 0.2}),
  }


@pytest.fixture(scope="module")
def runs(given, tmp_path_factory):
  """Task -> the folder of its finished run, trained when it is first asked for."""
  folder, done = tmp_path_factory.mktemp("runs"), {}

  def of(task):
    if task not in done:
      assert cli.main(["train", f"--workdir={folder / task}", *given[task]]) == 0
      done[task] = folder / task
    return done[task]

  return of


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
  monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path_factory.getbasetemp() / "three_cache"))


def said(capsys, *arguments):
  capsys.readouterr()
  assert cli.main([*arguments, "--json"]) == 0
  return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("task", TASKS)
def test_verbs_agree_on_the_task(task, given, runs, capsys):
  summary = json.loads((runs(task) / "summary.json").read_text())
  assert (summary["task"], summary["main_metric"]) == (task, MAIN[task])
  assert set(summary["metrics"]["test"]) == set(summary["metrics_spec"])
  evaluated = said(capsys, "eval", f"--workdir={runs(task)}")["metrics"]
  assert evaluated["test"] == pytest.approx(summary["metrics"]["test"], rel=1e-5, nan_ok=True)
  inspected = said(capsys, "inspect", *given[task])
  assert (inspected["trainable"], inspected["head"]) == (summary["parameters"]["trainable"], HEAD[task])
  planned = said(capsys, "plan", "--arguments", *given[task])
  assert planned["fits"] and planned["arguments_by_kind"]["batch"] > 0
  with np.load(runs(task) / "predictions-test.npz", allow_pickle=False) as rows:
    assert {len(rows[name]) for name in rows.files} == {summary["examples"]["test"]}


@pytest.mark.parametrize("task", TASKS)
def test_an_adapter_goes_to_peft_with_its_task_type(task, runs, tmp_path, capsys):
  """The adapter on transformers' own base gives the logits or states that the merged export gives."""
  for form in ("peft", "merged"):
    said(capsys, "export", f"--workdir={runs(task)}", f"--format={form}", f"--out={tmp_path / form}")
  config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
  wanted = {"question_answering": "QUESTION_ANS", "masked_lm": None, "contrastive": "FEATURE_EXTRACTION"}[task]
  assert config["task_type"] == wanted
  auto = getattr(transformers, AUTO[task])
  base, merged = auto.from_pretrained(config["base_model_name_or_path"]), auto.from_pretrained(tmp_path / "merged")
  adapted = peft.PeftModel.from_pretrained(base, tmp_path / "peft").eval()
  ids = torch.arange(2, 13)[None]
  with torch.no_grad():
    for one, other in zip(adapted(input_ids=ids)[:2], merged.eval()(input_ids=ids)[:2]):
      torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_exported_embeddings_and_answers_are_those_of_the_run(runs, given, tmp_path, capsys):
  found = {}
  for task in ("contrastive", "question_answering"):
    out = tmp_path / task
    said(capsys, "export", f"--workdir={runs(task)}", "--format=merged", f"--out={out}")
    made = getattr(transformers, AUTO[task]).from_pretrained(out).eval()
    name = next(one for one in given[task] if "data.name" in one).partition("=")[2]
    source = open_data(name).split("test")
    with np.load(runs(task) / "predictions-test.npz") as rows:
      found[task] = (made, transformers.BertTokenizerFast.from_pretrained(out), source, dict(rows))

  made, tokenizer, source, rows = found["contrastive"]
  for index in range(len(source)):
    vectors = []
    for text in (source[index]["text"], source[index]["text_pair"]):
      with torch.no_grad():
        hidden = made(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
      vectors.append(torch.nn.functional.normalize(hidden.mean(0), dim=0))
    assert rows["cosine"][index] == pytest.approx(float(vectors[0] @ vectors[1]), abs=1e-5)

  made, tokenizer, source, rows = found["question_answering"]
  several = 0
  for index in range(len(source)):
    example, windows = source[index], []
    encoded = tokenizer(example["question"].lstrip(), example["context"], truncation="only_second", max_length=24,
                        stride=8, return_overflowing_tokens=True, return_offsets_mapping=True)  # fmt: skip
    for part, ids in enumerate(encoded["input_ids"]):
      types = torch.tensor([encoded["token_type_ids"][part]])
      with torch.no_grad():
        outputs = made(input_ids=torch.tensor([ids]), token_type_ids=types)
      places = [
        one if kind == 1 else None for kind, one in zip(encoded.sequence_ids(part), encoded["offset_mapping"][part])
      ]
      windows.append((outputs.start_logits[0].numpy(), outputs.end_logits[0].numpy(), places))
    several += len(windows) > 1
    # Rows of a batch are padded here and not there, which no logit of a token depends on.
    assert rows["prediction"][index] == run_qa(windows, example["context"], 20, 30, 1000.0, True)
    assert rows["null"][index] == pytest.approx(min(start[0] + end[0] for start, end, _ in windows), abs=1e-4)
  assert several > 2 and len(set(rows["prediction"])) > 2


@pytest.mark.parametrize("task", [TASKS[1], *(pytest.param(one, marks=pytest.mark.slow) for one in TASKS[::2])])
def test_killed_and_resumed_it_ends_with_the_same_bytes(task, given, tmp_path):
  """The masks of an epoch are drawn anew; a kill between two updates changes none of them."""
  more = ["--config.train.steps=9", "--config.train.save_every=4", "--config.train.log_every=2"]
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  assert cli.main(["train", f"--workdir={whole}", *given[task], *more]) == 0
  verb = ["train", f"--workdir={parts}", *given[task], *more]
  environment = {**os.environ, "PYTHONPATH": str(ROOT)}
  command = [sys.executable, "-c", KILLED.format(verb=verb, folder=str(parts))]
  killed = subprocess.run(command, env=environment, check=False)
  assert killed.returncode == -9 and not (parts / "summary.json").exists()
  assert cli.main(verb) == 0
  for name in ("metrics.jsonl", "predictions-test.npz", "predictions-validation.npz"):
    assert (parts / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.parametrize("task", [TASKS[0], *(pytest.param(one, marks=pytest.mark.slow) for one in TASKS[1:])])
def test_a_study_has_intervals_from_its_examples(task, given, tmp_path, capsys):
  (tmp_path / "study.py").write_text(STUDY)
  study = f"--config={tmp_path / 'study.py'}"
  # With empty answers allowed, some questions are answered right and some are not.
  flags = [one for one in given[task] if not one.startswith(("--config.method.", "--config.task.null_threshold"))]
  found = said(capsys, "compare", study, f"--workdir={tmp_path / 'study'}", *flags)
  assert {row["row"] for row in found["rows"]} == {"lora", "bitfit"}
  assert all(row["low"] < row["estimate"] < row["high"] for row in found["rows"])
  records = [json.loads(line) for line in (Path(tmp_path) / "study" / "results.jsonl").read_text().splitlines()]
  assert all(record["metric"] == MAIN[task] for record in records)
