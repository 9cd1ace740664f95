"""`peftjax predict` of a task, an input and data of the user's own: labels of its kind, and mistakes by their place."""

from __future__ import annotations

import json

import numpy as np
import pytest

from peftjax import cli, predicting
from peftjax.data import Header
from peftjax.errors import UserError
from peftjax.new_examples import example_of, told
from tests.data.tiny import jsonl

MODULE = """
import jax
import jax.numpy as jnp
import numpy as np

import peftjax
from peftjax.data import Input
from peftjax.data.sources import Dataset
from peftjax.tasks import Metric, Task

NAMES = ("spike", "trend", "wave")


def windows(rest, named):
  rows = [{"window": np.full((2 + at % 3, 2), at % 3, np.float32), "label": [at % 2, 0, 1], "load": at / 8}
          for at in range(8)]
  return Dataset(name="windows", label_names=NAMES, splits={"train": 8, "test": 8}, fields=("window", "label", "load"),
                 label_kind="classes", identity={"windows": 1}, read=lambda split: rows)


class Steps(Input):
  buckets = (2, 4)

  def spec(self, rows, length):
    load = jax.ShapeDtypeStruct((rows,), np.float32)
    return {"x": jax.ShapeDtypeStruct((rows, length, 2), np.float32), "load": load}

  def length(self, example):
    return example["window"].shape[0]

  def encode(self, example, rng):
    return {"x": example["window"][:4], "load": np.float32(example.get("load", np.nan))}


class Events(Task):
  name, head, input, main_metric = "own_events:Events", "", "own_events:Steps", "loss"
  fields, target_fields = ("window", "label", "load"), ("load",)
  label_names, num_labels, evaluators = (), 3, ("predict",)
  specs = (Metric("loss", "per-example", value="loss", higher_is_better=False),)

  @classmethod
  def make(cls, settings, header):
    assert header.label_names == NAMES and header.label_kind == "classes"
    return cls()

  def outputs(self, batch):
    return {"": (batch["weight"].shape[0], 3)}

  def predict(self, forward, batch):
    found = forward({"x": batch["x"]})
    losses = ((found - batch["labels"]) ** 2).mean(-1) + (found[:, 0] - batch["load"]) ** 2
    return {"score": found, "loss": losses, "labels": batch["labels"]}

  def loss(self, forward, batch, key):
    return (self.predict(forward, batch)["loss"] * batch["weight"]).sum(), batch["weight"].sum(), {}

  def per_example(self, predictions):
    return {"loss": predictions["loss"]}

  def metrics(self, predictions):
    return {"loss": float(predictions["loss"].mean())}

  def answers(self, predictions, source):
    return [{"score": row, "best": row.argmax()} for row in predictions["score"]]


def net(config):
  def forward(params, x):
    return x.sum(1) @ params["head"]["kernel"]

  inputs = {"x": jax.ShapeDtypeStruct((2, 4, 2), jnp.float32)}
  return peftjax.wrap(forward, {"head": {"kernel": jnp.ones((2, 3))}}, example_inputs=inputs, head="head")
"""


DATA = type("Data", (), dict.fromkeys(("text_column", "source_column", "image_column", "audio_column"), ""))
FAILS = "AttributeError: 'list' object has no attribute 'shape' (own_events.py, line 29)"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A folder with a trained run; its code stands on the Python path."""
  folder = tmp_path_factory.mktemp("own")
  (folder / "own_events.py").write_text(MODULE)
  with pytest.MonkeyPatch.context() as here:
    here.syspath_prepend(str(folder))
    here.setenv("PEFTJAX_CACHE", str(folder / "cache"))
    names = {"model.path": "net", "data.name": "windows", "task.name": "Events"}
    flags = [f"--config.{field}=own_events:{name}" for field, name in names.items()]
    flags += ["--config.train.steps=2", "--config.train.batch_size=4", "--config.method.name=full"]
    assert cli.main(["train", f"--workdir={folder / 'run'}", "--json", "--config.train.tensorboard=False", *flags]) == 0
    yield folder


def said(run, capsys, *rows):
  """(exit code, rows on stdout, stderr) of `predict` for some rows of a table."""
  capsys.readouterr()
  data = run / "new.jsonl"
  data.write_text("".join(f"{row}\n" for row in rows))
  code = cli.main(["predict", f"--workdir={run / 'run'}", f"--file={data}", f"--trust={run}"])
  out, err = capsys.readouterr()
  return code, [json.loads(line) for line in out.splitlines()], err.replace(str(data), "new.jsonl")


def test_several_classes_and_what_an_example_is_called(run, capsys):
  code, rows, _ = said(run, capsys, '{"window": [[1, 2], [3, 4]]}', '{"window": [[0, 0]]}')
  assert code == 0 and [row["example"].rpartition("/")[2] for row in rows] == ["new.jsonl:1", "new.jsonl:2"]
  assert len(rows[0]["score"]) == 3 and rows[0]["best"] in (0, 1, 2) and rows[1]["score"] == [0, 0, 0]
  resolved = json.loads((run / "run" / "config.json").read_text())["resolved"]
  assert (resolved["label_kind"], resolved["data_label_names"]) == ("classes", ["spike", "trend", "wave"])


def test_what_is_not_finite_is_null(run, capsys):
  code, rows, _ = said(run, capsys, '{"window": [[NaN, 2]]}', '{"window": [[1e400, 2]]}')
  assert code == 0 and rows[0]["score"] == [None] * 3 == rows[1]["score"]


def test_a_target_may_be_left_out_or_given(run, capsys):
  code, rows, _ = said(run, capsys, *(f'{{"window": [[1, 2], [3, 4]]{more}}}' for more in ("", ', "load": 2.0')))
  assert code == 0 and rows[0]["score"] == rows[1]["score"]


def test_lengths_of_new_examples_are_not_kept(run, capsys):
  """What long arrays hold does not show in how they are printed, and nobody asks for the same ones again."""
  before = sorted((run / "cache" / "lengths").iterdir())
  assert said(run, capsys, '{"window": [[1, 1], [1, 1], [1, 1]]}')[0] == 0
  assert len(before) == 2 and sorted((run / "cache" / "lengths").iterdir()) == before


@pytest.mark.parametrize(
  ("row", "message"),
  [
    ('{"window": null}', "new.jsonl:2: 'window' is null"),
    ('{"windows": [[1, 2]]}', "new.jsonl:2: no 'window' in it; it holds windows"),
    (
      '{"window": [[1, 2], [3]]}',
      f"new.jsonl:2: {FAILS}; its 'window' holds lists of several lengths, which are no array",
    ),
    ('{"window": [[1], [2]]}', "new.jsonl:2: Steps.encode gave x [2, 1]; a row of its spec has x [2, 2]"),
    ('{"window": [[], []]}', "new.jsonl:2: Steps.encode gave x [2, 0]; a row of its spec has x [2, 2]"),
  ],
)
def test_mistakes_are_one_line_with_their_place(run, capsys, row, message):
  code, _, err = said(run, capsys, '{"window": [[1, 2], [3, 4]]}', row)
  assert (code, err) == (2, f"peftjax: {message}\n")


@pytest.mark.parametrize(
  ("changed", "kind", "names"),
  [
    ({"label_kind": "number"}, "number", ("spike", "trend", "wave")),
    ({"label_kind": None, "data_label_names": None, "label_names": ["a", "b"]}, "class", ("a", "b")),
    ({"label_kind": None, "data_label_names": None}, "number", ()),
    ({"fields": ["window"], "label_kind": None}, "", ("spike", "trend", "wave")),
  ],
)
def test_kinds_of_labels_of_this_and_of_earlier_versions(run, tmp_path, changed, kind, names):
  saved = json.loads((run / "run" / "config.json").read_text())
  saved["resolved"] = {name: value for name, value in (saved["resolved"] | changed).items() if value is not None}
  (tmp_path / "config.json").write_text(json.dumps(saved))
  header = predicting._header(tmp_path)
  assert (header.label_kind, header.label_names) == (kind, names)


def test_answers_of_another_number(run, monkeypatch):
  data = jsonl(run / "two.jsonl", [{"window": [[1, 2]]}, {"window": [[1, 2]]}])
  monkeypatch.setattr(predicting, "_said", lambda *given: [{}])
  with pytest.raises(UserError, match="Events.answers gave 1 rows for 2 examples"):
    predicting.predict(run / "run", files=[str(data)], trust=[str(run)])


def test_what_an_example_is_named_by():
  assert told({"text": "a", "label": 0}, "new.csv:1") == {"text": "a"}
  assert told({"image": b"", "where": "a.png"}, "a.png") == {"file": "a.png"}
  assert told({"window": np.ones(2)}, "new.csv:1") == {"example": "new.csv:1"}
  header = Header("new", fields=("window", "label"), label_kind="classes", label_names=("a", "b"))
  assert example_of({"window": [1, 2]}, "new.csv:1", header, DATA)["label"].tolist() == [0, 0]


def test_a_field_that_new_examples_may_lack():
  header = Header("new", fields=("window", "load"))
  assert example_of({"window": 1, "load": None}, "new.csv:1", header, DATA, ("load",)) == {"window": 1}
  assert example_of({"window": 1, "load": 2, "more": 3}, "new.csv:1", header, DATA, ("load",)) == {
    "window": 1,
    "load": 2,
  }
  with pytest.raises(UserError, match="new.csv:1: no 'load' in it; it holds window"):
    example_of({"window": 1}, "new.csv:1", header, DATA)


def test_the_rate_of_a_recording_goes_with_it():
  row = {"audio": [0.5], "sampling_rate": 8000, "speaker": 3}
  assert example_of(row, "a", Header("new", fields=("audio",)), DATA) == {"audio": [0.5], "sampling_rate": 8000}
