"""Packing: rows that hold everything once, in an order that can be resumed, with the loss of the unpacked."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax import config as configs
from peftjax import masks, methods
from peftjax.data import load_tokenizer
from peftjax.data.inputs.packing import PackedOrder, Pieces, best_fit, pieces_of
from peftjax.errors import UserError
from peftjax.loading import from_config, initialise
from peftjax.tasks.causal_lm import CausalLM
from tests.data.language_folders import LLAMA, language_folder, reversal_data
from tests.data.tiny import jsonl, text_loaders
from tests.models import decoder_models
from tests.models.decoder_models import assert_close, random_model, token_ids, with_method

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return language_folder(tmp_path_factory.mktemp("lm") / "model", LLAMA)


@pytest.fixture
def config(tmp_path, monkeypatch):
  monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path / "cache"))
  config = configs.default()
  config.data.name = reversal_data(tmp_path / "data")
  config.data.max_length = 40
  config.data.packing = True
  config.train.batch_size = 4
  return config


def loaders(config, folder, **more):
  return text_loaders(config, load_tokenizer(folder), task="causal_lm", **more)


def test_best_fit_fills_rows_and_never_over():
  random = np.random.default_rng(0)
  for capacity, count in ((7, 1), (64, 300), (2048, 500)):
    lengths = np.sort(random.integers(1, capacity + 1, count))[::-1]
    rows = best_fit(lengths, capacity)
    filled = np.bincount(rows, weights=lengths)
    assert filled.max() <= capacity
    assert len(filled) <= 1.25 * np.ceil(lengths.sum() / capacity) + 1
  # The tightest room, not the first: 4 goes beside 6, not beside 5.
  assert best_fit([5, 6, 4, 5], 10).tolist() == [0, 1, 1, 0]


def test_pieces_cover_long_examples_once():
  pieces = pieces_of(np.array([3, 5, 8]), np.array([4, 11, 0]), 5)
  assert pieces.examples.tolist() == [3, 5, 5, 5]
  assert pieces.starts.tolist() == [0, 0, 5, 10]
  assert pieces.lengths.tolist() == [4, 5, 5, 1]


def test_every_epoch_holds_every_piece_once_in_an_order_of_its_own():
  lengths = np.random.default_rng(1).integers(1, 9, 203)
  plan = PackedOrder(Pieces(np.arange(203), np.zeros(203, int), lengths), 16, 8, seed=0)
  contents = []
  for epoch in (0, 1):
    batches = plan.epoch(epoch)
    assert batches.ids.shape == (plan.steps_per_epoch, 8)
    real = batches.ids[batches.ids >= 0]
    assert sorted(real) == list(range(plan.examples))
    assert sorted(np.concatenate(batches.rows)) == list(range(203))
    assert max(lengths[row].sum() for row in batches.rows) <= 16
    contents.append([tuple(batches.rows[row]) for row in real])
  assert contents[0] != contents[1] and set(contents[0]) != set(contents[1])
  assert plan.fill > 0.9


def test_rows_restart_positions_and_number_segments(config, folder):
  batch = next(loaders(config, folder).train)
  assert batch["input_ids"].shape == (4, 40) and "attention_mask" not in batch
  for segments, positions in zip(batch["segment_ids"], batch["position_ids"]):
    for segment in range(1, segments.max() + 1):
      assert positions[segments == segment].tolist() == list(range((segments == segment).sum()))
    assert segments.max() > 1 and (np.diff(segments[segments > 0]) >= 0).all()


def test_a_position_is_resumed_bitwise_and_processes_share_the_rows(config, folder):
  whole = loaders(config, folder).train
  batches = [next(whole) for _ in range(whole.steps_per_epoch + 3)]
  state = {**whole.get_state(), "step": 2}
  halves = [loaders(config, folder, process_index=process, process_count=2).train for process in (0, 1)]
  for half in halves:
    half.set_state(state)
  for expected in batches[2:]:
    parts = [next(half) for half in halves]
    for name, array in expected.items():
      np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array)
  other = config.copy_and_resolve_references()
  other.data.packing = False
  with pytest.raises(UserError, match="does not fit"):
    whole.set_state(loaders(other, folder).train.get_state())


def test_packed_loss_and_gradient_are_those_of_single_rows(config, folder):
  model = initialise(from_config(LLAMA), jax.random.key(0)).add(methods.LoRA(rank=3), jax.random.key(1))
  flat = masks.flatten(model.params)
  flat |= {path: jnp.full_like(flat[path], 0.05) for path in flat if path.endswith("lora_b")}
  trainable, frozen = masks.partition(masks.unflatten(flat), model.labels())

  @jax.jit
  def gradient(trainable, batch):
    def loss(trainable):
      params = masks.combine(trainable, frozen)
      total, weight, _ = CausalLM().loss(lambda inputs: model.forward(params, inputs), batch, KEY)
      return total, weight

    return jax.value_and_grad(loss, has_aux=True)(trainable)

  def sums(packing):
    config.data.packing = packing
    config.train.batch_size = 16
    train = loaders(config, folder).train
    parts = [gradient(trainable, next(train)) for _ in range(train.steps_per_epoch)]
    return jax.tree.map(lambda *leaves: sum(np.asarray(leaf, np.float64) for leaf in leaves), *parts)

  (packed, single) = (sums(packing) for packing in (True, False))
  (total, weight), grads = single
  assert weight == packed[0][1] > 200
  np.testing.assert_allclose(packed[0][0], total, rtol=1e-5)
  for ours, theirs in zip(jax.tree.leaves(packed[1]), jax.tree.leaves(grads), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize(
  "method",
  [methods.Prefix(num_virtual_tokens=3), methods.Houlsby(bottleneck_dim=3), methods.IA3()],
  ids=lambda method: method.name,
)
def test_methods_act_on_each_segment_as_on_a_row_of_its_own(method):
  model = with_method(random_model(decoder_models.LLAMA), method)
  first, second = token_ids(1, 5), token_ids(1, 7, seed=3)
  packed = model(
    input_ids=np.concatenate([first, second, np.zeros((1, 2), int)], axis=1),
    segment_ids=np.array([[1] * 5 + [2] * 7 + [0] * 2]),
    position_ids=np.array([[*range(5), *range(7), 0, 0]]),
  )["logits"]
  single = [model(input_ids=ids)["logits"] for ids in (first, second)]
  assert_close(packed[:, :12], np.concatenate(single, axis=1))


def test_a_prompt_before_packed_rows_is_refused():
  model = with_method(random_model(decoder_models.LLAMA), methods.Prompt(num_virtual_tokens=2))
  with pytest.raises(UserError, match="packed sequences cannot share it"):
    model(input_ids=token_ids(1, 4), segment_ids=np.array([[1, 1, 2, 2]]))


def test_long_texts_go_on_in_the_next_piece(config, folder, tmp_path):
  text = " ".join(f"{index}" for index in range(90))
  jsonl(tmp_path / "long" / "train.jsonl", [{"text": text}, {"text": "a b"}])
  config.data.name = f"jsonl:{tmp_path / 'long'}"
  tokenizer = load_tokenizer(folder, 10_000)
  train = loaders(config, folder).train
  batch = next(train)
  tokens = [
    row[segments == segment].tolist()
    for row, segments in zip(batch["input_ids"], batch["segment_ids"])
    for segment in range(1, segments.max() + 1)
  ]
  whole = tokenizer.encode([text]).ids[0].tolist()
  pieces = [whole[start : start + 40] for start in range(0, len(whole), 40)]
  assert sorted(tokens) == sorted([*pieces, tokenizer.encode(["a b"]).ids[0].tolist()])
  assert train.measured.cut == 0
  assert "sequences packed into" in train.notes[0]
