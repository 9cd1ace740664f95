"""Sentence embeddings: texts that belong together lie near each other, and far from those of other pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from peftjax.data.inputs.text_pairs import PAIR
from peftjax.data.sources.types import Header, Source
from peftjax.errors import UserError
from peftjax.tasks.base import (
  Arrays,
  Batch,
  Forward,
  Row,
  Task,
  cross_entropy,
  model_inputs,
  own_setting,
  weighted_mean,
)
from peftjax.tasks.classification import correlations
from peftjax.tasks.metric import Metric

OF_PAIRS = (
  Metric("loss", "ratio", unit="nats", higher_is_better=False, numerator=("losses",), denominator=("positives",)),
  Metric("accuracy", "ratio", share=True, numerator=("first",), denominator=("positives",)),
  Metric("mean_reciprocal_rank", "ratio", share=True, numerator=("reciprocal_rank",), denominator=("positives",)),
)
OF_SCORES = (Metric("spearman", "per-example", value="spearman"), Metric("pearson", "corpus"))
_FAR = -1e30  # the similarity of a row that only fills the batch
_BLOCK = 2**22  # similarities that exist at once on the host


class Contrastive(Task):
  """InfoNCE with the other pairs of a batch as negatives (van den Oord et al. 2018): cross entropy over scale times the
  cosine of a text with each second text of the batch, its own being right; sentence-transformers calls it
  MultipleNegativesRankingLoss. A text's embedding is the mean of the last hidden states of its tokens. With
  `train.accumulate` the negatives are those of a micro-batch.

  Settings: `scale`, the reciprocal of the temperature; `positive_score`: where pairs have scores, those of at least
  this are learned from, and all others are negatives only.

  Metrics: loss (nats) among the pairs of an evaluation batch; accuracy and mean_reciprocal_rank of finding a text's
  partner by cosine among all second texts of the split, all three over pairs that are learned from; of scored pairs
  spearman and pearson of cosine and score. `per_example`'s row "spearman" is its influence function plus the metric, so
  that a mean over examples varies as the metric does.
  """

  name = "contrastive"
  head = "encoder"
  label_names: tuple[str, ...] = ()
  num_labels = 0
  reads = ()
  input = "text_pairs"
  fields = ("text", "text_pair")
  settings = {"scale": 20.0, "positive_score": 0.5}

  def __init__(self, scale: float = 20.0, positive_score: float = 0.5, scored: bool = False):
    self.scale, self.positive_score, self.scored = scale, positive_score, scored
    self.specs = OF_PAIRS + (OF_SCORES if scored else ())
    self.main_metric = "spearman" if scored else "accuracy"

  @classmethod
  def make(cls, settings: ConfigDict, header: Header) -> Contrastive:
    if header.name and "text_pair" not in header.fields:
      held = ", ".join(header.fields) or "nothing of the kind"
      raise UserError(f"task.name={cls.name!r} reads pairs of texts; {header.name} holds {held}")
    if header.name and "label" in header.fields and header.label_kind != "number":
      raise UserError(f"task.name={cls.name!r}: the labels of {header.name} are no scores; open it as pairs:FILE")
    scale = float(own_setting(cls, settings, "scale"))
    if not 0 < scale < float("inf"):
      raise UserError(f"task.scale={scale}: expected a positive number, the reciprocal of the temperature")
    return cls(scale, float(own_setting(cls, settings, "positive_score")), "label" in header.fields)

  def inputs(self, batch: Batch) -> dict[str, Any]:
    return {name: array for name, array in model_inputs(batch).items() if not name.startswith(PAIR)}

  def loss(self, forward: Forward, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, Arrays]:
    losses, hits = self._losses(*self._embeddings(forward, batch), batch)
    weights = self._weights(batch)
    return (losses * weights).sum(), weights.sum(), {"in_batch_accuracy": (hits * weights).sum()}

  def predict(self, forward: Forward, batch: Batch) -> Arrays:
    """Unit vectors of both texts, "text" and "pair" [B, E] float32, and with scores "labels"."""
    texts, pairs = self._embeddings(forward, batch)
    scores = {"labels": batch["labels"]} if self.scored else {}
    losses = self._losses(texts, pairs, batch)[0]
    return {"text": texts, "pair": pairs, "loss": losses, "weight": self._weights(batch), **scores}

  def finish(self, predictions: dict[str, np.ndarray], source: Source) -> dict[str, np.ndarray]:
    """With numbers of the texts, "text_id" and "pair_id", equal where texts are."""
    examples = [source[int(index)] for index in predictions["index"]]
    numbers: dict[str, int] = {}
    text, pair = (
      np.array([numbers.setdefault(one[name], len(numbers)) for one in examples], np.int64) for name in self.fields
    )
    return {**predictions, "text_id": text, "pair_id": pair}

  def per_example(self, predictions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    texts, pairs = predictions["text"], predictions["pair"]
    positives = predictions["weight"].astype(np.float64)
    ranks = _ranks(texts, pairs, predictions["text_id"], predictions["pair_id"])
    cosine = (texts.astype(np.float64) * pairs).sum(axis=1)
    rows = {
      "cosine": cosine,
      "rank": ranks,
      "positives": positives,
      "losses": predictions["loss"] * positives,
      "first": (ranks == 1) * positives,
      "reciprocal_rank": positives / ranks,
    }
    if self.scored:
      rows |= {"score": predictions["labels"], "spearman": spearman_rows(cosine, predictions["labels"])}
    return rows

  def answers(self, predictions: Mapping[str, np.ndarray], source: Source) -> list[Row]:
    """The text's "embedding", and the "cosine" with the second text, where that is another one."""
    said: list[Row] = []
    for index, text, pair in zip(predictions["index"], predictions["text"], predictions["pair"]):
      one = source[int(index)]
      cosine = {} if one["text"] == one["text_pair"] else {"cosine": float(text.astype(np.float64) @ pair)}
      said.append({"embedding": text.tolist()} | cosine)
    return said

  def metrics(self, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
    rows = self.per_example(predictions)
    found = {"loss": weighted_mean(predictions["loss"], predictions["weight"])}
    total = rows["positives"].sum()
    for spec in OF_PAIRS[1:]:
      found[spec.name] = float(rows[spec.numerator[0]].sum() / total) if total else float("nan")
    if not self.scored:
      return found
    both = correlations(rows["cosine"], rows["score"])
    return found | {name: both[name] for name in ("spearman", "pearson")}

  def _embeddings(self, forward: Forward, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Unit vectors [B, E] float32 of both texts, from one pass over all of them."""
    first = self.inputs(batch)
    # Side by side, so that a row's two texts stay on its device.
    both = {name: jnp.stack([array, batch[f"{PAIR}{name}"]], axis=1) for name, array in first.items()}
    flat = {name: array.reshape(-1, *array.shape[2:]) for name, array in both.items()}
    vectors = pooled(forward(flat)["last_hidden_state"], flat["attention_mask"])
    sides = vectors.reshape(-1, 2, vectors.shape[-1])
    return sides[:, 0], sides[:, 1]

  def _losses(self, texts: jax.Array, pairs: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """[B] float32 each: the losses, and 1 where a text's own partner is the nearest."""
    similar = self.scale * jnp.matmul(texts, pairs.T, precision="highest")
    similar = jnp.where(batch["weight"][None, :] > 0, similar, _FAR)
    own = jnp.arange(len(texts))
    return cross_entropy(similar, own), (similar.argmax(axis=1) == own).astype(jnp.float32)

  def _weights(self, batch: Batch) -> jax.Array:
    """[B] float32: the rows' weights, 0 of pairs that are negatives only."""
    weights: jax.Array = batch["weight"]
    return weights * (batch["labels"] >= self.positive_score) if self.scored else weights


def pooled(hidden: jax.Array, mask: jax.Array) -> jax.Array:
  """Unit vectors [N, E] float32: the mean of the states [N, L, E] where `mask` [N, L] is 1, over its length."""
  weights = mask[..., None].astype(jnp.float32)
  mean = (hidden.astype(jnp.float32) * weights).sum(axis=1) / jnp.maximum(weights.sum(axis=1), 1e-9)
  return mean * jax.lax.rsqrt(jnp.maximum(jnp.square(mean).sum(axis=-1, keepdims=True), 1e-24))


def _ranks(texts: np.ndarray, pairs: np.ndarray, text_ids: np.ndarray, pair_ids: np.ndarray) -> np.ndarray:
  """[N] int64, from 1: the place of each text's partner among the different second texts, nearest first; the text
  itself does not count among them, and a tie counts against the partner."""
  found, first = np.unique(pair_ids, return_index=True)
  ranks = np.zeros(len(texts), np.int64)
  step = max(1, _BLOCK // max(len(found), 1))
  for start in range(0, len(texts), step):
    part = slice(start, start + step)
    similar = texts[part] @ pairs[first].T
    own = (texts[part] * pairs[part]).sum(axis=1, keepdims=True)
    others = (found != text_ids[part, None]) & (found != pair_ids[part, None])
    ranks[part] = 1 + (others & (similar >= own)).sum(axis=1)
  return ranks


def spearman_rows(found: np.ndarray, scores: np.ndarray) -> np.ndarray:
  """[N] float64: Spearman's correlation plus its influence function at each example, which sums to 0.

  The correlation is that of F(X) and G(Y), the distribution functions with ties by half. The influence of (x, y) on
  E[F(X) G(Y)] is F(x) G(y) + E[G(Y); X > x] + E[F(X); Y > y] less its mean (Borkowf, "Computing the nonnull asymptotic
  variance of Spearman's rank correlation", 2002), and so that on either variance, which ties make differ from 1 / 12.
  """
  rho = correlations(found, scores)["spearman"]
  first, second = _distribution(found), _distribution(scores)
  spread = np.sqrt(first.var() * second.var())
  if not spread:
    return np.full(len(found), rho)

  def influence(x: np.ndarray, y: np.ndarray, of_x: np.ndarray, of_y: np.ndarray) -> np.ndarray:
    moved: np.ndarray = of_x * of_y + _above(x, of_y) + _above(y, of_x)
    return moved - moved.mean()

  own = [influence(x, x, of, of) / of.var() for x, of in ((found, first), (scores, second))]
  rows: np.ndarray = rho + influence(found, scores, first, second) / spread - rho / 2 * (own[0] + own[1])
  return rows


def _distribution(values: np.ndarray) -> np.ndarray:
  """The share of the values that lie below each, ties by half: in (0, 1)."""
  from scipy import stats  # slow to import

  ranks: np.ndarray = (stats.rankdata(values) - 0.5) / len(values)
  return ranks


def _above(values: np.ndarray, others: np.ndarray) -> np.ndarray:
  """[N]: the mean over all examples of `others` where `values` lies above the example's own, ties by half."""
  order = np.argsort(values, kind="stable")
  totals = np.concatenate([[0.0], np.cumsum(others[order])])
  ordered = values[order]
  below = totals[np.searchsorted(ordered, values, side="left")]
  up_to = totals[np.searchsorted(ordered, values, side="right")]
  return (totals[-1] - (below + up_to) / 2) / len(values)
