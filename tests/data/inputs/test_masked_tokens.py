"""Which tokens are hidden, what stands there instead, and what that depends on."""

from __future__ import annotations

import numpy as np
import pytest

from peftjax import config as configs
from peftjax import tasks
from peftjax.data import make_input, make_loaders, open_data
from peftjax.data.reading import example_rng
from peftjax.errors import UserError
from tests.data.tiny import jsonl
from tests.tasks import small

MASK, SPECIAL = small.VOCABULARY.index("[MASK]"), 5


@pytest.fixture
def setup(tmp_path, monkeypatch):
  monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path / "cache"))
  random = np.random.default_rng(0)
  rows = [{"text": f"{small.text(random, 12)} played{index}", "label": index % 2} for index in range(30)]
  config = configs.default()
  config.data.update({"name": f"jsonl:{jsonl(tmp_path / 'rows.jsonl', rows)}", "max_length": 19, "buckets": ()})
  config.train.update({"batch_size": 4, "eval_batch_size": 4})
  model, data = small.encoder(tmp_path / "model"), open_data(config.data.name)
  task = tasks.from_config("masked_lm", config.task, data)
  return config, data, lambda header: make_input(config, header, task, model)


def test_eight_one_and_one_in_ten(setup):
  _, data, over = setup
  inputs, example = over(data), {"text": " ".join(small.WORDS[:10])}
  plain = inputs.tokenizer.encode([example["text"]]).ids[0]
  count, rows = 3000, [inputs.encode(example, example_rng(0, epoch, 3)) for epoch in range(3000)]
  ids, labels = (np.stack([row[name] for row in rows]) for name in ("input_ids", "labels"))
  chosen = labels != -100
  assert not chosen[:, [0, -1]].any() and (np.where(chosen, labels, plain) == plain).all()
  assert (ids == plain)[~chosen].all()
  places, kept = count * 10, (ids == plain)[chosen].mean()
  assert chosen.sum() / places == pytest.approx(0.15, abs=0.01)
  assert (ids == MASK)[chosen].mean() == pytest.approx(0.8 + 0.1 / len(small.VOCABULARY), abs=0.02)
  assert kept == pytest.approx(0.1 + 0.1 / len(small.VOCABULARY), abs=0.02)
  other = ids[chosen & (ids != plain) & (ids != MASK)]
  assert len(np.unique(other)) == len(small.VOCABULARY) - 1


def test_whole_words_go_together(setup):
  config, data, over = setup
  config.input.whole_words = True
  inputs = over(data)
  text = {"text": "ada playeds engines played"}
  pieces = {"playeds": [2, 3], "engines": [4, 5]}
  hidden = np.stack([inputs.encode(text, example_rng(1, epoch, 0))["labels"] != -100 for epoch in range(400)])
  for places in pieces.values():
    assert (hidden[:, places].all(axis=1) == hidden[:, places].any(axis=1)).all() and hidden[:, places].any()
  assert not (hidden[:, 2] == hidden[:, 4]).all()


def test_draws_are_of_seed_epoch_and_example_and_evaluations_repeat(setup):
  config, data, over = setup
  first, again = make_loaders(config, data, over), make_loaders(config, data, over)
  epochs = [[next(first.train) for _ in range(first.train.steps_per_epoch)] for _ in range(2)]
  again.train.set_state({"step": first.train.steps_per_epoch + 2, "identity": first.train.get_state()["identity"]})
  for name, array in next(again.train).items():
    np.testing.assert_array_equal(array, epochs[1][2][name])
  labels = [{int(i): row for batch in epoch for i, row in zip(batch["index"], batch["labels"])} for epoch in epochs]
  assert sum((labels[0][key] != labels[1][key]).any() for key in labels[0] if key >= 0) > 10
  passes = [[batch["labels"] for batch in first.evals["validation"]] for _ in range(2)]
  for one, other in zip(*passes):
    np.testing.assert_array_equal(one, other)
  assert any((one != -100).any() for one in passes[0])
  spec = first.inputs.batch_spec(4)
  assert {name: (one.shape, one.dtype) for name, one in epochs[0][0].items()} == {
    name: (one.shape, one.dtype) for name, one in spec.items()
  }


def test_mistakes(setup, tmp_path):
  config, data, over = setup
  config.input.rate = 1.5
  with pytest.raises(UserError, match="input.rate=1.5: expected a share of the tokens"):
    over(data)
