"""The order of batches: a pure function of numbers."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftjax.data.batching import (
  FILL,
  MEGABATCH,
  bucket_lengths,
  evaluation_batches,
  rows,
  scores,
  subset,
  training_batches,
)
from peftjax.errors import UserError

BUCKETS = (4, 9, 16)


@st.composite
def passes(draw):
  count = draw(st.integers(1, 300))
  lengths = np.array(draw(st.lists(st.integers(1, 16), min_size=count, max_size=count)))
  return lengths, draw(st.integers(1, 9)), draw(st.integers(0, 2**63)), draw(st.integers(0, 3))


@settings(max_examples=60, deadline=None)
@given(passes())
def test_an_epoch_has_every_example_once_in_buckets_that_fit(drawn):
  lengths, batch_size, seed, epoch = drawn
  ids = np.arange(len(lengths))[::-1] * 3  # ids need be neither sorted nor dense
  batches = training_batches(ids, lengths, batch_size, BUCKETS, seed, epoch)
  assert sorted(batches.ids[batches.ids != FILL]) == sorted(ids)
  assert batches.ids.shape == (-(-len(ids) // batch_size), batch_size)
  assert ((batches.ids == FILL).sum(axis=1) > 0).sum() <= 1
  length_of = dict(zip(ids, lengths, strict=True))
  for row, padded in zip(batches.ids, batches.lengths, strict=True):
    longest = max(length_of[one] for one in row if one != FILL)
    assert padded == min(bucket for bucket in BUCKETS if bucket >= longest)
    fills = row == FILL
    assert not fills[0]
    assert (np.diff(fills.astype(int)) >= 0).all()


@settings(max_examples=30, deadline=None)
@given(passes())
def test_evaluation_has_every_example_once_shortest_first(drawn):
  lengths, batch_size, _, _ = drawn
  batches = evaluation_batches(lengths, batch_size, BUCKETS)
  ids = batches.ids[batches.ids != FILL]
  assert sorted(ids) == list(range(len(lengths)))
  assert (np.diff(lengths[ids]) >= 0).all()
  assert (batches.ids[:-1] != FILL).all()


def test_epochs_and_seeds_differ_and_repeat():
  ids, lengths = np.arange(200), np.full(200, 3)

  def order(seed: int, epoch: int) -> list[int]:
    return training_batches(ids, lengths, 8, BUCKETS, seed, epoch).ids.ravel().tolist()

  assert order(0, 0) == order(0, 0)
  assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_the_order_is_the_same_on_every_machine():
  batches = training_batches(np.arange(1000), np.arange(1000) % 16 + 1, 32, BUCKETS, 7, 2)
  digest = hashlib.sha256(batches.ids.tobytes() + batches.lengths.tobytes()).hexdigest()
  assert digest[:16] == "3439c16b8f7ce9a6"


def test_batches_hold_similar_lengths_but_not_the_same_examples_each_epoch():
  lengths = np.arange(MEGABATCH * 8 * 4) % 16 + 1
  first, second = (training_batches(np.arange(len(lengths)), lengths, 8, BUCKETS, 0, epoch) for epoch in (0, 1))
  spread = np.ptp(lengths[first.ids], axis=1)
  assert spread.mean() < 2  # of 16 lengths; unsorted batches of 8 would spread over about 13
  together = {tuple(sorted(row)) for row in first.ids}
  assert not together & {tuple(sorted(row)) for row in second.ids}


@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 500))
def test_smaller_subsets_lie_in_larger_ones(count, small, large):
  small, large = sorted((min(small, count), min(large, count)))
  assert set(subset(count, small)) <= set(subset(count, large))
  assert len(set(subset(count, large))) == large
  assert sorted(subset(count, 0)) == list(range(count))


def test_a_subset_is_drawn_from_everywhere_and_cannot_be_more_than_there_is():
  assert 400 < subset(1000, 500).mean() < 600
  with pytest.raises(UserError, match="train_examples=11: the training split has 10"):
    subset(10, 11)


def test_scores_are_uniform_and_independent_of_each_other():
  a, b = (scores(4000, 3, epoch).astype(np.float64) / 2**64 for epoch in (0, 1))
  assert abs(a.mean() - 0.5) < 0.02
  assert abs(np.corrcoef(a, b)[0, 1]) < 0.05
  assert abs(np.corrcoef(a[:-1], a[1:])[0, 1]) < 0.05


@given(st.integers(1, 6), st.integers(1, 6))
def test_processes_share_a_batch_without_gap_or_overlap(each, count):
  taken = [index for process in range(count) for index in range(each * count)[rows(each * count, process, count)]]
  assert taken == list(range(each * count))


def test_sizes_that_do_not_fit_are_said():
  with pytest.raises(UserError, match="a batch of 6 does not divide over 4 processes"):
    rows(6, 0, 4)
  with pytest.raises(UserError, match="data.buckets"):
    bucket_lengths((8, 0), 16)
  assert bucket_lengths((), 16) == (16,)
  assert bucket_lengths((32, 8, 8), 16) == (8, 16)
