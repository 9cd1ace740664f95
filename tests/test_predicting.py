"""What a finished run says of new examples is what it said of the same ones when it was scored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from peftjax import cli
from peftjax.data import open_data
from peftjax.errors import UserError
from peftjax.new_examples import rows_of
from peftjax.predicting import predict
from peftjax.train import finished, loop
from tests.data.language_folders import LLAMA, T5, language_folder, reversal_data
from tests.data.pictures import coloured
from tests.data.tiny import jsonl
from tests.tasks import small
from tests.train.conftest import config, material
from tests.train.test_pictures import VIT

__all__ = ["config", "material"]  # fixtures of the training tests


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
  monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path_factory.getbasetemp() / "predicting_cache"))


def trained(folder, *flags):
  assert cli.main(["train", f"--workdir={folder / 'run'}", "--json", *flags]) == 0
  return folder / "run"


def said(capsys, run, *flags):
  capsys.readouterr()
  assert cli.main(["predict", f"--workdir={run}", *flags]) == 0
  printed = capsys.readouterr()
  assert "read only" not in printed.err
  return [json.loads(line) for line in printed.out.splitlines()]


def kept(run, split="validation"):
  with np.load(run / f"predictions-{split}.npz") as rows:
    return dict(rows)


def test_classes_of_texts(config, tmp_path, capsys):
  loop.train(config, tmp_path / "run")
  source = open_data(config.data.name).split("validation")
  texts = [source[at]["text"] for at in range(len(source))]
  (tmp_path / "new.txt").write_text("\n".join([*texts, ""]))
  rows = said(capsys, tmp_path / "run", f"--text={texts[0]}", f"--file={tmp_path / 'new.txt'}")
  assert [one["text"] for one in rows] == [texts[0], *texts]
  assert [one["label"] for one in rows[1:]] == [("bad", "good")[at] for at in kept(tmp_path / "run")["prediction"]]
  _, _, model = finished.load_model(tmp_path / "run")
  ids = np.array([[2, *(model_id(config, word) for word in texts[0].split()), 3]])
  logits = np.asarray(model(input_ids=ids, attention_mask=np.ones_like(ids))["logits"][0], np.float64)
  assert rows[0]["probability"] == pytest.approx(np.max(np.exp(logits) / np.exp(logits).sum()), rel=1e-5)
  assert rows[0]["probabilities"] == pytest.approx(rows[1]["probabilities"], rel=1e-5)


def model_id(config, word):
  words = (Path(config.model.path) / "vocab.txt").read_text().splitlines()
  return words.index(word) if word in words else words.index("[UNK]")


@pytest.mark.parametrize(
  ("labels", "expected"), [([["a"], ["b"], ["a", "b"], []], "labels"), ([0.5, 1.5, 2.5, 0.25], "value")]
)
@pytest.mark.slow
def test_several_labels_and_numbers(labels, expected, tmp_path, capsys):
  model = small.encoder(tmp_path / "model")
  random = np.random.default_rng(0)
  rows = [{"text": f"{small.text(random, 5)} {at}", "label": labels[at % 4]} for at in range(60)]
  data = jsonl(tmp_path / "rows.jsonl", rows)
  run = trained(tmp_path, *small.flags(model, f"jsonl:{data}"))
  found = said(capsys, run, f"--file={data}")
  assert [one["text"] for one in found] == [one["text"] for one in rows]
  source = open_data(f"jsonl:{data}").split("validation")
  of = {one["text"]: one[expected] for one in found}
  wanted = kept(run)["prediction"]
  mine = [of[source[at]["text"]] for at in range(len(source))]
  if expected == "value":
    assert mine == pytest.approx(wanted.tolist(), rel=1e-5)
  else:
    assert [sorted(one) for one in mine] == [[name for name, on in zip("ab", row) if on] for row in wanted]


def test_tags_of_words(tmp_path, capsys):
  model = small.encoder(tmp_path / "model")
  words = ["ada", "wrote", "notes", "in", "london"]
  rows = [{"tokens": words[: 2 + at % 4], "tags": ["B-P", "O", "O", "O", "B-L"][: 2 + at % 4]} for at in range(40)]
  data = jsonl(tmp_path / "rows.jsonl", rows)
  run = trained(tmp_path, *small.flags(model, f"jsonl:{data}", **{"data.max_length": 6}))
  first, cut = said(capsys, run, "--text=ada wrote, in london", f"--text={'notes ' * 9}")
  assert first["tokens"] == ["ada", "wrote", ",", "in", "london"]  # one more than the row has room for
  _, _, model = finished.load_model(run)
  ids = np.array([[small.VOCABULARY.index(one) for one in ("[CLS]", "ada", "wrote", ",", "in", "[SEP]")]])
  best = np.asarray(model(input_ids=ids, attention_mask=np.ones_like(ids))["logits"][0]).argmax(axis=-1)
  names = json.loads((run / "config.json").read_text())["resolved"]["label_names"]
  assert first["tags"] == [*(names[at] for at in best[1:5]), None]
  assert cut["tags"][4:] == [None] * 5


def test_answers_in_texts(tmp_path, capsys):
  data = small.squad(tmp_path / "squad" / "train.json", contexts=6)
  small.squad(tmp_path / "squad" / "dev.json", contexts=6, seed=1)
  flags = small.flags(
    small.encoder(tmp_path / "model"), f"squad:{data.parent}", **{"train.final_splits": "('validation',)"}
  )
  run = trained(tmp_path, *flags)
  source = open_data(f"squad:{data.parent}").split("validation")
  asked = [{name: source[at][name] for name in ("question", "context")} for at in range(len(source))]
  found = said(capsys, run, f"--file={jsonl(tmp_path / 'new.jsonl', asked)}")
  assert [one["answer"] for one in found] == kept(run)["prediction"].tolist()
  assert cli.main(["predict", f"--workdir={run}", "--text=where?"]) == 2
  assert "no 'question' in it" in capsys.readouterr().err


@pytest.mark.slow
def test_hidden_tokens(tmp_path, capsys):
  random = np.random.default_rng(0)
  data = jsonl(tmp_path / "rows.jsonl", [{"text": f"{small.text(random, 9)} {at}"} for at in range(60)])
  model = small.encoder(tmp_path / "model", "BertForMaskedLM")
  run = trained(tmp_path, *small.flags(model, f"jsonl:{data}", **{"task.name": "masked_lm"}))
  (one,) = said(capsys, run, "--text=ada [MASK] the [MASK]")
  assert [len(place) for place in one["tokens"]] == [5, 5]
  shares = list(one["tokens"][0].values())
  assert set(one["tokens"][0]) <= set(small.VOCABULARY) and shares == sorted(shares, reverse=True) and sum(shares) < 1
  assert cli.main(["predict", f"--workdir={run}", "--text=ada"]) == 2
  assert "no [MASK] in 'ada'" in capsys.readouterr().err


@pytest.mark.slow
def test_embeddings(tmp_path, capsys):
  data = small.pairs(tmp_path / "pairs.csv", rows=40)
  model = small.encoder(tmp_path / "model")
  run = trained(tmp_path, *small.flags(model, f"pairs:{data}", **{"task.name": "contrastive"}))
  source = open_data(f"pairs:{data}").split("validation")
  pairs = [{name: source[at][name] for name in ("text", "text_pair")} for at in range(len(source))]
  found = said(capsys, run, f"--file={jsonl(tmp_path / 'new.jsonl', pairs)}")
  assert [one["cosine"] for one in found] == pytest.approx(kept(run)["cosine"].tolist(), rel=1e-5)
  (alone,) = said(capsys, run, f"--text={pairs[0]['text']}")
  assert alone["embedding"] == pytest.approx(found[0]["embedding"], rel=1e-5) and "cosine" not in alone


@pytest.mark.slow
@pytest.mark.parametrize("hf_config", [LLAMA, T5], ids=["llama", "t5"])
def test_what_a_language_model_writes(hf_config, tmp_path, capsys):
  model = language_folder(tmp_path / "model", hf_config)
  flags = small.flags(
    model,
    reversal_data(tmp_path / "data"),
    **{"model.init": "random", "method.name": "full", "data.max_length": 40, "data.buckets": "()", "train.steps": 6,
       "task.generate": True, "task.generate_examples": 0, "task.max_new_tokens": 6, "train.batch_size": 8,
       "train.final_splits": "('validation',)"},
  )  # fmt: skip
  run = trained(tmp_path, *[one for one in flags if "rank" not in one])
  wanted = [json.loads(line) for line in (run / "generations-validation.jsonl").read_text().splitlines()]
  found = said(capsys, run, *(f"--text={one['prompt']}" for one in wanted))
  assert [one["text"] for one in found] == [one["text"] for one in wanted]


def test_pictures(tmp_path, capsys):
  (tmp_path / "vit").mkdir()
  (tmp_path / "vit" / "config.json").write_text(json.dumps(VIT))
  coloured(tmp_path / "data", {"train": 4, "val": 2})
  flags = (f"model.path={tmp_path / 'vit'}", "model.init=random", f"data.name=folder:{tmp_path / 'data'}",
           "method.name=full", "train.batch_size=6", "train.steps=4", "train.tensorboard=False")  # fmt: skip
  run = trained(tmp_path, *(f"--config.{one}" for one in flags))
  found = said(capsys, run, f"--file={tmp_path / 'data' / 'val'}")
  assert [one["file"] for one in found] == sorted(str(one) for one in (tmp_path / "data" / "val").rglob("*.png"))
  by_file = {one["file"]: one["label"] for one in found}
  source = open_data(f"folder:{tmp_path / 'data'}").split("validation")
  names = open_data(f"folder:{tmp_path / 'data'}").label_names
  mine = [names.index(by_file[source[at]["where"]]) for at in range(len(source))]
  assert mine == kept(run)["prediction"].tolist()


def test_files_that_are_none(tmp_path):
  (tmp_path / "reviews.txt").write_text("a\n")
  (tmp_path / "notes.pdf").write_text("a\n")
  (tmp_path / "empty").mkdir()
  wrong = {"review.txt": "did you mean 'reviews.txt'", "notes.pdf": "expected .txt", "empty": "no picture or recording"}
  for name, words in wrong.items():
    with pytest.raises(UserError, match=words):
      list(rows_of((), [str(tmp_path / name)]))
  with pytest.raises(UserError, match="by --text or --file"):
    predict(tmp_path)


def test_lines_of_a_text_file_end_as_pythons_own(tmp_path):
  path = tmp_path / "new.txt"
  path.write_bytes("\ufeffone\u2028and\x0bstill one\x85\ntwo\r\n\nthree".encode())
  with path.open(encoding="utf-8-sig") as file:
    lines = [line.rstrip("\n") for line in file]
  rows = [(row["text"], where) for row, where in rows_of((), [str(path)])]
  assert rows == [(lines[at - 1], f"{path}:{at}") for at in (1, 2, 4)]
  path.write_bytes(b"caf\xe9\n")
  with pytest.raises(UserError, match=r"new\.txt: not UTF-8: byte 0xe9"):
    list(rows_of((), [str(path)]))
