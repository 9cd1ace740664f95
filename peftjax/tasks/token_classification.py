"""A label for every token; entities are scored, not tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from peftjax.data.inputs.base import IGNORED
from peftjax.data.sources.types import Header, Source
from peftjax.errors import UserError
from peftjax.tasks.base import (
  Arrays,
  Batch,
  Forward,
  Row,
  Task,
  check_data,
  cross_entropy,
  model_inputs,
  weighted_mean,
)
from peftjax.tasks.metric import Metric

OF_TOKENS = (
  Metric("loss", "corpus", unit="nats a token", higher_is_better=False),
  Metric("accuracy", "ratio", share=True, numerator=("correct_tokens",), denominator=("tokens",)),
)
OF_ENTITIES = (
  Metric("precision", "ratio", share=True, numerator=("correct_entities",), denominator=("found_entities",)),
  Metric("recall", "ratio", share=True, numerator=("correct_entities",), denominator=("true_entities",)),
  Metric(
    "f1", "ratio", share=True, numerator=("correct_entities",) * 2, denominator=("found_entities", "true_entities")
  ),
)


class TokenClassification(Task):
  """Cross entropy of `labels` [B, L] int32 over the tokens whose label is not `IGNORED`.

  Metrics: loss (a mean over labelled tokens), accuracy of tokens, and where the labels are BIO ("B-X", "I-X", "O")
  precision, recall and f1 of entities in strict decoding: an entity starts with B-X, goes on through I-X, and counts
  as found only with both ends and the type right.
  """

  name = "token_classification"
  head = "token_classification"
  fields = ("tokens", "tags")
  reads = ("num_labels", "label_smoothing")

  def __init__(self, label_names: tuple[str, ...], label_smoothing: float = 0.0):
    self.label_names = label_names
    self.label_smoothing = label_smoothing
    self.num_labels = len(label_names)
    self.has_entities = all(name == "O" or name[:2] in ("B-", "I-") for name in label_names)
    self.main_metric = "f1" if self.has_entities else "accuracy"
    self.specs = OF_TOKENS + (OF_ENTITIES if self.has_entities else ())

  @classmethod
  def make(cls, settings: ConfigDict, header: Header) -> TokenClassification:
    check_data(cls.name, header)
    if header.fields and "tags" not in header.fields:
      raise UserError(f"task.name={cls.name!r} needs 'tags'; {header.name!r} holds {', '.join(header.fields)}")
    return cls(header.label_names, settings.label_smoothing)

  def outputs(self, batch: Batch) -> dict[str, tuple[int, ...]]:
    return {"logits": (*batch["labels"].shape, self.num_labels)}

  def loss(self, forward: Forward, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, Arrays]:
    losses, weights = self._losses(forward(model_inputs(batch))["logits"], batch, self.label_smoothing)
    return (losses * weights).sum(), weights.sum(), {}

  def predict(self, forward: Forward, batch: Batch) -> Arrays:
    logits = forward(model_inputs(batch))["logits"]
    losses, weights = self._losses(logits, batch, 0.0)
    total = weights.sum(axis=1)
    mean = (losses * weights).sum(axis=1) / jnp.where(total > 0, total, 1.0)
    found = logits.argmax(axis=-1).astype(jnp.int32)
    return {"found": found, "labels": batch["labels"], "loss": mean, "weight": total}

  def _losses(self, logits: jax.Array, batch: Batch, smoothing: float) -> tuple[jax.Array, jax.Array]:
    labelled = batch["labels"] != IGNORED
    losses = cross_entropy(logits, jnp.where(labelled, batch["labels"], 0), smoothing)
    return losses, labelled * batch["weight"][:, None]

  def per_example(self, predictions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    found, labels = predictions["found"], predictions["labels"]
    labelled = labels != IGNORED
    rows = {"tokens": labelled.sum(axis=1), "correct_tokens": ((found == labels) & labelled).sum(axis=1)}
    if self.has_entities:
      pairs = [
        (self._entities(found_row[keep]), self._entities(label_row[keep]))
        for found_row, label_row, keep in zip(found, labels, labelled)
      ]
      rows["found_entities"] = np.array([len(found_set) for found_set, _ in pairs])
      rows["true_entities"] = np.array([len(true_set) for _, true_set in pairs])
      rows["correct_entities"] = np.array([len(found_set & true_set) for found_set, true_set in pairs])
    return {name: np.asarray(values, np.int32) for name, values in rows.items()}

  def answers(self, predictions: Mapping[str, np.ndarray], source: Source) -> list[Row]:
    """The tag of each word, in "tags", None of words that were cut off; the labels are the words' numbers."""
    said = []
    for index, found, words in zip(predictions["index"], predictions["found"], predictions["labels"]):
      tags: list[str | None] = [None] * len(source[int(index)]["tokens"])
      for word, tag in zip(words[words != IGNORED], found[words != IGNORED]):
        tags[word] = self.label_names[tag]
      said.append({"tags": tags})
    return said

  def metrics(self, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
    sums = {name: int(values.sum()) for name, values in self.per_example(predictions).items()}
    metrics = {
      "loss": weighted_mean(predictions["loss"], predictions["weight"]),
      "accuracy": _share(sums["correct_tokens"], sums["tokens"]),
    }
    if self.has_entities:
      metrics["precision"] = _share(sums["correct_entities"], sums["found_entities"])
      metrics["recall"] = _share(sums["correct_entities"], sums["true_entities"])
      metrics["f1"] = _share(2 * sums["correct_entities"], sums["found_entities"] + sums["true_entities"])
    return metrics

  def _entities(self, ids: np.ndarray) -> set[tuple[str, int, int]]:
    return entities([self.label_names[index] for index in ids])


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
  """(type, first, past the last) of every entity, by strict BIO: an I-X that continues no X is outside.

  >>> sorted(entities(["B-PER", "I-PER", "O", "I-LOC", "B-LOC", "I-PER"]))
  [('LOC', 4, 5), ('PER', 0, 2)]
  """
  found = set()
  kind, start = "", 0
  for position, tag in enumerate([*tags, "O"]):
    if kind and tag != "I-" + kind:
      found.add((kind, start, position))
      kind = ""
    if tag.startswith("B-"):
      kind, start = tag[2:], position
  return found


def _share(part: int, whole: int) -> float:
  return part / whole if whole else 0.0
