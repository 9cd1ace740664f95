"""`train` with a grid in its config."""

from __future__ import annotations

import json

import pytest

from peftjax import cli
from peftjax import config as config_lib
from peftjax.errors import UserError
from peftjax.train import sweep


def with_sweep(config, **fields):
  with config.unlocked():
    for name, values in fields.items():
      section = config.sweep
      *parents, last = name.split("__")
      for parent in parents:
        section[parent] = section.get(parent, {})
        section = section[parent]
      section[last] = values
  return config


def test_a_grid_has_a_folder_for_each_run():
  runs = sweep.grid(with_sweep(config_lib.default(), seed=(0, 3), optim__learning_rate=(1, 1e-3), method__rank=(2,)))
  assert list(runs) == [
    "rank=2,learning_rate=1,seed=0", "rank=2,learning_rate=1,seed=3",
    "rank=2,learning_rate=0.001,seed=0", "rank=2,learning_rate=0.001,seed=3",
  ]  # fmt: skip
  last = runs["rank=2,learning_rate=0.001,seed=3"]
  assert (last.seed, last.optim.learning_rate, last.method.rank) == (3, 1e-3, 2) and not last.sweep


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"seed": 3}, r"sweep\.seed=3: expected different values, such as \(0, 1, 2\)"),
    ({"seed": (1, 1)}, r"sweep\.seed=\(1, 1\)"),
    ({"sead": (0, 1)}, r"sweep\.sead: no field 'sead'; .*seed"),
    ({"optin__learning_rate": (0.1,)}, "no section 'optin'; .*optim"),
    ({"train__steps": ("many",)}, r"sweep\.train\.steps: 'many' is no int"),
    ({"model__path": ("a/b", "c")}, "no name of a folder"),
    ({"optim__groups": (1,)}, r"sweep\.optim\.groups"),
  ],
)
def test_mistakes(fields, message):
  with pytest.raises(UserError, match=message):
    sweep.grid(with_sweep(config_lib.default(), **fields))


def test_the_verb_trains_a_grid(config, tmp_path, capsys):
  given = [f"{name}.{field}={config[name][field]}" for name in ("data", "optim", "train") for field in config[name]
           if config[name][field] != config_lib.default()[name][field]]  # fmt: skip
  swept = [
    "sweep.seed=(0, 1)",
    "sweep.method.rank=(2, 3)",
    "train.steps=3",
    "data.buckets=()",
    f"model.path={config.model.path}",
  ]
  command = ["train", f"--workdir={tmp_path}", *[f"--config.{one}" for one in (*given, *swept)]]
  assert cli.main([*command, "--json"]) == 0
  result = json.loads(capsys.readouterr().out)
  assert list(result) == ["rank=2,seed=0", "rank=2,seed=1", "rank=3,seed=0", "rank=3,seed=1"]
  for name, summary in result.items():
    assert json.loads((tmp_path / name / "summary.json").read_text()) == summary and summary["together"] == 4
  adapters = [one["parameters"]["adapter"] for one in result.values()]
  assert adapters[0] * 3 == adapters[2] * 2
  assert cli.main(command) == 0
  assert "rank=3,seed=1" in capsys.readouterr().out
