"""The messages that docs/troubleshooting.md explains are the package's own; the fields and verbs it names exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import peftjax
from peftjax import cli
from peftjax.config import FIELDS, OPEN

ROOT = Path(peftjax.__file__).parent
TEXT = (ROOT.parent / "docs" / "troubleshooting.md").read_text()
OTHERS = ("RESOURCE_EXHAUSTED",)  # JAX's


def texts() -> str:
  """Every text in the package's code, one a line; what is put into one is an ellipsis."""
  found = []
  for path in ROOT.rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      if isinstance(node, ast.JoinedStr):
        parts = (one.value if isinstance(one, ast.Constant) else "…" for one in node.values)
        found.append("".join(map(str, parts)))
      elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        found.append(node.value)
  return "\n".join(found)


def test_each_message_is_one_of_the_package():
  rows = re.findall(r"^\| (.*?) \| ", TEXT, re.MULTILINE)
  messages = [one for row in rows for one in re.findall(r"`([^`]*…[^`]*)`", row) if not one.startswith(OTHERS)]
  assert len(messages) > 25
  known = texts()
  pieces = {piece.strip() for one in messages for piece in re.split(r"…|: |; |\(|tokenizer.json", one)}
  assert {piece for piece in pieces if len(piece) > 9 and piece not in known} == set()


def test_fields_flags_and_verbs_exist():
  sections = {name.partition(".")[0] for name in FIELDS}
  named = set(re.findall(r"--config\.([a-z_]+\.[a-z_.]+)=", TEXT))
  named |= {one for one in re.findall(r"`([a-z]+\.[a-z_]+)`", TEXT) if one.split(".")[0] in sections}
  assert {one for one in named if one not in FIELDS and not one.startswith(OPEN)} == set()
  assert set(re.findall(r"`peftjax ([a-z]+)", TEXT)) <= cli.VERBS.keys()
