"""Batches of examples whose lengths are measured as they come."""

from __future__ import annotations

import pickle

import numpy as np
from hypothesis import given, settings

from peftjax.data import loader, measuring
from peftjax.data.batching import FILL, MEGABATCH
from peftjax.data.unmeasured import UnmeasuredOrder
from tests.data.test_batching import BUCKETS, passes
from tests.data.test_loader import cache, config, take, tokenizer  # noqa: F401
from tests.data.tiny import text_loaders


class Lengths:
  """Of the ids 3(n - 1), ..., 3, 0, in that order; notes which are asked for."""

  def __init__(self, lengths):
    self.lengths, self.asked = lengths, []

  def __call__(self, ids):
    self.asked.append(ids)
    return self.lengths[len(self.lengths) - 1 - ids // 3]


def order_of(lengths, batch_size, seed):
  """(the order, id -> length, what is asked)."""
  ids, lengths_of = np.arange(len(lengths))[::-1] * 3, Lengths(lengths)
  order = UnmeasuredOrder(ids, lengths_of, batch_size, BUCKETS, seed)
  return order, dict(zip(ids.tolist(), lengths.tolist())), lengths_of


def batch(order, epoch, number):
  batches, place = order.at(epoch, number)
  return batches.ids[place], int(batches.lengths[place])


@settings(max_examples=40, deadline=None)
@given(passes())
def test_an_epoch_has_every_example_once_in_buckets_that_fit(drawn):
  lengths, batch_size, seed, epoch = drawn
  order, length_of, _ = order_of(lengths, batch_size, seed)
  found = [batch(order, epoch, number) for number in range(order.steps_per_epoch)]
  ids = np.concatenate([one for one, _ in found])
  assert sorted(ids[ids != FILL]) == sorted(length_of)
  for row, padded in found:
    longest = max(length_of[one] for one in row if one != FILL)
    assert padded == min(bucket for bucket in BUCKETS if bucket >= longest)
    assert row[0] != FILL and (np.diff((row == FILL).astype(int)) >= 0).all()


def test_a_batch_is_found_without_those_before_it_and_asks_for_the_lengths_of_its_run_alone():
  lengths = np.random.default_rng(0).integers(1, 17, 5 * MEGABATCH * 3 + 7)
  order, _, _ = order_of(lengths, 3, 11)
  inside = [batch(order, 1, number) for number in range(order.steps_per_epoch)]
  late, _, lengths_of = order_of(lengths, 3, 11)
  number = 3 * MEGABATCH + 5
  row, padded = batch(late, 1, number)
  assert (row == inside[number][0]).all() and padded == inside[number][1]
  assert [len(one) for one in lengths_of.asked] == [MEGABATCH * 3]
  again = pickle.loads(pickle.dumps(late))
  assert (batch(again, 1, number)[0] == row).all()
  assert any((batch(order, 0, number)[0] != batch(order, 1, number)[0]).any() for number in range(4))


def test_a_large_split_trains_as_its_epoch_says_and_goes_on_where_it_was(config, tokenizer, monkeypatch):  # noqa: F811
  monkeypatch.setattr(loader, "MEASURED_AT_ONCE", 3)
  made = text_loaders(config, tokenizer)
  train = made.train
  assert train.measured is None and any("measured as they come" in note for note in train.notes)
  taken = take(train, 2 * train.steps_per_epoch + 1)
  first = np.concatenate([one["index"][one["weight"] > 0] for one in taken[: train.steps_per_epoch]])
  assert sorted(first) == list(range(made.dataset.splits["train"]))
  for workers in (0, 1):
    config.data.workers = workers
    later = text_loaders(config, tokenizer).train
    state = later.get_state() | {"step": train.steps_per_epoch}
    later.set_state(state)
    for expected in taken[train.steps_per_epoch :]:
      found = next(later)
      assert found.keys() == expected.keys() and all((found[name] == expected[name]).all() for name in expected)
  monkeypatch.setattr(loader, "MEASURED_AT_ONCE", 10**6)
  assert text_loaders(config, tokenizer).train.get_state()["identity"] != state["identity"]


def test_few_of_many_examples_are_the_only_ones_that_are_measured(config, tokenizer, monkeypatch):  # noqa: F811
  config.data.train_examples, config.data.eval_examples = 4, 2
  expected = text_loaders(config, tokenizer)
  wanted = take(expected.train, 3), list(expected.evals["train"])
  monkeypatch.setattr(loader, "MEASURED_AT_ONCE", 5)
  monkeypatch.setattr(measuring, "MEASURED_AT_ONCE", 5)
  monkeypatch.setattr(measuring, "measure", None)
  found = text_loaders(config, tokenizer)
  for some, others in zip(wanted, (take(found.train, 3), list(found.evals["train"]))):
    assert len(some) == len(others)
    assert all((one[name] == other[name]).all() for one, other in zip(some, others) for name in one)
