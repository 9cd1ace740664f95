"""What a label column is taken for: numbers, classes, sets, rows of zeros and ones; and what a user can say of it."""

from __future__ import annotations

import csv
import json
import time

import numpy as np
import pytest

from peftjax.data import open_data
from peftjax.errors import UserError
from tests.fuzz.harness import outcome_of


def from_csv(folder, labels, **options):
  with (folder / "train.csv").open("w", newline="") as file:
    csv.writer(file).writerows([("text", "label"), *((f"text {n}", label) for n, label in enumerate(labels))])
  return open_data(f"csv:{folder}", **options)


def from_jsonl(folder, labels, **options):
  rows = [{"text": f"text {n}", "label": label} for n, label in enumerate(labels)]
  (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  return open_data(f"jsonl:{folder}", **options)


def labels_of(dataset):
  source = dataset.split("train")
  return [np.asarray(source[index]["label"]).tolist() for index in range(len(source))]


@pytest.mark.parametrize(
  ("written", "expected"),
  [
    (["0.5", "1e-05", "-3"], [0.5, 1e-05, -3.0]),
    (["1.", "2.5"], [1.0, 2.5]),
    (["+0.5", ".25"], [0.5, 0.25]),
    (["1.2e+05", "0.5"], [120000.0, 0.5]),
    (["0", "1.0", "2"], [0.0, 1.0, 2.0]),
  ],
)
def test_numbers_of_every_spelling_are_predicted(tmp_path, written, expected):
  dataset = from_csv(tmp_path, written)
  assert (dataset.label_kind, dataset.label_names, labels_of(dataset)) == ("number", (), expected)
  assert dataset.notes == ("column 'label' holds a number to predict",)


@pytest.mark.parametrize(
  ("written", "names", "expected"),
  [
    (["0", "2", "1"], ("0", "1", "2"), [0, 2, 1]),
    (["00", "+1"], ("0", "1"), [0, 1]),
    (["True", "false", "TRUE"], ("False", "True"), [1, 0, 1]),
    (["b", "a", "1"], ("1", "a", "b"), [2, 1, 0]),
    (["None", "yes"], ("None", "yes"), [0, 1]),
    (["1e5x", "2"], ("1e5x", "2"), [0, 1]),
    (["123456789012345678902", "x"], ("123456789012345678902", "x"), [0, 1]),
  ],
)
def test_names_integers_and_booleans_are_classes(tmp_path, written, names, expected):
  dataset = from_csv(tmp_path, written)
  assert (dataset.label_kind, dataset.label_names, labels_of(dataset)) == ("class", names, expected)
  assert f"one of {len(names)} classes ({names[0]}" in dataset.notes[0]


@pytest.mark.parametrize(
  ("written", "message"),
  [
    (["0.5", "NA", "1.5"], "train.csv:3: label 'NA' is missing in a column of numbers"),
    (["0", "nan", "1"], "train.csv:3: label 'nan' is missing in a column of numbers"),
    (["0.5", "", "1.5"], "train.csv:3: the label is empty"),
    (["0.5", "0,7", "1.5", "2.5"], "train.csv:3: label '0,7', expected a number as in most rows"),
    (["0.5", "inf"], "train.csv:3: label 'inf', expected a finite number"),
    (
      ["123456789012345678901", "123456789012345678902"],
      "integer label 123456789012345678901, but labels are numbered",
    ),
    (["0.5", "123456789012345678901"], "train.csv:3: label '123456789012345678901' is a whole number that no float"),
    (["1", "3"], "renumber them, or set data.label_kind to class or number"),
  ],
)
def test_what_would_become_nonsense_is_one_line(tmp_path, written, message):
  with pytest.raises(UserError, match=message):
    from_csv(tmp_path, written)


def test_rows_of_zeros_and_ones_are_one_label_each(tmp_path):
  rows = [[1, 0, 1], [0, 1, 0], [0, 0, 0]]
  for kind in (int, float, bool):
    dataset = from_jsonl(tmp_path, [[kind(one) for one in row] for row in rows])
    assert (dataset.label_kind, dataset.label_names, labels_of(dataset)) == ("classes", ("0", "1", "2"), rows)
    assert "multi-hot" in dataset.notes[0]
  sets = [[0, 2], [1], []]
  assert labels_of(from_jsonl(tmp_path, sets)) == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]
  assert labels_of(from_jsonl(tmp_path, [[0, 1], [1, 0]])) == [[0, 1], [1, 0]]
  assert labels_of(from_jsonl(tmp_path, [[0, 1], [1, 0]], label_kind="classes")) == [[1, 1], [1, 1]]
  for wrong in ([[1, 1, 0], [0, 1]], [[1, 0, 1], [0, 2, 0]]):
    with pytest.raises(UserError, match=r"train.jsonl:1: label \[1, . ., .*is no set of labels|is no set of labels"):
      from_jsonl(tmp_path, wrong)
  (tmp_path / "test.jsonl").write_text('{"text": "a", "label": [1, 0]}\n')
  with pytest.raises(UserError, match="test.jsonl:1: label .* expected 3 zeros and ones"):
    from_jsonl(tmp_path, rows)


def test_the_user_can_say_what_labels_are(tmp_path):
  stars = ["5", "1", "3", "1"]
  assert labels_of(from_csv(tmp_path, stars, label_kind="number")) == [5.0, 1.0, 3.0, 1.0]
  dataset = from_csv(tmp_path, stars, label_kind="class")
  assert (dataset.label_names, labels_of(dataset)) == (("1", "3", "5"), [2, 0, 1, 0])
  assert dataset.fingerprint() != from_csv(tmp_path, stars, label_kind="number").fingerprint()
  assert from_csv(tmp_path, ["0.5", "NA"], label_kind="class").label_names == ("0.5", "NA")
  with pytest.raises(UserError, match="train.csv:2: label 'a', expected a finite number"):
    from_csv(tmp_path, ["a", "b"], label_kind="number")
  with pytest.raises(UserError, match="data.label_kind=number: the labels are lists"):
    from_jsonl(tmp_path, [["a"], ["b"]], label_kind="number")
  with pytest.raises(UserError, match="is no set of labels"):
    from_jsonl(tmp_path, [[1, 0], [1]], label_kind="multi_hot")


def test_ids_of_any_length_are_classes_of_their_own(tmp_path):
  ids = ["123456789012345678902", "123456789012345678901", "9" * 40]
  dataset = from_csv(tmp_path, ids, label_kind="class")
  assert dataset.label_names == (*sorted(ids[:2]), ids[2]) and labels_of(dataset) == [1, 0, 2]


def test_many_labels_take_time_in_proportion(tmp_path):
  def seconds(count):
    start = time.process_time()
    assert len(from_jsonl(tmp_path, range(count)).label_names) == count
    return time.process_time() - start

  seconds(100)
  assert seconds(16_000) < 6 * seconds(4_000) + 0.5


@pytest.mark.parametrize("end", ["x", ".x", "e+", " ."])
def test_a_label_of_many_digits_takes_time_in_proportion(tmp_path, end):
  long = "9" * 100_000 + end  # of which a pattern that shares out the digits in two tries every way
  found = outcome_of(lambda: from_csv(tmp_path, [long, "0.5", long + "y"]))
  assert found.is_good, found


def test_numbers_that_json_can_write_and_no_float_can_hold(tmp_path):
  for wrong in (10**400, float("inf")):
    with pytest.raises(UserError, match="expected a finite number"):
      from_jsonl(tmp_path, [0.5, wrong])
  with pytest.raises(UserError, match="train.jsonl:2: the label is empty"):
    from_jsonl(tmp_path, [0.5, float("nan")])
  with pytest.raises(UserError, match="integer label"):
    from_jsonl(tmp_path, [0, 10**400])
