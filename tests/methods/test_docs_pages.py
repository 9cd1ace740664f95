"""What a page says that a method's command counts is what it counts, and the fields it names exist."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from pathlib import Path

import pytest

from peftjax import cli
from peftjax.methods import METHODS

FOLDER = Path(__file__).parents[2] / "docs" / "methods"
PAGES = sorted(path.stem for path in FOLDER.glob("*.md"))
COMMAND = re.compile(r"^ {4}peftjax (inspect .*?)\s+# adapter: (\d+)$", re.MULTILINE)


COMMANDS = [(name, *found) for name in PAGES for found in COMMAND.findall((FOLDER / f"{name}.md").read_text())]


@pytest.mark.parametrize(("name", "command", "adapter"), COMMANDS, ids=[name for name, *_ in COMMANDS])
def test_the_command_gives_the_count(name, command, adapter, capsys):
  assert cli.main([*shlex.split(command), "--json"]) == 0
  assert json.loads(capsys.readouterr().out)["adapter"] == int(adapter)


@pytest.mark.parametrize("name", [name for name in PAGES if name in METHODS])
def test_the_fields_exist(name):
  rows = re.findall(r"^\| `(\w+)` \|", (FOLDER / f"{name}.md").read_text(), re.MULTILINE)
  assert set(rows) <= {field.name for field in dataclasses.fields(METHODS[name])}
