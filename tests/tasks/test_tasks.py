"""Losses that add up over micro-batches, and metrics against scikit-learn, scipy and seqeval."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftjax import tasks
from peftjax.errors import UserError
from peftjax.tasks import classification
from peftjax.tasks import token_classification as token

KEY = jax.random.key(0)


def forward_of(logits):
  return lambda inputs: {"logits": logits}


def text_batch(rows=7, labels=3, seed=0):
  random = np.random.default_rng(seed)
  logits = random.normal(size=(rows, labels)).astype("f4")
  batch = {
    "labels": random.integers(labels, size=rows).astype("i4"),
    "weight": random.uniform(0.5, 2, size=rows).astype("f4"),
  }
  return logits, batch


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_text_loss(smoothing):
  logits, batch = text_batch()
  batch["weight"][3] = 0
  total, weight, _ = tasks.make("text_classification", "abc", smoothing).loss(forward_of(logits), batch, KEY)
  probs = jax.nn.softmax(logits)
  soft = np.eye(3)[batch["labels"]] * (1 - smoothing) + smoothing / 3
  expected = (-(soft * np.log(probs)).sum(1) * batch["weight"]).sum()
  np.testing.assert_allclose(total, expected, rtol=1e-5)
  np.testing.assert_allclose(weight, batch["weight"].sum(), rtol=1e-6)


def test_loss_is_float32_whatever_the_logits():
  logits, batch = text_batch()
  total, _, _ = tasks.make("text_classification", "abc").loss(forward_of(jnp.asarray(logits, jnp.bfloat16)), batch, KEY)
  assert total.dtype == jnp.float32


def test_multilabel_and_regression_losses():
  logits, batch = text_batch()
  batch["labels"] = (np.random.default_rng(1).random((7, 3)) < 0.4).astype("f4")
  total, _, _ = tasks.make("text_classification", "abc").loss(forward_of(logits), batch, KEY)
  probs = 1 / (1 + np.exp(-logits))
  losses = -(batch["labels"] * np.log(probs) + (1 - batch["labels"]) * np.log(1 - probs)).mean(1)
  np.testing.assert_allclose(total, losses @ batch["weight"], rtol=1e-5)

  batch["labels"] = np.linspace(-1, 1, 7, dtype="f4")
  total, _, _ = tasks.make("text_classification", ()).loss(forward_of(logits[:, :1]), batch, KEY)
  np.testing.assert_allclose(total, (logits[:, 0] - batch["labels"]) ** 2 @ batch["weight"], rtol=1e-5)


def predictions_of(task, logits, batch):
  return {name: np.asarray(value) for name, value in task.predict(forward_of(jnp.asarray(logits)), batch).items()}


@pytest.mark.parametrize("seed", range(3))
def test_text_metrics_equal_scikit_learn(seed):
  from sklearn import metrics as scores

  logits, batch = text_batch(rows=23, labels=4, seed=seed)
  task = tasks.make("text_classification", "abcd")
  got = task.metrics(predictions_of(task, logits, batch))
  found = logits.argmax(1)
  assert got["accuracy"] == pytest.approx(scores.accuracy_score(batch["labels"], found))
  assert got["macro_f1"] == pytest.approx(scores.f1_score(batch["labels"], found, average="macro"))
  assert got["mcc"] == pytest.approx(scores.matthews_corrcoef(batch["labels"], found))


def test_metrics_of_a_constant_prediction():
  task = tasks.make("text_classification", "ab")
  logits = np.array([[1.0, 0.0]] * 4, "f4")
  batch = {"labels": np.array([0, 0, 1, 1], "i4"), "weight": np.ones(4, "f4")}
  got = task.metrics(predictions_of(task, logits, batch))
  assert got["mcc"] == 0.0 and got["accuracy"] == 0.5 and got["macro_f1"] == pytest.approx(1 / 3)


def test_regression_metrics_equal_scipy():
  from scipy import stats

  random = np.random.default_rng(0)
  logits = random.integers(4, size=(30, 1)).astype("f4")
  batch = {"labels": random.integers(5, size=30).astype("f4"), "weight": np.ones(30, "f4")}
  task = tasks.make("text_classification", ())
  got = task.metrics(predictions_of(task, logits, batch))
  assert got["pearson"] == pytest.approx(stats.pearsonr(logits[:, 0], batch["labels"])[0], rel=1e-5)
  assert got["spearman"] == pytest.approx(stats.spearmanr(logits[:, 0], batch["labels"])[0], rel=1e-5)


def test_multilabel_metrics():
  task = tasks.make("text_classification", "ab")
  logits = np.array([[1, -1], [1, 1], [-1, 1]], "f4")
  batch = {"labels": np.array([[1, 0], [1, 0], [0, 1]], "f4"), "weight": np.ones(3, "f4")}
  got = task.metrics(predictions_of(task, logits, batch))
  assert got["accuracy"] == pytest.approx(2 / 3) and got["micro_f1"] == pytest.approx(6 / 7)


def test_token_loss_ignores_unlabelled_tokens_and_filler_rows():
  random = np.random.default_rng(0)
  logits = random.normal(size=(3, 5, 4)).astype("f4")
  labels = random.integers(4, size=(3, 5)).astype("i4")
  labels[:, 0] = labels[1, 3:] = token.IGNORED
  batch = {"labels": labels, "weight": np.array([1, 2, 0], "f4")}
  task = tasks.make("token_classification", ("O", "B-X", "I-X", "B-Y"))
  total, weight, _ = task.loss(forward_of(logits), batch, KEY)
  log_probs = np.array(jax.nn.log_softmax(logits))
  expected = sum(-log_probs[0, t, labels[0, t]] for t in range(1, 5))
  expected += 2 * sum(-log_probs[1, t, labels[1, t]] for t in range(1, 3))
  np.testing.assert_allclose(total, expected, rtol=1e-5)
  assert float(weight) == 4 + 2 * 2
  got = task.metrics(predictions_of(task, logits, batch))
  np.testing.assert_allclose(got["loss"], expected / 8, rtol=1e-5)


TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.tuples(st.sampled_from(TAGS), st.sampled_from(TAGS)), min_size=1, max_size=9), min_size=1))
def test_entity_scores_equal_seqeval(rows):
  from seqeval import metrics, scheme

  length = max(len(row) for row in rows)
  labels = np.full((len(rows), length), token.IGNORED, "i4")
  found = np.zeros((len(rows), length), "i4")
  for index, row in enumerate(rows):
    labels[index, : len(row)] = [TAGS.index(true) for true, _ in row]
    found[index, : len(row)] = [TAGS.index(guess) for _, guess in row]
  task = tasks.make("token_classification", TAGS)
  ones = np.ones(len(rows))
  got = task.metrics({"found": found, "labels": labels, "loss": ones, "weight": ones})
  true_tags = [[true for true, _ in row] for row in rows]
  found_tags = [[guess for _, guess in row] for row in rows]
  if not any(token.entities(tags) for tags in true_tags + found_tags):
    assert got["f1"] == 0
    return
  options = {"mode": "strict", "scheme": scheme.IOB2, "zero_division": 0}
  assert got["f1"] == pytest.approx(metrics.f1_score(true_tags, found_tags, **options))
  assert got["precision"] == pytest.approx(metrics.precision_score(true_tags, found_tags, **options))
  assert got["recall"] == pytest.approx(metrics.recall_score(true_tags, found_tags, **options))


def test_labels_that_are_no_bio_have_no_entities():
  task = tasks.make("token_classification", ("NOUN", "VERB"))
  assert task.main_metric == "accuracy"
  one = np.zeros((1, 2), "i4")
  got = task.metrics({"found": one, "labels": one, "loss": np.ones(1), "weight": np.ones(1)})
  assert got == {"loss": 1.0, "accuracy": 1.0}


def test_ties_share_their_ranks():
  found = classification.correlations(np.array([3.0, 1.0, 3.0]), np.array([2.5, 1.0, 2.5]))
  assert found["spearman"] == pytest.approx(1.0)
  apart = classification.correlations(np.array([3.0, 1.0, 3.0]), np.array([2.0, 1.0, 3.0]))
  assert apart["spearman"] == pytest.approx(np.sqrt(3) / 2)  # of the ranks (2.5, 1, 2.5) and (2, 1, 3)


def test_a_constant_side_has_no_correlation():
  flat = classification.correlations(np.ones(3, "f4"), np.arange(3, dtype="f4"))
  assert flat == {"pearson": 0.0, "spearman": 0.0} == classification.correlations(np.ones(1), np.ones(1))


def test_unknown_task():
  with pytest.raises(UserError, match="did you mean 'text_classification'"):
    tasks.make("text_clasification", "ab")
