"""The verbs and the config's fields as pages of the site, made when it is built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from peftjax.config import ALIASES
from peftjax.config.describing import described
from peftjax.verbs import VERBS, Verb


def _flags(verb: Verb) -> list[str]:
  """Rows of the table of what a verb takes."""
  words = [(name if name in verb.required else f"[{name}]", text) for name, text in verb.words.items()]
  flags = [
    (f"--{name}=", text + ("; needed" if name in verb.required else "") + ("; repeatable" * (name in verb.repeated)))
    for name, text in verb.flags.items()
  ]
  switches = [(f"--{name}", text) for name, text in verb.switches.items()]
  return [f"| `{name}` | {_cell(text)} |" for name, text in (*words, *flags, *switches)]


def _cell(text: str) -> str:
  return text.replace("|", "\\|")


def verbs() -> str:
  """The page of the verbs."""
  lines = [
    "# Verbs",
    "",
    "As `peftjax VERB --help` prints them, with the fields of each section. All take `--json`.",
    "[The command line](../command_line.md) shows them at work.",
  ]
  for name, verb in VERBS.items():
    lines += ["", f"## {name}", "", f"{verb.help[0].upper()}{verb.help[1:]}.", ""]
    lines += [f"    peftjax {example}" for example in verb.examples]
    if rows := _flags(verb):
      lines += ["", "| | |", "|---|---|", *rows]
    if verb.sections:
      read = ", ".join(f"[`{section}`](config.md#{section})" for section in verb.sections)
      lines += ["", f"Sections of the config that it reads: {read}."]
  return "\n".join(lines) + "\n"


def config() -> str:
  """The page of the config's fields."""
  aliases: dict[str, list[str]] = {}
  for theirs, ours in ALIASES.items():
    aliases.setdefault(ours, []).append(theirs)
  lines = [
    "# Fields of the config",
    "",
    "As `peftjax config` prints them. `--config.FIELD=value` sets one on the command line, `config.FIELD = value` in a",
    "file. The fields of a method stand on [its page](../methods.md), those of a task or an input are told by",
    "`peftjax list tasks NAME` and `peftjax list inputs NAME`.",
  ]
  sections: dict[str, list[dict[str, Any]]] = {}
  for row in described():
    sections.setdefault(row["name"].partition(".")[0], []).append(row)
  for section, rows in sections.items():
    head = ["| field | default | meaning | takes | elsewhere called |", "|---|---|---|---|---|"]
    lines += ["", f"## {section}", "", *head, *(_row(row, aliases.get(row["name"], ())) for row in rows)]
  return "\n".join(lines) + "\n"


def _row(row: dict[str, Any], aliases: Sequence[str]) -> str:
  also = ", ".join(f"`{one}`" for one in aliases if one != row["name"].rpartition(".")[2])
  told = f"{_cell(row['meaning'])} | {_cell(row['expected'])}"
  return f"| `{row['name']}` | `{row['default']!r}` | {told} | {also} |"


PAGES: dict[str, Callable[[], str]] = {"verbs.md": verbs, "config.md": config}
