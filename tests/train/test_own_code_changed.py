"""A run that goes on after code of the user's own has changed: refused where the updates follow from that code."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

from peftjax import cli
from peftjax.config import default
from peftjax.named_code import check_code, code_of, names_of
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

SCORES = """
from peftjax.tasks import Metric
from peftjax.train.evaluators import Evaluated, Evaluator


class Norm(Evaluator):
  name = "norm"
  specs = (Metric("norm", "corpus"),)
  moments = ("during", "after")

  def run(self, leaves, loader):
    return Evaluated({"norm": 1.0}, [])


class Twice(Evaluator):
  name = "twice"
  specs = (Metric("twice", "corpus"),)

  def run(self, leaves, loader):
    return Evaluated({"twice": 2}, [])
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
  flags += ["--config.train.eval_every=1", "--config.train.best=train/norm"]
  flags += ["--config.train.evaluators=('own_scores:Norm','own_scores:Twice')"]
  run = tmp_path / "run"

  def trained(events=MODULE, method=METHOD, scores=SCORES, more=(), finished=False):
    if not finished:
      (run / "summary.json").unlink(missing_ok=True)  # as where it ended after its last update
    for name, text in {"own_events": events, "own_half": method, "own_scores": scores}.items():
      (tmp_path / f"{name}.py").write_text(text)
      sys.modules.pop(name, None)
    monkeypatch.setattr("peftjax.registry._named", set())  # as in a process of its own
    return cli.main(["train", f"--workdir={run}", "--json", "--config.train.tensorboard=False", *flags, *more])

  yield trained
  for name in ("own_events", "own_half", "own_scores"):
    sys.modules.pop(name, None)


CHANGED = {
  "own_events:Events": {"events": MODULE.replace("** 2).mean(-1)", "** 4).mean(-1)")},
  "own_events:net": {"events": MODULE.replace("x.sum(1) @", "x.mean(1) @")},
  "own_half:Half": {"method": METHOD.replace("SCALE = 1.0", "SCALE = 0.5")},
}
CHANGED["own_scores:Norm"] = {"scores": SCORES.replace("1.0", "1.5")}  # by which train.best decides
OF_SCORES = {"own_scores:Twice": {"scores": SCORES.replace("2}", "3}")}}


def test_a_finished_run_whose_code_changed_since_says_so(train, tmp_path, capsys):
  assert train() == 0
  summary = (tmp_path / "run" / "summary.json").read_bytes()
  named = ("events:Events", "events:Steps", "events:net", "events:windows", "half:Half", "scores:Norm", "scores:Twice")
  assert list(json.loads(summary)["code"]) == [f"own_{name}" for name in named]
  for name, changed in (CHANGED | OF_SCORES).items():
    capsys.readouterr()
    assert train(**changed, finished=True) == 2
    told = capsys.readouterr()
    assert not told.out and told.err == (
      f"peftjax: {tmp_path / 'run'} is finished, but the code of {name} has changed since, and its summary is that of "
      f"the old code: use another --workdir to train anew, or --config.data.code_changed=True for the old summary\n"
    )
  assert train(**changed, finished=True, more=("--config.data.code_changed=True",)) == 0
  told = capsys.readouterr()
  assert json.loads(told.out) == json.loads(summary) and "already finished" in told.err
  assert train(events=f"# more\n{MODULE}", finished=True) == 0 and "already finished" in capsys.readouterr().err
  assert (tmp_path / "run" / "summary.json").read_bytes() == summary


def test_a_run_goes_on_only_with_the_code_that_it_was_trained_with(train, tmp_path, capsys):
  assert train() == 0
  for name, changed in CHANGED.items():
    capsys.readouterr()
    assert train(**changed) == 2
    said = f"peftjax: {tmp_path / 'run'} comes from other code of {name}: use another --workdir, or, where it was"
    assert capsys.readouterr().err.splitlines()[-1].startswith(said)
  other = {"method": METHOD.replace('return "half"', "return None"), "events": f"# more\n{MODULE}"}
  other |= OF_SCORES["own_scores:Twice"]
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
  assert names_of(config, scores=False) == ["own:I", "own:M", "own:T"]
  check_code({}, code_of(config), tmp_path, code_changed=False)
