"""The memory ledger of tiny models: exact arguments, residuals that remat and freezing shrink, and its report."""

from __future__ import annotations

import json

import pytest
from ml_collections import ConfigDict

from peftjax import config as config_lib
from peftjax.compare.dimensions import memory
from peftjax.train import residuals
from peftjax.train.assemble import setting
from peftjax.train.residuals import Shape
from tests.compare.synthetic import measured, summary_of
from tests.methods import tiny

SHAPES = (Shape(4, 4), Shape(4, 8), Shape(2, 8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  place = tmp_path_factory.mktemp("model")
  (place / "config.json").write_text(json.dumps({**tiny.config(), "architectures": ["BertForSequenceClassification"]}))
  return place


def config(folder, **method):
  made = config_lib.default()
  made.model.path = str(folder)
  made.train.batch_size, made.data.max_length, made.data.buckets = 4, 8, ()
  made.task.name, made.task.num_labels = "text_classification", 5
  with made.unlocked():
    made.method = ConfigDict(method)
  return made


@pytest.fixture(scope="module")
def ledgers(folder):
  known = {"4x4": 11, "4x8": 12, "2x8": 13}
  return {
    name: residuals.ledger(setting(config(folder, **method)), known, SHAPES)
    for name, method in {"full": {"name": "full"}, "lora": {"name": "lora", "rank": 2}}.items()
  }


def test_arguments_are_exact(ledgers):
  full, lora = (ledgers[name]["shapes"] for name in ("full", "lora"))
  head = 4 * (tiny.HIDDEN * 5 + 5)
  added = 4 * 2 * 2 * 2 * (tiny.HIDDEN + tiny.HIDDEN)  # float32, layers, query and value, rank 2
  assert full[0]["arguments"]["base"] == 0
  assert lora[0]["arguments"]["adapter"] == added + head
  assert lora[0]["arguments"]["base"] == full[0]["arguments"]["adapter"] - head
  assert lora[0]["arguments"]["optimizer"] == pytest.approx(2 * (added + head), rel=0.05)  # and a few counters
  by_batch = [at["arguments"]["batch"] for at in lora]
  assert by_batch[1] - by_batch[0] == 4 * 4 * 4 * 3 and by_batch[1] == 2 * by_batch[2]  # ids, mask, token types
  assert [at["temporary"] for at in lora] == [11, 12, 13]


def test_residuals_shrink_with_remat_and_with_freezing(ledgers):
  for one in ledgers.values():
    for at in one["shapes"]:
      held = at["residuals"]
      assert held["none"] > held["minimal"] > held["full"] > 0
  full, lora = (ledgers[name]["shapes"][-1]["residuals"] for name in ("full", "lora"))
  assert lora["none"] < full["none"]  # a frozen kernel's input is not kept


def test_residuals_grow_with_the_batch_and_faster_with_the_length(ledgers):
  short, long, fewer = (at["residuals"]["none"] for at in ledgers["lora"]["shapes"])
  assert long == pytest.approx(2 * fewer, rel=0.02)  # but for what has no rows
  assert long > 1.9 * short


def test_the_largest_step_is_compiled_where_nothing_is_known(folder):
  made = config(folder, name="lora", rank=2)
  found = residuals.ledger(setting(made), shapes=(Shape(1, 4), Shape(2, 4)))
  assert found["shapes"][0]["temporary"] is None and found["shapes"][1]["temporary"] > 0
  assert found["remat"] == "minimal"


def test_shapes_come_from_what_training_compiled(folder):
  made = setting(config(folder, name="full"))
  around = residuals.shapes_around(made, ("4x3", "4x5", "4x6", "4x8", "9x7"))
  assert around == [Shape(4, 3), Shape(4, 6), Shape(4, 8), Shape(1, 8), Shape(2, 8)]
  assert residuals.shapes_around(made)[:3] == [Shape(4, 2), Shape(4, 4), Shape(4, 8)]


def test_section(ledgers):
  summary = summary_of("full", "lora")
  own = [measured(row, memory.NAME, **one) for row, one in ledgers.items()]
  section = memory.section(memory.summarize(own, summary), own, summary)
  assert "At 4 × 8" in section.sentences[1] and len(section.rows) == 6
  assert all(plot.draw(narrow) is not None for plot in section.plots for narrow in (True, False))
  assert len(section.columns) == len(section.rows[0])
