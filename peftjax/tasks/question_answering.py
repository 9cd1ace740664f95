"""Extractive question answering: where in a context the answer to a question stands."""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from peftjax.data.sources.types import Header, Source
from peftjax.errors import UserError
from peftjax.tasks.base import Arrays, Batch, Forward, Row, Task, cross_entropy, model_inputs, own_setting
from peftjax.tasks.metric import Metric

OF_ANSWERS = (
  Metric("loss", "ratio", unit="nats", higher_is_better=False, numerator=("losses",), denominator=("windows",)),
  Metric("exact_match", "per-example", share=True, value="exact_match"),
  Metric("f1", "per-example", share=True, value="f1"),
)
OF_NONE = (
  Metric("has_answer_f1", "ratio", share=True, numerator=("f1_of_answered",), denominator=("answered",)),
  Metric("no_answer_f1", "ratio", share=True, numerator=("f1_of_unanswered",), denominator=("unanswered",)),
)
_NO_SPAN = -1e30  # the score of a window in which no span is allowed


class QuestionAnswering(Task):
  """The mean of two cross entropies over the tokens of a window, of the answer's first and last token; `labels` [B, 2]
  int32 hold them, 0 twice where the window does not hold the answer. As in transformers' models, padding counts among
  the tokens.

  Answers are read as transformers' run_qa does: of each window, the `n_best` likeliest first and last tokens make
  spans; those that leave the context, end before they start or exceed `max_answer_length` tokens are dropped; the best
  span of a question's windows is its answer. Where some questions of the data have none, the answer is empty if the
  least score of "no answer" (the opening token twice) over the windows exceeds the span's by more than
  `null_threshold`. Where no span is allowed, the answer is empty.

  Metrics, over questions: exact_match and f1 of words by SQuAD's official script, the better of all given answers; loss
  (nats), over windows; where some have no answer, has_answer_f1 and no_answer_f1.
  """

  name = "question_answering"
  head = "question_answering"
  main_metric = "f1"
  label_names: tuple[str, ...] = ()
  num_labels = 2
  reads = ()
  input = "windows"
  fields = ("id", "question", "context", "answers")
  settings = {"n_best": 20, "max_answer_length": 30, "null_threshold": 0.0}

  def __init__(
    self, n_best: int = 20, max_answer_length: int = 30, null_threshold: float = 0.0, may_be_empty: bool = False
  ):
    self.n_best, self.max_answer_length, self.null_threshold = n_best, max_answer_length, null_threshold
    self.may_be_empty = may_be_empty
    self.specs = OF_ANSWERS + (OF_NONE if may_be_empty else ())

  @classmethod
  def make(cls, settings: ConfigDict, header: Header) -> QuestionAnswering:
    if header.name and not {"question", "context", "answers"} <= set(header.fields):
      held = ", ".join(header.fields) or "nothing of the kind"
      raise UserError(f"task.name={cls.name!r} reads questions, contexts and answers; {header.name} holds {held}")
    numbers = {name: own_setting(cls, settings, name) for name in ("n_best", "max_answer_length")}
    for name, value in numbers.items():
      if not isinstance(value, int) or value < 1:
        raise UserError(f"task.{name}={value!r}: expected a positive number")
    threshold = own_setting(cls, settings, "null_threshold")
    return cls(**numbers, null_threshold=float(threshold), may_be_empty="is_impossible" in header.fields)

  def inputs(self, batch: Batch) -> dict[str, Any]:
    return {name: array for name, array in model_inputs(batch).items() if name != "characters"}

  def loss(self, forward: Forward, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, Arrays]:
    losses = _losses(forward(self.inputs(batch)), batch["labels"])
    return (losses * batch["weight"]).sum(), batch["weight"].sum(), {}

  def predict(self, forward: Forward, batch: Batch) -> Arrays:
    """Of every window: the characters of its best span, "start" and "end", the span's "score", and that of "null"."""
    outputs = forward(self.inputs(batch))
    starts, ends = (outputs[name].astype(jnp.float32) for name in ("start_logits", "end_logits"))
    count = min(self.n_best, starts.shape[1])
    (start_scores, first), (end_scores, last) = jax.lax.top_k(starts, count), jax.lax.top_k(ends, count)
    characters = batch["characters"]
    begins, stops = (jnp.take_along_axis(characters[..., side], at, axis=1) for side, at in ((0, first), (1, last)))
    length = last[:, None, :] - first[:, :, None] + 1
    allowed = (begins >= 0)[:, :, None] & (stops >= 0)[:, None, :] & (length >= 1) & (length <= self.max_answer_length)
    scores = jnp.where(allowed, start_scores[:, :, None] + end_scores[:, None, :], _NO_SPAN)
    best = scores.reshape(len(scores), -1).argmax(axis=1)
    row = jnp.arange(len(scores))
    return {
      "start": begins[row, best // count],
      "end": stops[row, best % count],
      "score": scores.reshape(len(scores), -1)[row, best],
      "null": starts[:, 0] + ends[:, 0],
      "loss": _losses(outputs, batch["labels"]),
      "weight": batch["weight"],
    }

  def finish(self, predictions: dict[str, np.ndarray], source: Source) -> dict[str, np.ndarray]:
    """One answer a question, with its text, its exact match and its F1."""
    index, first, windows = np.unique(predictions["index"], return_index=True, return_counts=True)
    best = np.lexsort((-predictions["score"], predictions["index"]))[first]
    null = np.minimum.reduceat(predictions["null"], first)
    span = predictions["score"][best]
    empty = (span <= _NO_SPAN) | (self.may_be_empty & (null - span > self.null_threshold))
    found = {name: np.where(empty, 0, predictions[name][best]) for name in ("start", "end")}
    examples = [source[int(one)] for one in index]
    texts = [one["context"][start:end] for one, start, end in zip(examples, found["start"], found["end"])]
    wanted = [[answer["text"] for answer in one["answers"]] for one in examples]
    losses = np.add.reduceat(predictions["loss"].astype(np.float64), first)
    return {
      "index": index,
      "loss": losses / windows,
      "losses": losses,
      "windows": windows,
      **found,
      "score": span,
      "null": null,
      "prediction": np.array(texts, str),
      "exact_match": np.array([exact_match(text, answers) for text, answers in zip(texts, wanted)]),
      "f1": np.array([f1(text, answers) for text, answers in zip(texts, wanted)]),
      "answered": np.array([bool(answers) for answers in wanted], np.int32),
    }

  def per_example(self, predictions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    rows = {name: values for name, values in predictions.items() if name not in ("index", "loss")}
    if not self.may_be_empty:
      return {name: values for name, values in rows.items() if name != "answered"}
    answered = rows["answered"]
    return rows | {
      "unanswered": 1 - answered,
      "f1_of_answered": rows["f1"] * answered,
      "f1_of_unanswered": rows["f1"] * (1 - answered),
    }

  def answers(self, predictions: Mapping[str, np.ndarray], source: Source) -> list[Row]:
    """The "answer", "" if the context has none, its characters "start" and "end", and how much its span outweighs that
    of no answer, "score"."""
    score = predictions["score"] - predictions["null"]
    rows = zip(predictions["prediction"], predictions["start"], predictions["end"], score)
    return [{"answer": str(text), "start": int(a), "end": int(b), "score": float(c)} for text, a, b, c in rows]

  def metrics(self, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
    rows = self.per_example(predictions)
    found = {"loss": float(rows["losses"].sum() / rows["windows"].sum())}
    found |= {name: float(rows[name].mean()) for name in ("exact_match", "f1")}
    for spec in self.specs[len(OF_ANSWERS) :]:
      above, below = rows[spec.numerator[0]].sum(), rows[spec.denominator[0]].sum()
      found[spec.name] = float(above / below) if below else float("nan")
    return found


def _losses(outputs: Mapping[str, jax.Array], labels: jax.Array) -> jax.Array:
  """[B] float32 of every window."""
  sides = [cross_entropy(outputs[name], labels[:, side]) for side, name in enumerate(("start_logits", "end_logits"))]
  return (sides[0] + sides[1]) / 2


# SQuAD's official script ------------------------------------------------------------------------------------------


def normalised(text: str) -> str:
  """Lower case, without punctuation, articles and odd white space.

  >>> normalised("The  Norman-era  castle, a ruin.")
  'normanera castle ruin'
  """
  lowered = "".join(sign for sign in text.lower() if sign not in string.punctuation)
  return " ".join(re.sub(r"\b(a|an|the)\b", " ", lowered).split())


def exact_match(found: str, answers: Sequence[str]) -> int:
  """1 if the normalised text is that of one of the answers; without answers, if it is empty."""
  return max(int(normalised(found) == one) for one in _wanted(answers))


def f1(found: str, answers: Sequence[str]) -> float:
  """The greatest F1 of words with any of the answers, by version 2's script: where the text or the answer has no word,
  1 if neither has.

  >>> f1("the tower of London", ["Tower", "a London tower"])
  0.8
  """
  return max(_f1(normalised(found).split(), one.split()) for one in _wanted(answers))


def _wanted(answers: Sequence[str]) -> list[str]:
  return [one for one in map(normalised, answers) if one] or [""]


def _f1(found: Sequence[str], wanted: Sequence[str]) -> float:
  if not found or not wanted:
    return float(found == wanted)
  both = sum((collections.Counter(found) & collections.Counter(wanted)).values())
  return 2 * both / (len(found) + len(wanted))
