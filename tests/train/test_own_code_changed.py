"""A run that goes on after code of the user's own has changed: refused where the updates follow from that code."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from peftjax import cli
from peftjax.config import default
from peftjax.named_code import check_code, code_of
from tests.test_predicting_own import MODULE

METHOD = """
import dataclasses
from typing import ClassVar

from peftjax.methods import Full

SCALE = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Half(Full):
  name: ClassVar[str] = "half"
  learning_rate: ClassVar[float] = SCALE * 1e-4


def get_config():
  return "half"
"""


@pytest.fixture
def train(tmp_path, monkeypatch):
  """Trains in one folder with the code that is given; what is said of it, and the exit code."""
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(sys, "dont_write_bytecode", True)
  names = {"model.path": "net", "data.name": "windows", "task.name": "Events"}
  flags = [f"--config.{field}=own_events:{name}" for field, name in names.items()]
  flags += ["--config.train.steps=1", "--config.train.batch_size=4", "--config.method.name=own_half:Half"]
  run = tmp_path / "run"

  def trained(events=MODULE, method=METHOD, more=()):
    (run / "summary.json").unlink(missing_ok=True)  # as where it ended after its last update
    for name, text in {"own_events": events, "own_half": method}.items():
      (tmp_path / f"{name}.py").write_text(text)
      sys.modules.pop(name, None)
    return cli.main(["train", f"--workdir={run}", "--json", "--config.train.tensorboard=False", *flags, *more])

  yield trained
  for name in ("own_events", "own_half"):
    sys.modules.pop(name, None)


def test_a_run_goes_on_only_with_the_code_that_it_was_trained_with(train, tmp_path, capsys):
  assert train() == 0
  for name, changed in {
    "own_events:Events": {"events": MODULE.replace("** 2).mean(-1)", "** 4).mean(-1)")},
    "own_events:net": {"events": MODULE.replace("x.sum(1) @", "x.mean(1) @")},
    "own_half:Half": {"method": METHOD.replace("SCALE = 1.0", "SCALE = 0.5")},
  }.items():
    capsys.readouterr()
    assert train(**changed) == 2
    said = f"peftjax: {tmp_path / 'run'} comes from other code of {name}: use another --workdir, or, where it was"
    assert capsys.readouterr().err.splitlines()[-1].startswith(said)
  other = {"method": METHOD.replace('return "half"', "return None"), "events": f"# more\n{MODULE}"}
  assert train(**other) == 0
  assert train(**changed, more=("--config.data.code_changed=True",)) == 0


def test_what_decides_nothing_of_the_updates_may_change(monkeypatch, tmp_path):
  """Evaluators count in a study, writers nowhere, nor what is studied; runs of earlier versions have kept nothing."""
  config = default()
  config.method.name, config.train.evaluators, config.train.writers = "own:M", ("own:E",), ("own:W",)
  config.compare.dimensions, config.task.name = ("own:D",), "own:T"
  task = SimpleNamespace(input="own:I", evaluators=("predict", "own:F"))
  monkeypatch.setitem(sys.modules, "own", SimpleNamespace(T=task))
  monkeypatch.setattr("peftjax.registry._named", {f"own:{name}" for name in "MEWDTIF"})
  assert list(code_of(config)) == ["own:E", "own:F", "own:I", "own:M", "own:T"]
  assert list(code_of(config, scores=False)) == ["own:I", "own:M", "own:T"]
  check_code({}, code_of(config), tmp_path, code_changed=False)
