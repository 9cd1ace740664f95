"""What docs/architecture.md says that a new kind touches is where the kinds that there are stand."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
CELLS = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if "/NAME.py`" in line]
# new -> (folder of its files, names that stand in a registry's file, that file)
ROWS = {
  new: (folder.removesuffix("/NAME.py`")[1:], re.findall(r"`([A-Z]+)`", line), re.findall(r"`([\w/]+\.py)`", line)[0])
  for new, folder, line, _ in CELLS
}


def test_every_registry_is_in_the_table():
  assert list(ROWS) == ["method", "family", "task", "source", "input", "evaluator", "writer", "dimension"]


@pytest.mark.parametrize("new", ROWS)
def test_a_kind_is_one_file_and_a_line(new):
  folder, tables, file = ROWS[new]
  module = importlib.import_module("peftjax." + file.removesuffix(".py").replace("/", ".").removesuffix(".__init__"))
  package = f"peftjax.{folder.replace('/', '.')}."
  entries, *others = (getattr(module, one) for one in tables or [f"{new.upper()}S"])
  assert len(entries) > 2 and all(set(one.values()) <= set(entries) for one in others)
  for name, one in entries.items():
    where = one.partition(":")[0] if isinstance(one, str) else one.__module__
    assert f"{where}.".startswith(package), (name, where)
