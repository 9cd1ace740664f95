"""What stands under the answer: seeds, failed runs, convergence, the search."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from peftjax.compare import analysis, ending
from peftjax.compare.analysis import Question
from peftjax.compare.report.basis import basis
from peftjax.compare.search import Choice, Tried
from tests.compare import synthetic


def with_curve(record, losses, steps=400, validation=None):
  """A record whose training loss is a function of the share of the updates that are done."""
  at = np.linspace(1, steps, 100)
  noise = np.random.default_rng(record.seed).normal(0, 0.01, len(at))
  held = (
    {}
    if validation is None
    else {"validation": {"step": [0, 200, steps], "loss": [validation(x) for x in (0, 0.5, 1)]}}
  )
  curve = tuple(zip(at.tolist(), (losses(at / steps) + noise).tolist()))
  return dataclasses.replace(record, curve=curve, steps=steps, trajectory=held)


@pytest.mark.parametrize(
  ("losses", "word", "fall"),
  [
    (lambda x: 2 - x, ending.LEARNING, 0.2),
    (lambda x: 1 + np.exp(-12 * x), ending.CONVERGED, 0.0),
    (lambda x: 1 + 0 * x, ending.OPEN, 0.0),
  ],
)
def test_the_last_fifth_says_whether_training_had_converged(losses, word, fall):
  made = [with_curve(one, losses) for one in synthetic.results({"full": synthetic.METHODS["full"]}, 5, 50)]
  found = ending.ending_of(made)
  assert found.word == word and found.loss == "training"
  assert found.fall == pytest.approx(fall, abs=0.01) and found.low <= found.fall <= found.high
  assert ending.ending_of(made[:1]).word == ending.OPEN


def test_validation_loss_decides_where_it_was_seen_along_the_way():
  made = [
    with_curve(one, lambda x: 1 + 0 * x, validation=lambda x: 3 - x)
    for one in synthetic.results({"full": synthetic.METHODS["full"]}, 5, 50)
  ]
  found = ending.ending_of(made)
  assert (found.loss, found.word) == ("validation", ending.LEARNING)
  assert found.fall == pytest.approx(0.2) and found.whole == pytest.approx(1.0) and found.share == pytest.approx(0.2)
  short = [dataclasses.replace(one, trajectory={}, curve=one.curve[:5]) for one in made]
  assert ending.ending_of(short) is None


def searched(row, interior):
  tried = tuple(Tried(learning_rate=rate, knobs={}, scores=(0.8, 0.7), losses=(0.5, 0.5)) for rate in (1e-3, 1e-2))
  return Choice(row=row, learning_rate=1e-3, knobs={}, interior=interior, tried=tried)


def test_four_lines_say_how_far_the_answer_may_be_trusted():
  methods = {name: synthetic.METHODS[name] for name in ("full", "lora", "ia3")}
  made = [
    with_curve(one, (lambda x: 2 - x) if one.row == "lora" else (lambda x: 1 + np.exp(-12 * x)))
    for one in synthetic.results(methods, 6, 200)
  ]
  summary = analysis.summarize(made, Question(), failed={"full/seed-6": "diverged: step 3"})
  summary = dataclasses.replace(summary, search=(searched("full", True), searched("lora", False)))
  said = dict(basis(summary))
  assert said["Seeds"].startswith("6 a method; the middle 4 by score decide")
  assert said["Failed runs"].startswith("full 1 of 7 [0.4, 57.9]%; none of the others")
  assert said["Convergence"] == (
    "Still learning in the last fifth of the updates: lora (20% of the loss's whole fall); converged: full and ia3."
  )
  assert said["Search"] == "4 runs a method, settings under up to 2 seeds; at an edge of what was tried: lora."
  none = dict(basis(analysis.summarize(synthetic.results(methods, 2, 50), Question())))
  assert none["Failed runs"].startswith("None of 6; up to 84.2% of a method's new runs may still fail. The score of")
  assert none["Search"].startswith("None") and none["Seeds"].startswith("2 a method")
