"""Weighted classification losses against torch's own."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch

from peftjax import tasks

WEIGHTS = (0.5, 2.0, 0.25, 1.0)


def mean_loss(task, logits, labels) -> float:
  batch = {"labels": labels, "weight": np.ones(len(labels), "f4")}
  total, weight, _ = task.loss(lambda inputs: {"logits": logits}, batch, jax.random.key(0))
  return float(total / weight)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighted_cross_entropy(smoothing):
  random = np.random.default_rng(0)
  logits, labels = random.normal(size=(11, 4)).astype("f4"), random.integers(4, size=11).astype("i4")
  task = tasks.make("text_classification", "abcd", smoothing, class_weights=WEIGHTS)
  wanted = torch.nn.CrossEntropyLoss(torch.tensor(WEIGHTS), label_smoothing=smoothing)
  expected = wanted(torch.tensor(logits), torch.tensor(labels, dtype=torch.int64))
  np.testing.assert_allclose(mean_loss(task, logits, labels), float(expected), rtol=1e-5)


def test_weighted_logistic_loss():
  random = np.random.default_rng(1)
  logits, labels = random.normal(size=(11, 4)).astype("f4"), random.integers(2, size=(11, 4)).astype("f4")
  task = tasks.make("text_classification", "abcd", class_weights=WEIGHTS)
  expected = torch.nn.BCEWithLogitsLoss(torch.tensor(WEIGHTS))(torch.tensor(logits), torch.tensor(labels))
  np.testing.assert_allclose(mean_loss(task, logits, labels), float(expected), rtol=1e-5)
