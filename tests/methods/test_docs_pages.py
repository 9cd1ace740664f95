"""What a page says that a method's command counts is what it counts, and the fields it names exist."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import shlex
from pathlib import Path

import pytest

from experiments.pages import method_figures
from peftjax import cli
from peftjax.methods import METHODS

FOLDER = Path(__file__).parents[2] / "docs" / "methods"
PAGES = sorted(path.stem for path in FOLDER.glob("*.md"))
COMMAND = re.compile(r"^ {4}peftjax (inspect .*?)\s+# adapter: (\d+)$", re.MULTILINE)


COMMANDS = [(name, *found) for name in PAGES for found in COMMAND.findall((FOLDER / f"{name}.md").read_text())]

# What no paper introduced
NO_PAPER = {"full", "head", "patterns", "hybrid", "trainable_tokens"}


@pytest.mark.parametrize(("name", "command", "adapter"), COMMANDS, ids=[name for name, *_ in COMMANDS])
def test_the_command_gives_the_count(name, command, adapter, capsys):
  assert cli.main([*shlex.split(command), "--json"]) == 0
  assert json.loads(capsys.readouterr().out)["adapter"] == int(adapter)


@pytest.mark.parametrize("name", [name for name in PAGES if name in METHODS])
def test_the_fields_exist(name):
  rows = re.findall(r"^\| `(\w+)` \|", (FOLDER / f"{name}.md").read_text(), re.MULTILINE)
  assert set(rows) <= {field.name for field in dataclasses.fields(METHODS[name])}


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_page_has_equation_figure_defaults_origin_and_when(name):
  text = (FOLDER / f"{name}.md").read_text()
  assert re.search(r"^ {4}(?!peftjax)\S", text, re.MULTILINE), "an equation"
  assert f"![{name}: which leaves of a layer train, to scale](../images/methods/{name}.svg)" in text
  assert "| field | default | meaning |" in text and "**When to use it:** " in text
  assert name in NO_PAPER or re.search(r"https://(arxiv\.org|openreview\.net)/", text)
  fields = {field.name: field for field in dataclasses.fields(METHODS[name])}
  rows = re.findall(r"^\| `(\w+)` \| `?([^|`]*)`? \|", text, re.MULTILINE)
  said = {field: _literal(cell.strip()) for field, cell in rows}
  given = {field: value for field, value in said.items() if isinstance(value, bool | int | float)}
  assert {field: fields[field].default for field in given} == given


def _literal(cell: str):
  try:
    return ast.literal_eval(cell)
  except (SyntaxError, ValueError):
    return None  # words: "by architecture", "as PEFT"


def _figure_is_drawn_anew(name):
  drawn = method_figures.draw(name, method_figures.model_of(name))
  assert (method_figures.FOLDER / f"{name}.svg").read_text() == drawn, "python -m experiments.pages.method_figures"


@pytest.mark.parametrize("name", ["lora", "vera", "prompt", "bitfit", "houlsby"])
def test_the_figure_is_what_the_code_adds(name):
  _figure_is_drawn_anew(name)


@pytest.mark.slow  # the same of the others
@pytest.mark.parametrize("name", sorted(METHODS))
def test_each_figure_is_what_the_code_adds(name):
  _figure_is_drawn_anew(name)
