"""Every example of docs/your_own_model.md runs, in order."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "your_own_model.md"


def test_the_examples_run(tmp_path, monkeypatch, capsys):
  pytest.importorskip("equinox")
  pytest.importorskip("haiku")
  monkeypatch.chdir(tmp_path)
  text = PAGE.read_text()
  names: dict[str, object] = {}
  for number, code in enumerate(re.findall(r"```python\n(.*?)```", text, re.DOTALL)):
    exec(compile(code, f"example {number}", "exec"), names)
  table = re.search(r"```\n\n((?:    .*\n)+)", text)
  assert table is not None
  printed = [re.sub(r"\s+", " ", line).strip() for line in capsys.readouterr().out.splitlines()]
  for line in table.group(1).splitlines():
    assert line.strip() == "..." or re.sub(r"\s+", " ", line).strip() in printed, line
