"""A label that an example lacks, or that is none of the header's, is named with the example."""

from __future__ import annotations

import pickle
from decimal import Decimal

import jax
import numpy as np
import pytest

from peftjax import config, tasks
from peftjax.data import EvalLoader, Loaders
from peftjax.data.inputs.base import Input
from peftjax.data.sources.types import Dataset, Header, HiddenLabel, WrongExample
from peftjax.errors import UserError
from peftjax.train import run


class Numbers(Input):
  """One number an example."""

  def spec(self, rows, length):
    return {"x": jax.ShapeDtypeStruct((rows,), np.dtype(np.float32))}

  def encode(self, example, rng):
    return {"x": example["x"]}


def batch(header, *examples):
  task = tasks.make("text_classification", "ab")
  return Numbers(config.default(), header, task).batch(examples, np.array([7, 9, -1]), 0, [None] * len(examples))


CLASSES = Header("own", label_names=("a", "b"), fields=("x", "label"), label_kind="class")
SEVERAL = Header("own", label_names=("a", "b"), fields=("x", "label"), label_kind="classes")
VALUES = Header("own", fields=("x", "label"), label_kind="number")


@pytest.mark.parametrize(
  ("header", "last", "said"),
  [
    (CLASSES, {"x": 1.0}, "example 9 of own has no label; it holds x"),
    (CLASSES, {"x": 1.0, "label": 2}, "example 9 of own has the label 2; expected 0 to 1, as 2 are named"),
    (CLASSES, {"x": 1.0, "label": -1}, "example 9 of own has the label -1"),
    (CLASSES, {"x": 1.0, "label": 0.5}, "example 9 of own has the label 0.5; expected a whole number, 0 to 1"),
    (CLASSES, {"x": 1.0, "label": float("inf")}, "example 9 of own has the label inf; a finite number was expected"),
    (CLASSES, {"x": 1.0, "label": None}, "example 9 of own has the label None; expected its place among a, b"),
    (CLASSES, {"x": 1.0, "label": "a"}, "example 9 of own has the label 'a'; expected its place among a, b"),
    (CLASSES, {"x": 1.0, "label": [0, 1]}, r"example 9 of own has the label \[0, 1\]; expected its place among a, b"),
    (VALUES, {"x": 1.0, "label": float("nan")}, "example 9 of own has the label nan; a finite number was expected"),
    (VALUES, {"x": 1.0, "label": 1e39}, r"example 9 of own has the label 1e\+39; a finite number was expected"),
    (VALUES, {"x": 1.0, "label": None}, "example 9 of own has the label None; expected a number"),
    (VALUES, {"x": 1.0, "label": [1, 2]}, r"example 9 of own has the label \[1, 2\]; expected a number"),
    (SEVERAL, {"x": 1.0, "label": [0.5, 1]}, r"9 of own has the label \[0.5, 1\]; expected 2 zeros and ones, one for"),
    (SEVERAL, {"x": 1.0, "label": [0, 1, 1]}, r"example 9 of own has the label \[0, 1, 1\]; expected 2 zeros and ones"),
    (
      SEVERAL,
      {"x": 1.0, "label": 1},
      "example 9 of own has the label 1; expected 2 zeros and ones, one for each of a, b",
    ),
    (SEVERAL, {"x": 1.0, "label": None}, "example 9 of own has the label None; expected 2 zeros and ones"),
    (SEVERAL, {"x": 1.0, "label": [0, float("nan")]}, r"example 9 of own has the label \[0, nan\]; expected 2 zeros"),
  ],
)
def test_a_label_that_cannot_be_is_named_with_its_example(header, last, said):
  first = {"x": 0.5, "label": [0, 1] if header is SEVERAL else 1}
  with pytest.raises(UserError, match=said):
    batch(header, first, last)
  with pytest.raises(UserError, match=said.replace("9 of", "7 of")):
    batch(header, last, last)
  (data,) = pickle.loads(pickle.dumps([WrongExample(9, "own", ": it fails")]))  # from a process that reads ahead
  assert (data.number, data.what, str(data)) == (9, ": it fails", "example 9 of own: it fails")


def test_labels_stand_in_their_rows():
  np.testing.assert_array_equal(batch(CLASSES, {"x": 0.5, "label": 1}, {"x": 1.0, "label": 0})["labels"], [1, 0, 0])
  np.testing.assert_array_equal(batch(VALUES, {"x": 0.5, "label": 1.5}, {"x": 1.0, "label": 2})["labels"], [1.5, 2, 0])
  two = batch(SEVERAL, {"x": 0.5, "label": [True, False]}, {"x": 1.0, "label": np.array([0.0, 1.0])})["labels"]
  np.testing.assert_array_equal(two, [[1, 0], [0, 1], [0, 0]])
  odd = batch(VALUES, {"x": 0.5, "label": np.float16(1.5)}, {"x": 1.0, "label": Decimal(2)})["labels"]
  np.testing.assert_array_equal(odd, [1.5, 2, 0])


class Rows:
  """Examples whose labels a publisher keeps."""

  def __init__(self, hidden):
    self.hidden = hidden

  def __len__(self):
    return 2

  def __getitem__(self, index):
    if self.hidden:
      raise HiddenLabel(f"own: example {index} has no label")
    return {"x": 1.0, "label": index}


@pytest.mark.parametrize("hidden", [False, True])
def test_a_test_split_without_labels_is_not_scored(hidden):
  header = Header("own", label_names=("a", "b"), splits={"train": 2, "test": 2}, fields=("x", "label"))
  dataset = Dataset(**vars(header), identity={}, read=lambda name: Rows(hidden and name == "test"))
  inputs = Numbers(config.default(), header, tasks.make("text_classification", "ab"))
  loaders = Loaders(dataset, inputs, train=None, evals={"test": EvalLoader(dataset, "test", inputs, 2)})
  said = ["test was published without labels, and is not scored"]
  assert run.final_splits(config.default(), loaders) == (((), said) if hidden else (("test",), []))
