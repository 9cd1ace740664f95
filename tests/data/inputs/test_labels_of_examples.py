"""A label that an example lacks, or that is none of the header's, is named with the example."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from peftjax import config, tasks
from peftjax.data import EvalLoader, Loaders
from peftjax.data.inputs.base import Input
from peftjax.data.sources.types import Dataset, Header, HiddenLabel
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
VALUES = Header("own", fields=("x", "label"), label_kind="number")


@pytest.mark.parametrize(
  ("header", "last", "said"),
  [
    (CLASSES, {"x": 1.0}, "example 9 of own has no label; it holds x"),
    (CLASSES, {"x": 1.0, "label": 2}, "example 9 of own has the label 2; expected 0 to 1, as 2 are named"),
    (CLASSES, {"x": 1.0, "label": -1}, "example 9 of own has the label -1"),
    (VALUES, {"x": 1.0, "label": float("nan")}, "example 9 of own has the label nan; a finite number was expected"),
  ],
)
def test_a_label_that_cannot_be_is_named_with_its_example(header, last, said):
  with pytest.raises(UserError, match=said):
    batch(header, {"x": 0.5, "label": 1}, last)


def test_labels_stand_in_their_rows():
  np.testing.assert_array_equal(batch(CLASSES, {"x": 0.5, "label": 1}, {"x": 1.0, "label": 0})["labels"], [1, 0, 0])
  np.testing.assert_array_equal(batch(VALUES, {"x": 0.5, "label": 1.5}, {"x": 1.0, "label": 2})["labels"], [1.5, 2, 0])


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
