"""Calls on the pages take apart what a function gives as its annotation says."""

from __future__ import annotations

import ast
import typing
from pathlib import Path

from peftjax.train import finished

PAGES = (Path(__file__).parents[2] / "docs").glob("*.md")


def test_load_model_gives_as_many_things_as_are_shown():
  given = typing.get_args(typing.get_type_hints(finished.load_model)["return"])
  lines = [line.strip() for page in PAGES for line in page.read_text(encoding="utf-8").splitlines()]
  calls = [line for line in lines if "= finished.load_model(" in line]
  assert len(calls) > 1
  for call in calls:
    (assigned,) = ast.parse(call).body
    assert isinstance(assigned, ast.Assign) and isinstance(assigned.targets[0], ast.Tuple), call
    assert len(assigned.targets[0].elts) == len(given), call
