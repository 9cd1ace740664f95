"""Samples in the report: likeness and drift by row with intervals, and each row's pictures in the page."""

from __future__ import annotations

import dataclasses
import types

import pytest

from peftjax.compare.dimensions import samples, told
from peftjax.compare.drawing.svg import svg
from tests.compare import synthetic
from tests.data.pictures import picture

ROWS = {"full": 0.6, "lora": 0.8}


def records():
  found = []
  for one in synthetic.results({name: synthetic.METHODS[name] for name in ROWS}, seeds=3):
    measured = {"similarity": ROWS[one.row] + 0.01 * one.seed, "prior_drift": 0.1}
    if one.seed == 0:
      measured["sheet"] = told.packed(picture(60, 40))
    found.append(dataclasses.replace(one, dimensions={"samples": measured}))
  return found


def test_the_section_says_shows_and_lists():
  summary, found = synthetic.summary_of(*ROWS), records()
  section = samples.section(samples.summarize(found, summary), found, summary)
  assert section.sentences[0].startswith("Likeness to the subject: full 0.610 [0.585, 0.635]; lora 0.810")
  assert section.rows[1] == ("lora/seed-0", "0.800", "0.100")
  assert [plot.name for plot in section.plots] == [
    "samples-similarity", "samples-prior-drift", "samples-full", "samples-lora",
  ]  # fmt: skip
  for plot in section.plots:
    for narrow in (True, False):
      drawn = svg(plot.draw(narrow), plot.name, plot.title)
      assert ("data:image/png;base64," in drawn) == (plot.name in ("samples-full", "samples-lora"))


def test_what_a_trial_left_is_measured(tmp_path):
  (tmp_path / "samples").mkdir()
  picture(30, 20).save(tmp_path / "samples" / "000007.png")
  summary = {"step": 7, "metrics": {"train": {"loss": 1.0, "similarity": 0.5}, "retained": {"prior_drift": 0.2}}}

  def trained(seed, summary=summary):
    return types.SimpleNamespace(
      summary=summary, folder=tmp_path, study={"seeds": (3, 4)}, config=types.SimpleNamespace(seed=seed)
    )

  first, second = (samples.measure(trained(seed)) for seed in (3, 4))
  assert {name: first[name] for name in ("similarity", "prior_drift")} == {"similarity": 0.5, "prior_drift": 0.2}
  assert "sheet" in first
  assert second == pytest.approx({"similarity": 0.5, "prior_drift": 0.2})
  (tmp_path / "samples" / "000007.png").unlink()
  assert samples.measure(trained(3, {"step": 7, "metrics": {"train": {"loss": 1.0}}})) is None
