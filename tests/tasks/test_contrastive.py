"""Contrastive losses against torch's functions, ranks and correlations against scipy and brute force."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch
from scipy import stats

from peftjax import tasks
from peftjax.data.sources.types import Header
from peftjax.errors import UserError
from peftjax.tasks.contrastive import Contrastive, pooled, spearman_rows


def batch_of(rows=7, length=5, width=6, scored=False, seed=0):
  """(batch, forward): the states of a token are a table's rows."""
  random = np.random.default_rng(seed)
  table = random.normal(size=(23, width)).astype("f4")
  batch = {"weight": np.ones(rows, "f4")}
  for side in ("", "pair_"):
    batch[f"{side}input_ids"] = random.integers(23, size=(rows, length))
    batch[f"{side}attention_mask"] = (np.arange(length) < random.integers(3, length + 1, (rows, 1))).astype("i4")
  if scored:
    batch["labels"] = np.linspace(0, 1, rows, dtype="f4")
  return batch, lambda inputs, key=None: {"last_hidden_state": jax.numpy.asarray(table)[inputs["input_ids"]]}


def torch_vectors(batch, forward, side):
  """Mean pooling as sentence-transformers does it, then cosine's normalisation."""
  hidden = torch.tensor(np.asarray(forward({"input_ids": batch[f"{side}input_ids"]})["last_hidden_state"]))
  mask = torch.tensor(batch[f"{side}attention_mask"]).unsqueeze(-1).expand(hidden.size()).float()
  mean = torch.sum(hidden * mask, 1) / torch.clamp(mask.sum(1), min=1e-9)
  return torch.nn.functional.normalize(mean, p=2, dim=1)


@pytest.mark.parametrize("scale", [20.0, 3.5])
def test_the_loss_is_multiple_negatives_ranking(scale):
  batch, forward = batch_of()
  task = Contrastive(scale)
  total, weight, extra = task.loss(forward, batch, jax.random.key(0))
  texts, pairs = (torch_vectors(batch, forward, side) for side in ("", "pair_"))
  scores = texts @ pairs.T * scale
  wanted = torch.nn.CrossEntropyLoss()(scores, torch.arange(len(scores)))
  np.testing.assert_allclose(float(total / weight), float(wanted), rtol=1e-5)
  hits = (scores.argmax(1) == torch.arange(len(scores))).float().sum()
  assert float(extra["in_batch_accuracy"]) == pytest.approx(float(hits))


def test_rows_that_fill_up_are_no_negatives_and_low_scores_are_no_positives():
  batch, forward = batch_of(scored=True)
  task = Contrastive(5.0, positive_score=0.4, scored=True)
  batch["weight"][-2:] = 0
  total, weight, _ = task.loss(forward, batch, jax.random.key(0))
  texts, pairs = (torch_vectors(batch, forward, side)[:5] for side in ("", "pair_"))
  losses = torch.nn.functional.cross_entropy(texts @ pairs.T * 5.0, torch.arange(5), reduction="none")
  assert float(weight) == 2
  np.testing.assert_allclose(float(total), float(losses[batch["labels"][:5] >= 0.4].sum()), rtol=1e-5)


def test_an_embedding_is_the_mean_over_the_mask_and_has_a_gradient_at_zero():
  hidden, mask = np.zeros((2, 3, 4), "f4"), np.array([[1, 1, 0], [0, 0, 0]])
  hidden[0] = [[1, 2, 0, 0], [3, 2, 0, 0], [9, 9, 9, 9]]
  np.testing.assert_allclose(pooled(hidden, mask)[0], [2**-0.5, 2**-0.5, 0, 0], rtol=1e-6)
  assert np.isfinite(jax.grad(lambda x: pooled(x, mask).sum())(hidden)).all()


@pytest.mark.parametrize("scored", [False, True])
def test_metrics(scored):
  batch, forward = batch_of(rows=31, length=4, scored=scored)
  task = tasks.from_config(
    "contrastive", tasks.config_lib.default().task,
    Header("x", fields=("text", "text_pair", *(["label"] if scored else [])), label_kind="number" if scored else ""),
  )  # fmt: skip
  found = {name: np.array(one) for name, one in task.predict(forward, batch).items()}
  texts = [{"text": f"text {index}", "text_pair": f"pair {index}"} for index in range(31)]
  texts[3]["text_pair"], texts[5]["text"] = texts[2]["text_pair"], texts[4]["text_pair"]
  found["pair"][3], found["text"][5] = found["pair"][2], found["pair"][4]
  found = task.finish({**found, "index": np.arange(31)}, texts)
  metrics, rows = task.metrics(found), task.per_example(found)
  vectors = [torch_vectors(batch, forward, side).double().numpy() for side in ("", "pair_")]
  vectors[1][3], vectors[0][5] = vectors[1][2], vectors[1][4]
  cosines = vectors[0] @ vectors[1].T
  nearer = cosines > np.diag(cosines)[:, None]
  nearer[:, 3] = False  # the text of 2 again
  nearer[[2, 3], 2] = False
  nearer[5, 4] = False  # the text itself
  ranks = nearer.sum(1) + 1
  chosen = batch["labels"] >= 0.5 if scored else np.ones(31, bool)
  assert metrics["accuracy"] == pytest.approx((ranks == 1)[chosen].mean())
  assert metrics["mean_reciprocal_rank"] == pytest.approx((1 / ranks)[chosen].mean())
  assert metrics["loss"] == pytest.approx(found["loss"][chosen].mean())
  assert list(metrics) == [spec.name for spec in task.specs]
  if scored:
    assert metrics["spearman"] == pytest.approx(stats.spearmanr(np.diag(cosines), batch["labels"]).statistic)
    assert metrics["pearson"] == pytest.approx(stats.pearsonr(np.diag(cosines), batch["labels"]).statistic)
    assert rows["spearman"].mean() == pytest.approx(metrics["spearman"])
    assert task.main_metric == "spearman"


@pytest.mark.parametrize("levels", [0, 2, 4])
def test_rows_of_a_rank_correlation_vary_as_leaving_one_out_does(levels):
  """Against the jackknife's pseudo-values (Efron), with scores that are all different, or ties of a few levels."""
  random = np.random.default_rng(levels)
  found = random.normal(size=160)
  scores = found + random.normal(size=160)
  if levels:
    scores = np.floor(stats.rankdata(scores) * levels / 161)
  rho = stats.spearmanr(found, scores).statistic
  left_out = [stats.spearmanr(np.delete(found, one), np.delete(scores, one)).statistic for one in range(160)]
  pseudo = 160 * rho - 159 * np.array(left_out)
  rows = spearman_rows(found, scores)
  assert rows.mean() == pytest.approx(rho)
  assert np.corrcoef(rows, pseudo)[0, 1] > 0.995
  assert rows.std() == pytest.approx(pseudo.std(), rel=0.03)


def test_a_constant_side_has_rows_of_nothing():
  np.testing.assert_array_equal(spearman_rows(np.arange(5.0), np.ones(5)), np.zeros(5))


def test_mistakes():
  settings = tasks.config_lib.default().task
  with pytest.raises(UserError, match="reads pairs of texts; csv:x holds text, label"):
    tasks.from_config("contrastive", settings, Header("csv:x", fields=("text", "label")))
  with pytest.raises(UserError, match="the labels of csv:x are no scores; open it as pairs:FILE"):
    tasks.from_config(
      "contrastive", settings, Header("csv:x", fields=("text", "text_pair", "label"), label_kind="class")
    )
  with pytest.raises(UserError, match="task.scale=0.0: expected a positive number"):
    tasks.make("contrastive", scale=0)
