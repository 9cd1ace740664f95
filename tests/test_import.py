"""What importing the package and asking for help import."""

from __future__ import annotations

import subprocess
import sys

import pytest

PACKAGE = """
import sys, peftjax
assert "jax" not in sys.modules
import peftjax.wrap.making
from peftjax.wrap import finding
from peftjax import *
assert wrap is peftjax.wrap is peftjax.wrap and wrap.__module__ == finding.__package__ + ".making"
assert peftjax.methods.LoRA and all(getattr(peftjax, name) for name in peftjax.__all__)
try:
  peftjax.lod
except AttributeError as error:
  assert "lod" in str(error)
"""
HELP = """
import sys
from peftjax import cli
assert cli.main(["--help"]) == 0 and cli.main(["trian"]) == 2
assert not {"jax", "flax", "numpy"} & set(sys.modules)
"""


@pytest.mark.parametrize("code", [PACKAGE, HELP], ids=["package", "help"])
def test_nothing_is_imported_before_it_is_asked_for(code):
  found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert found.returncode == 0, found.stderr
