"""The studies kept in experiments/studies: whole, searched, and their conclusions follow from their records."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path

import pytest

from peftjax import config as config_lib
from peftjax.compare import __main__ as remake
from peftjax.compare.records import read_results
from peftjax.compare.trials import plain_config

KEPT = sorted(Path("experiments/studies").glob("*/record"))


def test_there_are_some():
  assert len(KEPT) == 8


@pytest.mark.parametrize("record", KEPT, ids=lambda path: path.parent.name)
def test_a_kept_study(record, tmp_path, capsys):
  folder = tmp_path / "again"
  folder.mkdir()
  for name in ("config.json", "results.jsonl", "search.json", "timing.json", "summary.json"):
    if (record / name).exists() or name != "timing.json":  # of a study that timed no steps
      shutil.copy(record / name, folder / name)
  assert remake.main([str(folder)]) == 0
  assert capsys.readouterr().out.strip() == str(folder / "report.html")
  for name in ("summary.json", "claims.json"):
    found, kept = (json.loads((one / name).read_text()) for one in (folder, record))
    assert alike(found, kept)
  assert (folder / "report.md").read_text() == (record / "report.md").read_text()

  results = read_results(record / "results.jsonl")
  rows, seeds = ({getattr(one, key) for one in results} for key in ("row", "seed"))
  sizes = {one.size for one in results}
  assert len(rows) >= 4 and len(seeds) >= 5 and len(results) == len(rows) * len(seeds) * len(sizes)
  assert {one["row"] for one in json.loads((record / "search.json").read_text())} == rows


@pytest.mark.parametrize("record", KEPT, ids=lambda path: path.parent.name)
def test_the_config_beside_a_record_is_what_ran(record):
  config = runpy.run_path(str(record.parent / "config.py"))["get_config"]()
  kept, found = json.loads((record / "config.json").read_text()), plain_config(config)
  assert found == newer(kept, plain_config(config_lib.default()))


def newer(kept, default):
  """The kept config with the defaults of fields that it is older than."""
  if not isinstance(kept, dict) or not isinstance(default, dict):
    return kept
  return {**default, **{name: newer(value, default.get(name)) for name, value in kept.items()}}


def test_a_folder_without_a_study(tmp_path, capsys):
  assert remake.main([str(tmp_path)]) == 2
  assert "no file" in capsys.readouterr().err
  (tmp_path / "results.jsonl").write_text("")
  assert remake.main([str(tmp_path)]) == 2
  assert "config.json" in capsys.readouterr().err


def alike(one, other):
  """Whether two JSON values are equal, numbers within rounding."""
  if isinstance(one, dict):
    return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
  if isinstance(one, list):
    return len(one) == len(other) and all(map(alike, one, other))
  return one == pytest.approx(other, rel=1e-6) if isinstance(one, float) else one == other
