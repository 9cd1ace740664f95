"""Windows over long contexts against transformers' tokenizer with a stride, and where answers are in them."""

from __future__ import annotations

import numpy as np
import pytest
import transformers

from peftjax import config as configs
from peftjax import tasks
from peftjax.data import make_input, make_loaders, open_data
from peftjax.errors import UserError
from tests.tasks import small


@pytest.fixture
def setup(tmp_path, monkeypatch):
  monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path / "cache"))
  model = small.encoder(tmp_path / "model")
  config = configs.default()
  config.data.update({"name": f"squad:{small.squad(tmp_path / 'data.json')}", "max_length": 17, "buckets": (13,)})
  config.train.update({"batch_size": 5, "eval_batch_size": 4})
  data = open_data(config.data.name)
  task = tasks.from_config("question_answering", config.task, data)
  return config, data, model, lambda header: make_input(config, header, task, model)


def test_windows_are_those_of_transformers(setup):
  config, data, model, over = setup
  config.input.doc_stride = 6
  inputs, source = over(data), data.split("train")
  theirs = transformers.BertTokenizerFast.from_pretrained(model)
  several = 0
  for index in range(len(source)):
    example = source[index]
    wanted = theirs(example["question"].lstrip(), example["context"], truncation="only_second", max_length=17, stride=6,
                    return_overflowing_tokens=True, return_offsets_mapping=True)  # fmt: skip
    sizes = inputs.sizes([example])
    assert sizes.counts.tolist() == [len(wanted["input_ids"])]
    several += len(wanted["input_ids"]) > 1
    for part, ids in enumerate(wanted["input_ids"]):
      row = inputs.encode({**example, "part": part}, None)
      assert row["input_ids"].tolist() == ids and sizes.lengths[part] == len(ids)
      assert row["token_type_ids"].tolist() == wanted["token_type_ids"][part]
      for token, (place, offsets) in enumerate(zip(wanted.sequence_ids(part), wanted["offset_mapping"][part])):
        assert tuple(row["characters"][token]) == (offsets if place == 1 else (-1, -1))
      first, last = row["labels"]
      if first:
        text = example["context"][row["characters"][first][0] : row["characters"][last][1]]
        assert text == example["answers"][0]["text"]
      else:  # no token of the window is the whole answer
        starts = {int(one) for one in row["characters"][:, 0]}
        assert not example["answers"] or example["answers"][0]["answer_start"] not in starts
  assert several > 5


def test_every_window_is_a_row_with_its_questions_index(setup):
  config, data, _, over = setup
  loaders = make_loaders(config, data, over)
  counts = over(data).sizes([data.split("train")[index] for index in range(data.splits["train"])]).counts
  assert loaders.train.examples == counts.sum() > len(counts)
  seen = np.concatenate([next(loaders.train)["index"] for _ in range(loaders.train.steps_per_epoch)])
  assert np.bincount(seen[seen >= 0]).tolist() == counts.tolist()
  held = [batch["index"] for batch in loaders.evals["train"]]
  assert len(held) == len(loaders.evals["train"])
  assert np.bincount(np.concatenate(held)[np.concatenate(held) >= 0]).tolist() == counts.tolist()
  config.data.train_examples = 3
  few = make_loaders(config, data, over)
  chosen = {int(one) for batch in few.evals["train"] for one in batch["index"]} - {-1}
  assert len(chosen) == 3 and few.train.examples == sum(counts[index] for index in chosen)


def test_settings_that_leave_no_room(setup):
  config, data, _, over = setup
  config.input.doc_stride = 14
  with pytest.raises(
    UserError, match="a question of 2 tokens leaves no room for its context in a window of data.max_len"
  ):
    over(data).sizes([data.split("train")[0]])
  config.input.doc_stride = 17
  with pytest.raises(
    UserError, match="input.doc_stride=17: expected fewer than data.max_length=17, and no less than 0"
  ):
    over(data)
  long = {"question": "who " * 20, "context": "ada", "answers": []}
  config.input.doc_stride = 2
  with pytest.raises(UserError, match="a question of 20 tokens leaves no room"):
    over(data).sizes([long])
