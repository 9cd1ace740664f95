"""A digest of a user's own code changes with what a definition reaches, and with nothing else."""

from __future__ import annotations

import importlib
import sys

import pytest

from peftjax import named_code, own_digest
from peftjax.data.inputs.tokens import Tokens

WHOLE = '''
"""Windows."""
import numpy as np
from own_part import scaled, unused
import own_lists

SCALE = 2.0


def half(x):
  return x / 2


class Base:
  def spec(self):
    """Of a row."""
    return own_lists.NAMES


class Steps(Base):
  def encode(self, example):
    from own_late import late
    return late(scaled(half(example) * SCALE))


class Far:
  threshold = 1


if True:
  other = made = lambda: SCALE
Steps.fills = {"x": 0.0}
'''
PARTS = {
  "own_part": "FACTOR = 3\ndef scaled(x):\n  return x * FACTOR\ndef unused(x):\n  return x\n",
  "own_lists": "NAMES = ('a',)\n",
  "own_late": "def late(x):\n  return x\n",
}


@pytest.fixture
def digest(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.setattr(sys, "dont_write_bytecode", True)

  def made(name="Steps", **changed):
    """Of a definition in files with some parts of them replaced."""
    for file, text in {"own_windows": WHOLE, **PARTS}.items():
      for old, new in changed.get(file, ()):
        assert old in text
        text = text.replace(old, new)
      (tmp_path / f"{file}.py").write_text(text)
    sys.modules.pop("own_windows", None)
    importlib.invalidate_caches()
    importlib.import_module("own_windows")
    found = own_digest.of("own_windows", name)
    for file in PARTS:
      monkeypatch.delitem(sys.modules, file, raising=False)
    return found

  return made


@pytest.mark.parametrize(
  "changed",
  [
    {"own_windows": [("SCALE = 2.0", "SCALE = 3.0")]},
    {"own_windows": [("x / 2", "x / 3")]},
    {"own_windows": [("own_lists.NAMES", "own_lists.NAMES[:1]")]},
    {"own_windows": [('{"x": 0.0}', '{"x": 1.0}')]},
    {"own_part": [("FACTOR = 3", "FACTOR = 4")]},
    {"own_lists": [("'a'", "'b'")]},
    {"own_late": [("return x", "return -x")]},
  ],
)
def test_what_the_definition_reaches_counts(digest, changed):
  before = digest()
  assert len(before) == 64 and digest(**changed) != before and digest() == before


@pytest.mark.parametrize(
  "changed",
  [
    {"own_windows": [("threshold = 1", "threshold = 2")]},
    {
      "own_windows": [("Of a row.", "Of some rows."), ("SCALE = 2.0", "SCALE = 2.0  # twice\n"), ('"""Windows."""', "")]
    },
    {"own_windows": [("scaled, unused", "unused, scaled")]},
    {"own_part": [("def unused(x):\n  return x", "def unused(x):\n  return -x")]},
  ],
)
def test_other_code_comments_and_layout_do_not(digest, changed):
  assert digest() == digest(**changed)


def test_every_kind_of_name(digest):
  before = {name: digest(name) for name in ("made", "other", "Far", "absent")}
  changed = [("SCALE = 2.0", "SCALE = 3.0")]
  after = {name: digest(name, own_windows=changed) for name in before}
  assert {name for name in before if before[name] != after[name]} == {"made", "other", "absent"}


def test_what_has_no_file_and_what_is_packaged():
  assert own_digest.of("sys", "path") == named_code.name_of(Tokens) == ""


def test_the_code_that_runs_counts_not_what_its_file_became(digest, tmp_path):
  before = digest()
  (tmp_path / "own_windows.py").write_text("Steps = None\n")
  assert own_digest.of("own_windows", "Steps") == before
