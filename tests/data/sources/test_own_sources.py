"""A data set of a user's own that is not what the protocol says: one line, with the example that shows it."""

from __future__ import annotations

import pytest

from peftjax.data import open_data
from peftjax.errors import UserError

MODULE = """
import dataclasses

from peftjax.data.sources import Dataset

WHOLE = Dataset(name="marks", label_names=("low", "high"), splits={"train": 4, "test": 2}, fields=("marks", "label"),
                label_kind="class", identity={"marks": 1}, read=lambda split: [{"marks": [1.0], "label": 0}] * 4)


def changed(**fields):
  return lambda rest, named: dataclasses.replace(WHOLE, **fields)


def of(example):
  return changed(read=lambda split: [{"marks": [1.0], "label": 0}, example, {}, {}])


class Failing(list):
  def __getitem__(self, index):
    return {}["mark"]


class Broken(list):
  def __getitem__(self, index):
    raise SensorError("it is broken")


class SensorError(Exception):
  pass


class Gone(list):
  def __getitem__(self, index):
    raise FileNotFoundError(2, "No such file or directory", "marks.bin")


def reads_text(rest, named):
  return changed(columns=(named.text,))(rest, named)


def keeps(rest, named):
  return changed(read=lambda split: [{"marks": named.label, "label": 0}] * 4)(rest, named)


def copies(rest, named):
  assert dataclasses.replace(named, text="") == type(named)(label=named.label)
  return changed(columns=tuple(dataclasses.asdict(named)))(rest, named)


whole = changed()
few = changed(splits={"train": 5})
listed = changed(splits=["train", "test"])
unvalidated = changed(splits={"train": 4, "validation": 0})
counted = changed(splits={"train": 4, "test": "2"})
negative = changed(splits={"train": 4, "test": -2})
unhashable = changed(identity={"marks": {1, 2}})
unread = changed(read=None)
unsized = changed(read=iter)
empty = of({})
nothing = of(None)
more = of({"marks": [1.0], "label": 0, "where": "here", "load": 2.0})
failing = changed(read=lambda split: Failing("abcd"))
broken = changed(read=lambda split: Broken("abcd"))
gone = changed(read=lambda split: Gone("abcd"))
"""


@pytest.fixture
def marks(tmp_path, monkeypatch):
  (tmp_path / "own_marks.py").write_text(MODULE)
  monkeypatch.syspath_prepend(str(tmp_path))


def test_examples_are_those_of_the_source(marks):
  source = open_data("own_marks:whole").split("test")
  assert len(source) == 4 and list(source) == [source[3]] * 4 == [{"marks": [1.0], "label": 0}] * 4


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("listed", r"'marks' has splits=\['train', 'test'\]; expected a dict"),
    ("unvalidated", "has splits with 'validation': 0; leave a split without examples out"),
    ("counted", "has splits with 'test': '2'; expected a number of examples"),
    ("negative", "has splits with 'test': -2; expected a number of examples"),
    ("unhashable", r"identity={'marks': {1, 2}}; expected numbers, texts, lists and dicts of them"),
    ("unread", "has read=None; expected a function from a split to its examples"),
  ],
)
def test_what_is_seen_when_it_is_opened(marks, name, message):
  with pytest.raises(UserError, match=message):
    open_data(f"own_marks:{name}")


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("few", "^marks, train: it has 4 examples, and splits says 5$"),
    ("unsized", "^marks, train: TypeError: .*; expected an object with __len__ and __getitem__$"),
    ("empty", "^example 1 of marks, train has no 'marks', which its header names; it holds nothing$"),
    ("more", r"^example 1 of marks, train has 'load', which .* it out, or add it to fields=\('marks', 'label'\)$"),
    ("nothing", "^example 1 of marks, train is NoneType; expected a dict$"),
    ("failing", r"^example 1 of marks, train: KeyError: 'mark' \(own_marks.py, line 20\)$"),
    ("broken", r"^example 1 of marks, train: SensorError: it is broken \(own_marks.py, line 25\)$"),
  ],
)
def test_what_is_seen_when_it_is_read(marks, name, message):
  data = open_data(f"own_marks:{name}")
  with pytest.raises(UserError, match=message):
    _ = data.split("train")[1]


@pytest.mark.parametrize(
  ("name", "field", "value", "setting"),
  [
    ("whole", "text_column", "windw", "text_column"),
    ("reads_text", "label_column", "kind", "label_column"),
    ("whole", "label_kind", "number", "label_kind"),
    ("whole", "image_root", "here", "image_root"),
  ],
)
def test_what_is_named_and_not_read(marks, name, field, value, setting):
  with pytest.raises(UserError, match=f"^data.name='own_marks:{name}': data.{setting}='{value}' is not read by it$"):
    open_data(f"own_marks:{name}", **{field: value})


def test_what_is_named_and_read_also_later(marks):
  assert open_data("own_marks:reads_text", text_column="words").columns == ("words",)
  assert open_data("own_marks:keeps", label_column="kind").split("test")[0]["marks"] == "kind"
  assert len(open_data("own_marks:copies", label_column="kind").columns) == 9
  assert open_data("own_marks:whole").columns == ()


def test_a_fault_of_the_machine_stays_one(marks):
  """Training says of it which checkpoint is whole."""
  with pytest.raises(FileNotFoundError):
    _ = open_data("own_marks:gone").split("train")[1]
