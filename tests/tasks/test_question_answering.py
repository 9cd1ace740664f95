"""Answers from logits over windows, and their scores by SQuAD's official script."""

from __future__ import annotations

import numpy as np
import pytest
from lm_eval.tasks.french_bench import utils as version_2
from lm_eval.tasks.qasper import metrics as version_1

from peftjax import tasks
from peftjax.data.sources.types import Header
from peftjax.errors import UserError
from peftjax.tasks.question_answering import QuestionAnswering, exact_match, f1, normalised

TEXTS = [
  "The  Norman-era castle,", "norman era castle", "A an the", "", "ruin", "castle castle ruin", "the castle's ruin!",
  "théâtre “Ode”", "an apple a day", "U.S. dollars", "us dollars", "12%", "12",
]  # fmt: skip


def test_scores_are_those_of_the_official_scripts():
  """As two harness tasks have them: version 1's formula, and version 2's where a text has no words."""
  for found in TEXTS:
    assert normalised(found) == version_1.normalize_answer(found)
    for wanted in TEXTS:
      if normalised(wanted) and normalised(found):
        assert f1(found, [wanted]) == pytest.approx(version_1.f1_abstractive([found], [wanted]), abs=1e-12)
        assert exact_match(found, [wanted]) == (version_1.normalize_answer(found) == version_1.normalize_answer(wanted))
    plain = normalised(found)  # so that French articles do not matter
    assert f1(found, []) == version_2.f1([plain], [""]) and exact_match(found, []) == version_2.exact([plain], [""])
  assert f1("castle ruin", ["tower", "the ruin"]) == pytest.approx(2 / 3)
  assert exact_match("Ruin.", ["castle", "the ruin"]) == 1


def run_qa(windows, context, n_best, longest, null_threshold, version_2_data):
  """The answer of one question as transformers' example script run_qa reads it.

  Args:
    windows: (start logits, end logits, characters of each token or None) of each.
  """
  candidates, null = [], None
  for starts, ends, offsets in windows:
    if null is None or null > starts[0] + ends[0]:
      null = starts[0] + ends[0]
    for first in np.argsort(starts)[::-1][:n_best]:
      for last in np.argsort(ends)[::-1][:n_best]:
        if offsets[first] is None or offsets[last] is None or last < first or last - first + 1 > longest:
          continue
        candidates.append((starts[first] + ends[last], context[offsets[first][0] : offsets[last][1]]))
  if not candidates:
    return ""
  score, text = max(candidates, key=lambda one: one[0])
  return "" if version_2_data and null - score > null_threshold else text


@pytest.mark.parametrize("may_be_empty", [False, True])
def test_answers_are_those_of_run_qa(may_be_empty):
  random = np.random.default_rng(0)
  task = QuestionAnswering(n_best=4, max_answer_length=3, null_threshold=0.7, may_be_empty=may_be_empty)
  context, counts = "one two three four five six seven eight nine ten", [1, 3, 2, 1, 2, 3, 1, 2]
  firsts = np.cumsum([0, *(len(one) + 1 for one in context.split())])
  places = [(at, at + len(word)) for at, word in zip(firsts, context.split())]
  parts, wanted, length = [], [], 9
  for question, count in enumerate(counts):
    windows = []
    for part in range(count):
      own = [None, None, *places[3 * part : 3 * part + 5]]
      own += [None] * (length - len(own))
      starts, ends = random.normal(size=(2, length)).astype("f4") * 2
      windows.append((starts, ends, own))
      characters = np.array([one or (-1, -1) for one in own], "i4")
      batch = {"input_ids": 0, "characters": characters[None], "labels": np.array([[2, 3]]), "weight": np.ones(1, "f4")}
      outputs = {"start_logits": starts[None], "end_logits": ends[None]}
      one = task.predict(lambda inputs, outputs=outputs: outputs, batch)
      parts.append({name: np.asarray(value) for name, value in one.items()} | {"index": np.array([10 * question])})
    wanted.append(run_qa(windows, context, 4, 3, 0.7, may_be_empty))
  together = {name: np.concatenate([one[name] for one in parts]) for name in parts[0]}
  source = {
    10 * number: {"context": context, "answers": [{"text": "two"}] if number % 2 else []} for number in range(8)
  }
  found = task.finish(together, source)
  assert found["prediction"].tolist() == wanted and len(set(wanted)) > 3
  assert wanted.count("") >= 1 + may_be_empty  # where no span is allowed, and where nothing is likelier
  assert found["index"].tolist() == [10 * number for number in range(8)]
  assert found["windows"].tolist() == counts
  metrics = task.metrics(found)
  assert metrics["loss"] == pytest.approx(together["loss"].mean())
  rows = task.per_example(found)
  assert metrics["f1"] == pytest.approx(rows["f1"].mean())
  if may_be_empty:
    answered = np.arange(8) % 2 == 1
    assert metrics["has_answer_f1"] == pytest.approx(rows["f1"][answered].mean())
    assert metrics["no_answer_f1"] == pytest.approx(np.mean([one == "" for one in np.array(wanted)[~answered]]))


def test_no_allowed_span_is_an_empty_answer():
  task = QuestionAnswering()
  logits = np.zeros((1, 4), "f4")
  batch = {"characters": np.full((1, 4, 2), -1), "labels": np.zeros((1, 2), int), "weight": np.ones(1, "f4")}
  found = task.predict(lambda inputs: {"start_logits": logits, "end_logits": logits}, batch) | {"index": np.array([0])}
  one = {"context": "x", "answers": [{"text": "x"}]}
  rows = task.finish({name: np.asarray(value) for name, value in found.items()}, [one])
  assert rows["prediction"].tolist() == [""] and rows["f1"] == 0


def test_mistakes():
  with pytest.raises(UserError, match="task.n_best=0: expected a positive number"):
    tasks.make("question_answering", n_best=0)
  with pytest.raises(UserError, match="reads questions, contexts and answers; csv:x holds text, label"):
    tasks.from_config("question_answering", tasks.config_lib.default().task, Header("csv:x", fields=("text", "label")))
  with pytest.raises(UserError, match="trains without it"):
    tasks.make("question_answering", label_smoothing=0.1)
