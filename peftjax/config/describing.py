"""`peftjax config`: every field with its type, default and meaning, or those whose names are like one."""

from __future__ import annotations

import difflib
from typing import Any

from rich.console import Console
from rich.markup import escape

from peftjax.config.checking import hint
from peftjax.config.table import ALIASES, EMPTY, FIELDS
from peftjax.errors import UserError

Row = dict[str, Any]


def described(wanted: str = "") -> list[Row]:
  """{"name", "default", "expected", "meaning"} of the fields of a section, of the field of a name (its own, or what
  other trainers call it), or of those that hold the text; of all without.

  Raises:
    UserError: no field is like it.
  """
  wanted = ALIASES.get(wanted, wanted).removeprefix("config.")
  rows = [
    {"name": name, "default": one.default, "expected": one.expected, "meaning": one.meaning}
    for name, one in FIELDS.items()
  ] + [
    {"name": name, "default": {}, "expected": "a section of its own fields", "meaning": meaning}
    for name, meaning in EMPTY.items()
  ]
  exact = [row for row in rows if row["name"] == wanted or row["name"].startswith(wanted + ".")]
  if not wanted or exact:
    return exact or rows
  held = [row for row in rows if wanted.lower() in f"{row['name']} {row['meaning']}".lower()]
  last = {row["name"].rpartition(".")[2]: row for row in rows}
  held += [last[one] for one in difflib.get_close_matches(wanted, last, cutoff=0.75) if last[one] not in held]
  if not held:
    raise UserError(f"peftjax config: no field {wanted!r}; {hint(wanted, FIELDS)}")
  return held


def sections() -> dict[str, list[str]]:
  """Section -> its fields, in the order of the table."""
  found: dict[str, list[str]] = {}
  for name in (*FIELDS, *EMPTY):
    section, _, field = name.partition(".")
    found.setdefault(section, []).append(field or section)
  return found


def show(rows: list[Row], console: Console) -> None:
  """A line for each field, its default as one would write it, and under it what it means."""
  for row in rows:
    console.print(f"[bold]{row['name']}[/] = {escape(repr(row['default']))}", highlight=False)
    console.print(
      f"    {row['meaning']}{': ' if row['meaning'] else ''}{row['expected']}", highlight=False, markup=False
    )
