"""What is installed: the wheel holds all files of the package, and the page of licences all packages."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from experiments import licences

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_what_the_package_reads(tmp_path):
  build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
  copy = tmp_path / "source"
  tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
  wanted = [one for one in tracked if one.startswith("peftjax/") and (ROOT / one).is_file()]
  for name in (*wanted, "setup.py", "pyproject.toml", "README.md", "LICENSE"):
    (copy / name).parent.mkdir(parents=True, exist_ok=True)
    (copy / name).write_bytes((ROOT / name).read_bytes())
  subprocess.run([*build, f"--wheel-dir={tmp_path}", str(copy)], check=True, capture_output=True)
  (wheel,) = tmp_path.glob("peftjax-*.whl")
  held = set(zipfile.ZipFile(wheel).namelist())
  assert "peftjax/py.typed" in held and not set(wanted) - held
  assert not [name for name in held if name.startswith(("tests/", "experiments/", "configs/"))]


@pytest.mark.slow  # a new package in the lock: python -m experiments.licences
def test_the_page_of_licences_names_every_package():
  assert licences.PAGE.read_text() == licences.page(licences.names())
