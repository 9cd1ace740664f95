"""The site of docs/ builds without a warning, and asks nothing of another host when it is read."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FETCHED = re.compile(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
  folder = tmp_path_factory.mktemp("site")
  build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", f"--site-dir={folder}"]
  done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr[-3000:]
  return folder


def test_nothing_is_fetched_from_elsewhere(site):
  pages = {page: page.read_text(encoding="utf-8") for page in site.rglob("*.html")}
  assert len(pages) > 80
  found = {page.name: FETCHED.findall(text) for page, text in pages.items()}
  assert {name: one for name, one in found.items() if one} == {}
  assert all("@import" not in style.read_text() for style in site.rglob("*.css"))


def test_the_reference_and_the_notebooks_are_pages(site):
  texts = {name: re.sub("<[^>]*>", "", (site / f"{name}.html").read_text(encoding="utf-8")) for name in (
    "reference/python", "reference/extending", "reference/verbs", "reference/config", "notebooks/first_steps",
  )}  # fmt: skip
  assert "save_adapter" in texts["reference/python"]
  assert "create_shared" in texts["reference/extending"]
  assert "peftjax compare --workdir" in texts["reference/verbs"]
  assert "optim.learning_rate" in texts["reference/config"]
  assert "values train" in (site / "images" / "methods" / "lora.svg").read_text(encoding="utf-8")
  assert re.search(r"after [\d.]+% of 256 sentences", texts["notebooks/first_steps"])
