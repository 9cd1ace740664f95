"""SQuAD's JSON: what is read of it, and each mistake in one line."""

from __future__ import annotations

import copy
import json

import pytest

from peftjax.data import open_data
from peftjax.errors import UserError
from tests.tasks import small

CONTEXT = "Ada Lovelace wrote notes on the engine in 1843."
GOOD = {"id": "q1", "question": "When?", "answers": [{"text": "1843", "answer_start": 42}]}


def written(path, *questions, context=CONTEXT):
  path.write_text(json.dumps({"data": [{"paragraphs": [{"context": context, "qas": list(questions)}]}]}))
  return path


def changed(**fields):
  return {**copy.deepcopy(GOOD), **fields}


def test_examples_and_splits(tmp_path):
  data = open_data(f"squad:{small.squad(tmp_path / 'all.json', contexts=30)}")
  assert data.task == "question_answering" and "is_impossible" in data.fields
  splits = {name: [data.split(name)[index] for index in range(count)] for name, count in data.splits.items()}
  assert set(splits) == {"train", "validation", "test"} and sum(map(len, splits.values())) == 90
  contexts = [{one["context"] for one in each} for each in splits.values()]
  assert not contexts[0] & contexts[1] and not contexts[0] & contexts[2] and not contexts[1] & contexts[2]
  for one in (one for each in splits.values() for one in each):
    for answer in one["answers"]:
      assert one["context"][answer["answer_start"] :].startswith(answer["text"])
  assert any("have no answer" in note for note in data.notes)
  for name in ("train", "dev"):
    written(tmp_path / f"{name}-v1.1.json", GOOD)
  first = open_data(f"squad:{tmp_path}/{{split}}-v1.1.json")
  assert dict(first.splits) == {"train": 1, "validation": 1} and "is_impossible" not in first.fields
  assert first.split("train")[0]["answers"] == GOOD["answers"]


@pytest.mark.parametrize(
  ("question", "message"),
  [
    (changed(answers=[{"text": "1843", "answer_start": 40}]), "answer_start=40, where 'n 18' stands; it stands at 42"),
    (changed(answers=[{"text": "1844", "answer_start": 42}]), "it does not stand in the context at all"),
    (changed(answers=[{"text": "1843", "answer_start": -4}]), "answer_start=-4, where nothing stands; it stands at 42"),
    (
      changed(answers=[{"text": "1843", "answer_start": "42"}]),
      "answer_start='42', expected the number",
    ),
    (changed(answers=[{"text": "", "answer_start": 3}]), "answers: the text is empty"),
    (changed(answers=[]), "has no answers; version 2 marks such questions"),
    (changed(is_impossible=True), "is marked as impossible and has an answer, '1843'"),
    (changed(is_impossible="no"), "is_impossible='no', expected true or false"),
    (changed(question="  "), "the question is empty"),
    ({"id": "q1", "question": "When?"}, "answers=None, expected a list"),
    ({"question": "When?"}, "id=None, expected a text"),
  ],
)
def test_a_mistake_in_a_question_is_one_line(question, message, tmp_path):
  path = written(tmp_path / "data.json", question)
  with pytest.raises(UserError) as error:
    open_data(f"squad:{path}")
  assert message in str(error.value) and str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_other_mistakes(tmp_path):
  path = tmp_path / "data.json"
  for write, message in [
    (lambda: written(path, GOOD, context=" "), "the context is empty"),
    (lambda: written(path, GOOD, GOOD), "two questions have the id 'q1'"),
    (lambda: path.write_text("{}"), "expected SQuAD's JSON"),
    (lambda: path.write_text('{"data": [{"title": "x"}]}'), r"data\[0\]: paragraphs=None, expected a list"),
    (lambda: path.write_text("{"), "no JSON"),
  ]:
    write()
    with pytest.raises(UserError, match=message):
      open_data(f"squad:{path}")
  with pytest.raises(UserError, match="no file"):
    open_data(f"squad:{tmp_path / 'date.json'}")
