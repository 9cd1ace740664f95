"""Losses, answers and embeddings of the three tasks against transformers' models on torch."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch

import peftjax
from peftjax import tasks
from tests.oracles import tiny
from tests.oracles.test_bert import assert_close


def loss_of(name, folder, batch):
  """The task's mean loss, with a row of weight 0 that must not count."""
  model = peftjax.load(folder)
  weight = np.append(np.ones(len(batch["labels"]), "f4"), 0)
  filled = {key: np.concatenate([value, value[:1]]) for key, value in batch.items()} | {"weight": weight}
  forward = lambda inputs, key=None: model.forward(model.params, inputs)  # noqa: E731
  total, count, _ = tasks.make(name).loss(forward, filled, jax.random.key(0))
  return total / count


@pytest.mark.parametrize("name", ["BertForQuestionAnswering", "RobertaForQuestionAnswering"])
def test_the_loss_of_answers(name):
  reference, folder = tiny.model(name, num_labels=2)
  batch = tiny.inputs(name)
  labels = np.array([[2, 4], [0, 0], [1, 9]])  # within, nowhere, and an end in the padding
  theirs = reference(
    **{key: torch.tensor(value) for key, value in batch.items()},
    start_positions=torch.tensor(labels[:, 0]),
    end_positions=torch.tensor(labels[:, 1]),
  )
  characters = np.zeros((*batch["input_ids"].shape, 2), int)
  found = loss_of("question_answering", folder, {**batch, "labels": labels, "characters": characters})
  assert_close(found, theirs.loss)


@pytest.mark.parametrize("name", ["BertForMaskedLM", "RobertaForMaskedLM"])
def test_the_loss_of_hidden_tokens(name):
  reference, folder = tiny.model(name)
  batch = tiny.inputs(name)
  hidden = (np.random.default_rng(1).random(batch["input_ids"].shape) < 0.3) & (batch["attention_mask"] > 0)
  labels = np.where(hidden, batch["input_ids"], -100)
  theirs = reference(**{key: torch.tensor(value) for key, value in {**batch, "labels": labels}.items()})
  assert_close(loss_of("masked_lm", folder, {**batch, "labels": labels}), theirs.loss)


@pytest.mark.parametrize("name", ["BertModel", "RobertaModel"])
def test_the_loss_of_embeddings(name):
  """Multiple negatives ranking: mean pooling over the mask, cosines times 20, the partner on the diagonal."""
  reference, folder = tiny.model(name)
  sides = [tiny.inputs(name), {key: value[::-1].copy() for key, value in tiny.inputs(name, length=8).items()}]

  def embedded(batch):
    hidden, mask = (
      tiny.torch_outputs(reference, batch).last_hidden_state,
      torch.tensor(batch["attention_mask"])[..., None],
    )
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)

  pad = 1 if name.startswith("Roberta") else 0
  padded = {
    key: np.pad(value, ((0, 0), (0, 3)), constant_values=pad if key == "input_ids" else 0)
    for key, value in sides[1].items()
  }
  texts, pairs = map(embedded, sides)
  wanted = torch.nn.functional.cross_entropy(texts @ pairs.T * 20.0, torch.arange(3))
  batch = {**sides[0], **{f"pair_{key}": value for key, value in padded.items()}, "labels": np.zeros(3)}
  assert_close(loss_of("contrastive", folder, batch), wanted)
