"""Modules that moved are found under the names that scripts know them by."""

from __future__ import annotations

import importlib

import pytest


@pytest.mark.parametrize("name", ["chat", "collating", "language", "packing", "tokenizing"])
def test_a_moved_module_is_the_same_module(name):
  assert importlib.import_module(f"peftjax.data.{name}") is importlib.import_module(f"peftjax.data.inputs.{name}")
