"""The notebooks run, and what is stored in them is what they print."""

from __future__ import annotations

import pytest

from experiments.pages import notebooks


@pytest.mark.parametrize("name", notebooks.names())
def test_it_prints_what_is_stored(name, tmp_path, monkeypatch):
  monkeypatch.delenv("XLA_FLAGS")  # as a reader runs them: real models learn, which unoptimised programs do slowly
  stored = notebooks.said(notebooks.read(name))
  assert any(stored)
  assert notebooks.said(notebooks.run(name, tmp_path)) == stored, "python -m experiments.pages.notebooks stores it anew"
