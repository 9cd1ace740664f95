"""What needs a package that is not installed says so in one line, with what installs it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from peftjax import UserError
from peftjax.extras import require

SETUP = Path(__file__).parents[1] / "setup.py"


def test_a_package_that_is_there_is_taken():
  require("this", "numpy", "numbers")


def test_one_that_is_not_is_named_with_its_extra(monkeypatch, tmp_path):
  with pytest.raises(UserError, match=r"^this needs no_such_package: pip install 'peftjax\[such\]'$"):
    require("this", "no_such_package", "such")
  (tmp_path / "left_behind").mkdir()
  monkeypatch.syspath_prepend(str(tmp_path))
  with pytest.raises(UserError, match="needs left_behind"):  # a folder of this name is no package
    require("this", "left_behind", "such")
  monkeypatch.setitem(sys.modules, "numpy", None)
  with pytest.raises(UserError, match="needs numpy"):
    require("this", "numpy", "numbers")


def test_every_extra_that_is_named_is_one_of_the_packages():
  extras = set(re.findall(r'^    "(\w+)": ', SETUP.read_text(encoding="utf-8"), re.MULTILINE))
  named = {
    found
    for path in (SETUP.parent / "peftjax").rglob("*.py")
    for found in re.findall(r'require\([^)]*"(\w+)"\)', path.read_text(encoding="utf-8"))
  }
  assert named and named <= extras
