"""Metrics of texts: by hand where that is possible, and the corpus metrics against their libraries' own call."""

from __future__ import annotations

import jiwer
import pytest
import sacrebleu

from peftjax.errors import UserError
from peftjax.tasks.text_metrics import METRICS, character_edits, score, word_edits

FOUND = ["the cat sat on the mat", "a dog", "", "it is 1,234.50 then"]
WANTED = ["the cat sat on a mat", "a dog", "x", "#### 1234.5"]


def test_values_known_by_hand():
  found = score(tuple(METRICS), FOUND, WANTED)
  assert found["exact_match"] == 0.25
  assert found["last_number"] == 0.25
  assert found["word_error_rate"] == found["phoneme_error_rate"] == pytest.approx((1 + 0 + 1 + 4) / (6 + 2 + 1 + 2))
  # Unigrams: 5 of 6, all, none; "1,234.50" and "1234.5" part at their points and commas: 50 and 5 differ, 234 too.
  assert found["rouge1"] == pytest.approx((5 / 6 + 1 + 0 + 0) / 4)
  assert found["rougeL"] == pytest.approx((5 / 6 + 1 + 0 + 0) / 4)
  assert found["rouge2"] == pytest.approx((3 / 5 + 1 + 0 + 0) / 4)


def test_corpus_metrics_take_references_in_their_order():
  found = score(("bleu", "chrf"), FOUND, WANTED)
  assert found["bleu"] == pytest.approx(sacrebleu.BLEU().corpus_score(FOUND, [WANTED]).score)
  assert found["chrf"] == pytest.approx(sacrebleu.CHRF().corpus_score(FOUND, [WANTED]).score)
  assert found["bleu"] != pytest.approx(score(("bleu",), WANTED, FOUND)["bleu"])
  assert score(("bleu", "chrf", "exact_match"), WANTED, WANTED) == pytest.approx(
    {"bleu": 100, "chrf": 100, "exact_match": 1}
  )


def test_characters():
  assert score(("character_error_rate",), ["abd", "x"], ["abcd", ""])["character_error_rate"] == 0.25


def test_edits_of_each_text_are_those_of_the_corpus():
  there = [at for at, one in enumerate(WANTED) if one]
  found, wanted = [FOUND[at] for at in there], [WANTED[at] for at in there]
  words, letters = word_edits(FOUND, WANTED), character_edits(FOUND, WANTED)
  assert words.edits.tolist() == [1, 0, 1, 4] and words.wanted.tolist() == [6, 2, 1, 2]
  assert words.rate == pytest.approx(jiwer.wer(wanted, found))
  assert letters.rate == pytest.approx(jiwer.cer(wanted, found))


def test_an_unknown_metric_names_the_nearest():
  with pytest.raises(UserError, match="did you mean 'chrf'"):
    score(("chrff",), ["a"], ["a"])
