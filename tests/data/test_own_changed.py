"""Own data and inputs that change under one `identity`: lengths are measured again, and a saved position is refused."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest

from peftjax import config as configs
from peftjax import named_code, tasks
from peftjax.data import make_input, make_loaders, open_as
from peftjax.data.inputs.base import Input
from peftjax.errors import UserError

MODULE = """
import jax
import numpy as np

from peftjax.data import Input
from peftjax.data.sources import Dataset

NAMES = ("a", "b")
SPLITS = {"train": 12, "test": 6}
SCALE = 1.0


class Marks:
  def __init__(self, split):
    self.split = split

  def __len__(self):
    return SPLITS[self.split]

  def __getitem__(self, index):
    return {"marks": np.ones(index % 4 + 1), "label": index % 2}


def marks(rest, named):
  return Dataset(name="marks", label_names=NAMES, splits=SPLITS, fields=("marks", "label"), label_kind="class",
                 identity={"marks": 1}, read=Marks)


class Steps(Input):
  fills = {"x": 0.0}
  buckets = (2, 4)

  def spec(self, rows, length):
    return {"x": jax.ShapeDtypeStruct((rows, length), np.float32)}

  def length(self, example):
    return len(example["marks"])

  def encode(self, example, rng):
    return {"x": example["marks"] * SCALE}


class Unrelated:
  limit = 1
"""


@pytest.fixture
def loaders(tmp_path, monkeypatch):
  monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(sys, "dont_write_bytecode", True)

  def made(old="", new="", module="own_changing", folder="project", rest="", more=()):
    assert old in MODULE
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / f"{module}.py").write_text(MODULE.replace(old, new, 1) if old else MODULE)
    sys.modules.pop(module, None)
    importlib.invalidate_caches()
    with monkeypatch.context() as here:
      here.syspath_prepend(str(tmp_path / folder))
      given = (f"data.name={module}:marks{rest}", f"input.name={module}:Steps")
      config = configs.load("", (*given, "train.batch_size=4", "train.eval_batch_size=4", *more))
      dataset = open_as(config.data.name, config.data)
      task = tasks.from_config("text_classification", config.task, dataset)
      return make_loaders(config, dataset, lambda header: make_input(config, header, task, None))

  return made


def counted(monkeypatch):
  """The examples that are measured, by a list that grows."""
  seen: list[int] = []
  plain = Input.sizes
  monkeypatch.setattr(Input, "sizes", lambda self, examples: seen.append(len(examples)) or plain(self, examples))
  return seen


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ('"train": 12', '"train": 16'),
    ("index % 4 + 1", "4 - index % 4"),
    ('return len(example["marks"])', 'return min(len(example["marks"]), 3)'),
    ("(2, 4)", "(3, 4)"),
  ],
)
def test_lengths_of_other_data_or_code_are_measured_again(loaders, old, new, monkeypatch):
  first = loaders().train.measured.lengths
  assert first.tolist() == [1, 2, 3, 4] * 3
  seen = counted(monkeypatch)
  second = loaders(old, new).train
  lengths = [len(second._reader._source[index]["marks"]) for index in range(second.examples)]
  lengths = np.minimum(lengths, 3) if "min" in new else lengths
  assert second.measured.lengths.tolist() == list(lengths) and sum(seen) == len(lengths)
  assert loaders().train.measured.lengths.tolist() == first.tolist()


@pytest.mark.parametrize("other", [{"module": "own_other"}, {"rest": ":more"}])
def test_data_of_another_name_or_module_are_measured_for_themselves(loaders, other, tmp_path):
  loaders()
  loaders(**other)
  assert len(list((tmp_path / "cache" / "lengths").iterdir())) == 2


def test_what_is_kept_is_held_against_some_examples(loaders, tmp_path, monkeypatch):
  loaders()
  (kept,) = (tmp_path / "cache" / "lengths").iterdir()
  seen = counted(monkeypatch)
  loaders("limit = 1", "limit = 2")  # which nothing of the data or the input reads
  assert seen == [12]  # examples that were tried
  for wrong in (np.array([4, 3, 2, 1] * 3), np.array([1, 2, 3, 4] * 2), np.zeros(0)):
    np.savez(kept, lengths=wrong.astype(np.int32), cut=0, lost=0)
    assert loaders().train.measured.lengths.tolist() == [1, 2, 3, 4] * 3
    assert np.load(kept)["lengths"].tolist() == [1, 2, 3, 4] * 3


def test_nothing_is_kept_of_data_without_identity(loaders, tmp_path):
  loaders('identity={"marks": 1}', "identity={}")
  assert not (tmp_path / "cache" / "lengths").is_dir() or not list((tmp_path / "cache" / "lengths").iterdir())


@pytest.mark.parametrize(
  ("old", "new", "said"),
  [
    ('"train": 12', '"train": 9', "the number of examples of each split was {'train': 12, 'test': 6}, is {'train': 9"),
    ('"test": 6', '"test": 5', "the number of examples of each split was .* is {'train': 12, 'test': 5}"),
    ('("a", "b")', '("b", "a")', r"label_names was \['a', 'b'\], is \['b', 'a'\]"),
    ("(2, 4)", "(4,)", r"the buckets of the input was \[2, 4\], is \[4\]"),
    ('{"x": 0.0}', '{"x": -1.0}', "the fills of the input was {'x': '0.0'}, is {'x': '-1.0'}"),
  ],
)
def test_a_saved_position_does_not_fit_other_data_or_code(loaders, old, new, said):
  state = loaders().train.get_state()
  with pytest.raises(UserError, match=f"the saved position in the data does not fit: {said}"):
    loaders(old, new).train.set_state(state)
  loaders("limit = 1", "limit = 2  # more").train.set_state(state)


@pytest.mark.parametrize(
  ("old", "new", "name"), [("SCALE = 1.0", "SCALE = 3.0", "Steps"), ("np.ones", "np.zeros", "marks")]
)
def test_a_saved_position_is_of_the_code_that_a_run_names(loaders, old, new, name):
  made = loaders().train
  state = made.get_state()
  config = configs.load("", ("data.name=own_changing:marks", "input.name=own_changing:Steps"))
  assert state["code"] == named_code.code_of(config)  # told once, however it is kept
  with pytest.raises(UserError, match="^the saved position in the data does not fit: it comes from other code of "
                     f"own_changing:{name}: .* --config.data.code_changed=True"):  # fmt: skip
    loaders(old, new).train.set_state(state)
  with pytest.raises(UserError, match="the source was 'own_changing:marks', is 'own_changing:marks:more'"):
    loaders(rest=":more").train.set_state(state)
  with pytest.raises(UserError, match="the saved position in the data is none"):
    made.set_state({**state, "code": 3})


def test_a_correction_of_the_code_is_let_pass_where_it_is_said(loaders):
  state = loaders().train.get_state()
  loaders("SCALE = 1.0", "SCALE = float(1)", more=("data.code_changed=True",)).train.set_state(state)
  with pytest.raises(UserError, match="label_names was"):
    loaders('("a", "b")', '("b", "a")', more=("data.code_changed=True",)).train.set_state(state)


def test_a_position_that_an_earlier_version_saved_fits(loaders):
  made = loaders().train
  state = made.get_state()
  mine = [name for name in state["identity"] if name.startswith(("the ", "label_names"))]
  assert len(mine) == 5
  del state["code"]
  for name in mine:
    del state["identity"][name]
  state["identity"]["the code of the input"] = "as an earlier version told it"
  loaders().train.set_state({**state, "step": 2})
  state["identity"]["seed"] = 1
  with pytest.raises(UserError, match="seed was 1, is 0"):
    made.set_state(state)


def test_of_many_names_the_first_that_differs_is_said(loaders):
  old = loaders('NAMES = ("a", "b")', "NAMES = tuple('abcdefghijkl')").train.get_state()
  with pytest.raises(UserError, match="number 10 of label_names was 'k', is 'l'$"):
    loaders('NAMES = ("a", "b")', "NAMES = tuple('abcdefghijlk')").train.set_state(old)
