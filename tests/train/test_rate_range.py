"""The learning rate range test."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from ml_collections import ConfigDict

from peftjax import cli, outputs
from peftjax.errors import UserError
from peftjax.train import loop, rate_range


def test_smoothing_is_that_of_pandas():
  losses = np.random.default_rng(0).normal(size=41)
  wanted = pd.Series(losses).ewm(alpha=1 - rate_range.KEPT, adjust=True).mean()
  np.testing.assert_allclose(rate_range.Curve(losses).smoothed, wanted, rtol=1e-12)


def test_the_suggestion_of_a_valley():
  rates = rate_range.rates_between(1e-5, 1.0, 101)
  np.testing.assert_allclose(rates, np.geomspace(1e-5, 1.0, 101))
  curve = rate_range.Curve((np.log10(rates) + 2) ** 2)
  found = rate_range.suggestion(rates, curve.smoothed)  # the smoothed loss lies behind its valley at 1e-2
  assert 1e-2 < found["lowest"] < 6e-2 and not found["edge"]
  assert found["suggested"] == pytest.approx(0.1 * found["lowest"], rel=0.05)
  assert rate_range.suggestion(rates, -rates)["edge"]


def test_a_test_beside_a_run(config, tmp_path, capsys):
  """The files of the run stay as they are; a group with a rate of its own keeps it."""
  config.train.update({"steps": 2, "save_every": 0})
  loop.train(config, tmp_path)
  before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
  fields = {"model.path": config.model.path, "data.name": config.data.name, "data.max_length": 16, "data.buckets": "()",
            "train.batch_size": 8, "train.eval_batch_size": 16}  # fmt: skip
  flags = [f"--config.{name}={value}" for name, value in fields.items()]
  assert cli.main(["range", f"--workdir={tmp_path}", "--json", "--from=1e-3", "--to=1e4", "--updates=40", *flags]) == 0
  found = json.loads(capsys.readouterr().out)
  assert {path: path.read_bytes() for path in before} == before
  assert json.loads((tmp_path / "range.json").read_text()) == found
  assert (tmp_path / "range.png").read_bytes().startswith(b"\x89PNG")
  assert len(found["rates"]) == len(found["losses"]) == len(found["smoothed"]) <= 40
  assert found["rates"][0] == 1e-3 and found["groups"] == ["adapter", "head"]
  assert 1e-3 < found["lowest"] < 1e4 and not found["edge"]
  assert cli.main(["range", f"--workdir={tmp_path}", "--updates=12", *flags,
                   "--config.optim.groups.head.learning_rate=1e-3"]) == 0  # fmt: skip
  assert "for adapter;" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("ends", "line"),
  [((1e-2, 1e-3, 20), "expected rates above 0 that rise"), ((1e-4, 1e-1, 3), "at least 10 updates")],
)
def test_rates_that_are_none(config, tmp_path, ends, line):
  with pytest.raises(UserError, match=line):
    rate_range.find(config, tmp_path, *ends)
  config.sweep = ConfigDict({"seed": (0, 1)})
  with pytest.raises(UserError, match="one run at a time"):
    rate_range.find(config, tmp_path, 1e-4, 1e-1, 20)


def test_files_of_others_stay(config, tmp_path):
  for name, content in (("range.png", "mine"), ("range.json", '{"mine": 1}')):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=f"{name} is no range test's, and would be replaced"):
      rate_range.find(config, tmp_path, 1e-6, 1.0, 10)
    assert (tmp_path / name).read_text() == content


def test_a_curve_that_was_changed_since_stays(config, tmp_path):
  with outputs.written(tmp_path, rate_range.FILES, "range") as folder:
    for name in rate_range.FILES:
      (folder / name).write_text('{"rates": [], "smoothed": []}')
  rate_range._check_own(tmp_path)
  (tmp_path / "range.png").write_text("mine")
  with pytest.raises(UserError, match=r"range\.png has been changed since peftjax wrote it, and would be replaced"):
    rate_range.find(config, tmp_path, 1e-6, 1.0, 10)
  assert (tmp_path / "range.png").read_text() == "mine"
  (tmp_path / outputs.LIST).unlink()  # as earlier versions left them
  rate_range._check_own(tmp_path)
