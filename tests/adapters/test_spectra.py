"""Effective rank and intruder dimensions on matrices whose answers are known, and on trained tiny models."""

from __future__ import annotations

import numpy as np
import pytest

from peftjax import methods
from peftjax.adapters import spectra
from peftjax.errors import UserError
from tests.methods import tiny


def orthogonal(rng, side):
  return np.linalg.qr(rng.normal(size=(side, side)))[0]


def made(rng, values, inputs, outputs):
  """A kernel [inputs, outputs] with given singular values."""
  middle = np.zeros((inputs, outputs))
  places = np.arange(len(values))
  middle[places, places] = values
  return orthogonal(rng, inputs) @ middle @ orthogonal(rng, outputs)


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6)])
def test_effective_rank_of_known_singular_values(shape):
  rng = np.random.default_rng(0)
  assert spectra.effective_rank(made(rng, [2.0, 2.0, 2.0, 0, 0], *shape)) == pytest.approx(3.0)
  assert spectra.effective_rank(made(rng, [5.0, 0, 0, 0, 0], *shape)) == pytest.approx(1.0, rel=1e-5)
  shares = np.array([0.7, 0.2, 0.1])
  entropy = -(shares * np.log(shares)).sum()
  assert spectra.effective_rank(made(rng, [*(3 * shares), 0, 0], *shape)) == pytest.approx(np.exp(entropy))
  assert spectra.effective_rank(np.zeros(shape)) == 0.0


@pytest.mark.parametrize("shape", [(23, 17), (17, 23)])
def test_intruders_are_new_directions_of_the_outputs(shape):
  rng = np.random.default_rng(1)
  before = made(rng, np.linspace(5, 0.5, 17), *shape)
  assert spectra.intruders(before, np.zeros(shape)) == 0
  assert spectra.intruders(before, 0.3 * before) == 0  # stretched, not turned
  left, _values, right = np.linalg.svd(before, full_matrices=False)
  new = right[2:].sum(0) / np.sqrt(15)  # equally far from fifteen known directions of the outputs
  assert spectra.intruders(before, 100 * np.outer(left[:, 0], new)) == 1
  known = 100 * np.outer(rng.normal(size=shape[0]), right[3])  # a known direction of the outputs, from new inputs
  assert spectra.intruders(before, known, top=1) == 0


def test_agrees_with_a_whole_decomposition():
  rng = np.random.default_rng(2)
  before, change = rng.normal(size=(19, 31)), 3 * np.outer(rng.normal(size=19), rng.normal(size=31))
  whole = np.linalg.svd(before.T, full_matrices=False)[0]
  tuned = np.linalg.svd((before + change).T, full_matrices=False)[0][:, : spectra.TOP]
  wanted = (np.abs(whole.T @ tuned).max(0) < spectra.EPSILON).sum()
  assert spectra.intruders(before, change) == wanted > 0


def test_lora_has_at_most_its_rank_and_full_has_more():
  base = tiny.encoder()
  lora = tiny.added(methods.LoRA(rank=2, targets=("query", "value")), base)
  lora = tiny.replaced(lora, tiny.noise_on({path: x for path, x in tiny.trainable(lora).items() if "lora" in path}))
  found = spectra.diagnose(base, lora)
  assert {row["name"].rpartition(".")[2] for row in found["matrices"]} == {"query", "value"}
  assert len(found["matrices"]) == 2 * tiny.LAYERS
  assert all(1.0 <= row["effective_rank"] <= 2.0 + 1e-5 for row in found["matrices"])
  full = tiny.added(methods.Full(), base)
  tuned = spectra.diagnose(base, tiny.replaced(full, tiny.noise_on(tiny.trainable(full), scale=0.01)))
  assert tuned["effective_rank"] > 4 and len(tuned["matrices"]) > len(found["matrices"])
  assert not any("classifier" in row["name"] for row in tuned["matrices"])
  assert tuned["intruders"] <= found["intruders"] or found["intruders"] == 0


def test_merged_and_unmerged_change_alike():
  base = tiny.encoder()
  model = tiny.added(methods.LoRA(rank=3, targets=("key",)), base)
  model = tiny.replaced(model, tiny.noise_on({path: x for path, x in tiny.trainable(model).items() if "lora" in path}))
  one, other = ({name: change for name, _, change in spectra.changes(base, x)} for x in (model, model.merge()))
  assert one.keys() == other.keys() and len(one) == tiny.LAYERS
  for name, change in one.items():
    np.testing.assert_allclose(change, other[name], atol=1e-6)
  assert list(spectra.changes(base, tiny.added(methods.LoRA(rank=3), base))) == []  # nothing trained yet


def test_what_is_no_change_of_weights_says_so():
  with pytest.raises(UserError, match="prompt cannot be merged"):
    spectra.diagnose(tiny.encoder(), tiny.added(methods.Prompt(num_virtual_tokens=2)))
