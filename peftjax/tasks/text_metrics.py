"""What generated texts are worth beside the texts that were wanted."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from peftjax.errors import UserError, nearest
from peftjax.tasks.metric import Metric

Texts = Sequence[str]
Score = Callable[[Texts, Texts], float]


def exact_match(found: Texts, wanted: Texts) -> float:
  """Share of texts that are equal but for white space.

  >>> exact_match(["a  b", "c"], ["a b", "d"])
  0.5
  """
  return _share([one.split() == other.split() for one, other in zip(found, wanted, strict=True)])


def last_number(found: Texts, wanted: Texts) -> float:
  """Share of texts whose last number is that of the wanted text, as answers in arithmetic are compared.

  >>> last_number(["so 1,200 in all.", "none"], ["#### 1200", "#### 3"])
  0.5
  """
  pairs = zip(found, wanted, strict=True)
  return _share([_last(one) is not None and _last(one) == _last(other) for one, other in pairs])


def bleu(found: Texts, wanted: Texts) -> float:
  """BLEU of the corpus, 0 to 100, as sacrebleu has it (tokens of mteval-v13a); Papineni et al. 2002."""
  import sacrebleu

  return float(sacrebleu.corpus_bleu(list(found), [list(wanted)]).score)


def chrf(found: Texts, wanted: Texts) -> float:
  """chrF2 of the corpus, 0 to 100, as sacrebleu has it; Popović 2015."""
  import sacrebleu

  return float(sacrebleu.corpus_chrf(list(found), [list(wanted)]).score)


def rouge(kind: str) -> Score:
  """The mean F1, 0 to 1, of "rouge1", "rouge2" or "rougeL" with stemming, by rouge-score; Lin 2004."""

  def mean(found: Texts, wanted: Texts) -> float:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([kind], use_stemmer=True)
    return _share([scorer.score(other, one)[kind].fmeasure for one, other in zip(found, wanted, strict=True)])

  return mean


def word_error_rate(found: Texts, wanted: Texts) -> float:
  """Words inserted, deleted and replaced, over the words wanted, by jiwer. Of phonemes with spaces between, the
  phoneme error rate.

  >>> word_error_rate(["K AE1 T S"], ["K AA1 T"])
  0.6666666666666666
  """
  return word_edits(found, wanted).rate


def character_error_rate(found: Texts, wanted: Texts) -> float:
  """Edits of characters over the characters wanted; nan where nothing is wanted."""
  return character_edits(found, wanted).rate


class Edits(NamedTuple):
  """Insertions, deletions and replacements between texts, and the units wanted, int64 [texts] each; both 0 where
  nothing is wanted."""

  edits: np.ndarray
  wanted: np.ndarray

  @property
  def rate(self) -> float:
    """Edits over what is wanted, of all texts together."""
    return float(self.edits.sum() / self.wanted.sum()) if self.wanted.sum() else float("nan")


def word_edits(found: Texts, wanted: Texts) -> Edits:
  """Of the words of each pair of texts, by jiwer.

  >>> word_edits(["a c", "x"], ["a b", ""])
  Edits(edits=array([1, 0]), wanted=array([2, 0]))
  """
  import jiwer  # slow to import

  return _edits(jiwer.process_words, found, wanted)


def character_edits(found: Texts, wanted: Texts) -> Edits:
  """Of the characters of each pair of texts, by jiwer."""
  import jiwer

  return _edits(jiwer.process_characters, found, wanted)


def _edits(process: Callable[[str, str], Any], found: Texts, wanted: Texts) -> Edits:
  counts = np.zeros((len(wanted), 2), np.int64)
  for row, (one, other) in enumerate(zip(found, wanted, strict=True)):
    if other.strip():
      scored = process(other, one)
      kept = scored.hits + scored.substitutions + scored.deletions
      counts[row] = scored.substitutions + scored.deletions + scored.insertions, kept
  return Edits(*counts.T)


METRICS: dict[str, Score] = {
  "exact_match": exact_match,
  "last_number": last_number,
  "bleu": bleu,
  "chrf": chrf,
  "rouge1": rouge("rouge1"),
  "rouge2": rouge("rouge2"),
  "rougeL": rouge("rougeL"),
  "word_error_rate": word_error_rate,
  "phoneme_error_rate": word_error_rate,
  "character_error_rate": character_error_rate,
}


_SHARES = ("exact_match", "last_number", "rouge1", "rouge2", "rougeL")
SPECS = {
  name: Metric(name, "corpus", share=name in _SHARES, higher_is_better=not name.endswith("_error_rate"))
  for name in METRICS
}


def score(names: Sequence[str], found: Texts, wanted: Texts) -> dict[str, float]:
  """Each named metric of `METRICS` over all texts.

  Raises:
    UserError: an unknown name.
  """
  check_names(names)
  return {name: METRICS[name](found, wanted) for name in names}


def check_names(names: Sequence[str]) -> None:
  """Raises a `UserError` for a name that `METRICS` has not."""
  for name in names:
    if name not in METRICS:
      raise UserError(f"task.text_metrics: no metric {name!r}; {nearest(name, METRICS)}")


def _share(values: Sequence[float]) -> float:
  return float(sum(values) / len(values)) if values else float("nan")


def _last(text: str) -> float | None:
  numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
  return float(numbers[-1].replace(",", "")) if numbers else None
