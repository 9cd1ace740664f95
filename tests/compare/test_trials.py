from __future__ import annotations

import pytest

from peftjax import config as config_lib
from peftjax.compare import trials
from peftjax.errors import UserError


def study(**methods):
  config = config_lib.default()
  config.compare.methods.update(methods)
  config.compare.reference = config.compare.baseline = ""
  return config


def test_every_row_under_every_seed_with_its_overrides():
  config = study(full={}, small={"method": {"name": "lora", "rank": 3}, "optim": {"learning_rate": 0.002}})
  config.compare.seeds = (4, 7)
  config.method.rank = 64  # of the study's own method, which no row has
  plan = trials.trials_of(config)
  assert [one.run for one in plan] == ["full/seed-4", "small/seed-4", "full/seed-7", "small/seed-7"]
  full, small = plan[0].config, plan[1].config
  assert full.method.to_dict() == {"name": "full"} and small.method.to_dict() == {"name": "lora", "rank": 3}
  assert small.optim.learning_rate == 0.002 and full.optim.learning_rate == config.optim.learning_rate
  assert (full.seed, plan[2].config.seed) == (4, 7)
  assert "compare" not in full and "test" in full.train.final_splits
  assert config.method.rank == 64 and config.train.final_splits == config_lib.default().train.final_splits


def test_without_rows_the_default_ones():
  assert {one.row for one in trials.trials_of(config_lib.default())} == set(trials.DEFAULT_ROWS)


@pytest.mark.parametrize(
  ("change", "said"),
  [
    ({"lora": {"optm": {}}}, "did you mean 'optim'"),
    ({"lora": {"optim": {"learning_rat": 0.1}}}, "did you mean 'learning_rate'"),
    ({"lora": {"optim": {"learning_rate": "fast"}}}, "expected float"),
    ({"lora": {"optim": 3}}, "expected its fields"),
    ({"lora": {"method": 3}}, r"compare\.methods\.lora\.method=3: expected its fields"),
    ({"lora": {"method": ()}}, r"compare\.methods\.lora\.method=\(\): expected its fields"),
    ({"lora": {"search": "rank"}}, r"compare\.methods\.lora\.search='rank': expected its fields"),
    ({"lora": 3}, r"compare\.methods\.lora=3: expected sections, such as {'method': {'rank': 8}}"),
    ({"lora": {"seed": 3}}, "no section 'seed'"),
    ({"lo/ra": {}}, "names a folder"),
  ],
)
def test_a_wrong_override_is_named(change, said):
  with pytest.raises(UserError, match=said):
    trials.trials_of(study(**change))


def test_rows_that_are_named_are_studied_alone():
  config = study(full={}, head={}, small={"method": {"name": "lora", "rank": 3}})
  config.compare.rows = ("small", "full")
  assert [one.run for one in trials.trials_of(config)] == [
    f"{row}/seed-{seed}" for seed in (0, 1) for row in ("small", "full")
  ]
  config.compare.baseline = "head"
  with pytest.raises(UserError, match="^compare.baseline='head' is no row of compare.rows; known: full, small"):
    trials.trials_of(config)


def test_a_row_of_nothing_is_its_method():
  """As `--config.compare.methods.lora={}` makes it."""
  found = trials.trials_of(study(full={}, lora=()))
  assert [one.config.method.name for one in found[:2]] == ["full", "lora"]


@pytest.mark.parametrize(
  ("field", "value", "said"),
  [
    ("reference", "ful", "'full'"),
    ("seeds", (1, 1), "different"),
    ("rows", ("full", "heat"), "'heat' is no row of compare.methods; did you mean 'head'"),
  ],
)
def test_a_wrong_study_is_named(field, value, said):
  config = study(full={}, head={})
  config.compare[field] = value
  with pytest.raises(UserError, match=said):
    trials.trials_of(config)


def test_fingerprint_changes_with_any_field_and_survives_json():
  config = trials.plain_config(trials.trials_of(study(lora={}))[0].config)
  other = trials.plain_config(trials.trials_of(study(lora={"train": {"epochs": 3.0}}))[0].config)
  assert trials.fingerprint(config) != trials.fingerprint(other)
  assert trials.config_changes(config, other) == ["train.epochs: 2.0 -> 3.0"]
