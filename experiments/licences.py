"""The licences of what peftjax installs: docs/licences.md.

python -m experiments.licences

Read from the metadata of the packages that are installed here, by the names in requirements.lock.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable
from pathlib import Path

from peftjax.files import write_text

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "licences.md"
_SHORT = {"Apache Software License": "Apache-2.0", "MIT License": "MIT", "BSD License": "BSD"}
_LONGEST = 60  # characters of a licence's name; longer entries hold the licence itself


def names() -> list[str]:
  """The packages of requirements.lock."""
  lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
  return [line.partition("==")[0].strip() for line in lines if "==" in line and not line.startswith("#")]


def licence_of(package: str) -> str:
  """What the package's metadata says: an SPDX expression, else its classifiers, else the name that it gives."""
  metadata = importlib.metadata.metadata(package)
  if expression := metadata.get("License-Expression"):
    return str(expression)
  listed = [one.rpartition(" :: ")[2] for one in metadata.get_all("Classifier") or () if one.startswith("License ::")]
  found = [_SHORT.get(one, one) for one in listed if one != "OSI Approved"]
  said = (metadata.get("License") or "").strip()
  if not found and said and "\n" not in said and len(said) <= _LONGEST:
    found = [said]
  return " / ".join(found) or "see its files"


def page(packages: Iterable[str]) -> str:
  """The page as a whole."""
  rows = [f"| {one} | {licence_of(one)} |" for one in sorted(packages, key=str.lower)]
  return "\n".join([
    "# Licences of what is installed",
    "",
    "peftjax is Apache-2.0 ([LICENSE](../LICENSE)). What `pip install` brings besides, as its own metadata say",
    "(`python -m experiments.licences`); packaged models and data keep theirs ([data.md](data.md)).",
    "",
    "| package | licence |",
    "|---|---|",
    *rows,
    "",
  ])  # fmt: skip


if __name__ == "__main__":
  write_text(PAGE, page(names()))
