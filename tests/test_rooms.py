"""Imports point one way through the package's rooms, without circles, and files stay small."""

from __future__ import annotations

import ast
import functools
import re
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path

import peftjax

ROOT = Path(peftjax.__file__).parent

# From the top down: a module may import those of its own line and of lines below. The longest name that fits it counts.
ROOMS = (
  (
    "cli",
    "verbs",
    "listing",
    "completion",
    "predicting",
    "new_examples",
    "serve",
    "__main__",
    "data.__main__",
    "compare.__main__",
  ),
  ("guide",),
  ("compare", "testing"),
  ("train",),
  (
    "text_generation",
    "transcription",
    "image_generation",
    "image_features",
    "sampling_verb",
    "textual_inversion",
    "interop.lm_eval",
  ),
  ("tasks", "parallel", "optim", "galore", "eva"),
  ("",),  # peftjax itself, the public names
  ("loading", "wrap.making"),
  ("model",),
  ("adding", "saving", "summary", "composite", "vocabulary", "adapters", "interop"),
  ("wrap",),
  ("models", "quantize_model"),
  ("methods",),
  ("data",),
  ("stacks",),
  ("masks", "sites"),
  ("buffers",),
  ("trees",),
  (
    "config",
    "dataflow",
    "diffusion",
    "draws",
    "errors",
    "extras",
    "files",
    "hub",
    "image_sheets",
    "kinds",
    "memory",
    "no_tpu",
    "huge_pages",
    "outputs",
    "own_code",
    "named_code",
    "own_digest",
    "patterns",
    "placement",
    "quantities",
    "quantize",
    "registry",
    "stored",
    "leases",
  ),
)

MODULES = {
  ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").removesuffix("."): path
  for path in ROOT.rglob("*.py")
}


def imported(path: Path) -> Iterator[str]:
  """Dotted names that a file imports, also within functions, but not for types alone."""
  pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
  while pending:
    node = pending.pop()
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
      pending += node.orelse
      continue
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: a relative import"
      yield from (f"{node.module}.{alias.name}" for alias in node.names)
    pending += ast.iter_child_nodes(node)


@functools.cache
def edges() -> dict[str, set[str]]:
  """Module -> the modules that importing it imports; a package's own file stands for the package."""
  found: dict[str, set[str]] = {}
  for name, path in MODULES.items():
    found[name] = set()
    for full in imported(path):
      if full != "peftjax" and not full.startswith("peftjax."):
        continue
      target = full.removeprefix("peftjax").removeprefix(".")
      while target not in MODULES:
        target = target.rpartition(".")[0]
      found[name].add(target)
      parents = target.split(".")[:-1]  # importing a.b.c runs a and a.b first
      for end in range(1, len(parents) + 1):
        parent = ".".join(parents[:end])
        if parent in MODULES and not f"{name}.".startswith(f"{parent}."):
          found[name].add(parent)
    found[name].discard(name)
  return found


def circles(graph: Mapping[str, set[str]]) -> list[set[str]]:
  """The sets of modules that import each other, directly or not."""
  reached = {name: reachable(graph, name) for name in graph}
  found: list[set[str]] = []
  for name in graph:
    circle = {other for other in reached[name] if name in reached[other]}
    if circle and circle not in found:
      found.append(circle)
  return found


def reachable(graph: Mapping[str, set[str]], start: str) -> set[str]:
  """What `start` imports, directly or not."""
  seen: set[str] = set()
  pending = list(graph[start])
  while pending:
    name = pending.pop()
    if name not in seen:
      seen.add(name)
      pending += graph[name]
  return seen


def room(module: str) -> int:
  """The line of `ROOMS` that a module belongs to."""
  fits = [(name, line) for line, names in enumerate(ROOMS) for name in names
          if module == name or (name and module.startswith(name + "."))]  # fmt: skip
  assert fits, f"{module} belongs to no room"
  return max(fits, key=lambda fit: len(fit[0]))[1]


def test_a_module_imports_its_own_room_and_those_below():
  above = [f"{module} -> {target}" for module, targets in edges().items() for target in targets
           if room(target) < room(module)]  # fmt: skip
  assert above == []


def test_the_page_shows_the_rooms():
  """A row a line, from the top down; a row whose room holds more than it names ends in "..."."""
  page = (ROOT.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
  table = page.partition("| room | what is in it |")[2].partition("\n\n")[0].splitlines()[2:]
  assert len(table) == len(ROOMS)
  for row, names in zip(table, ROOMS):
    cell = row.split(" | ")[0]
    shown = {one.removesuffix(".py").rstrip("/").replace("/", ".").removeprefix("__init__")
             for one in re.findall(r"`([^`]*)`", cell)}  # fmt: skip
    assert shown <= set(names) and (shown == set(names)) != cell.endswith("..."), row


def test_no_modules_import_each_other():
  assert circles(edges()) == []


def test_a_circle_is_seen():
  assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [{"a", "b", "c"}]


def test_an_import_within_a_function_counts_and_one_for_types_does_not(tmp_path):
  file = tmp_path / "module.py"
  file.write_text(
    "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n  from peftjax.model import Model\n"
    "def f():\n  from peftjax.train import loop\n"
  )
  assert set(imported(file)) == {"typing.TYPE_CHECKING", "peftjax.train.loop"}


def test_files_are_small():
  lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
  assert {name: count for name, count in lines.items() if count > 500} == {}
  assert statistics.median(lines.values()) <= 120


def test_training_and_studies_name_nothing_of_text():
  """Text is the token input's: what trains, compares and lays out knows neither its arrays nor its tokenizer."""
  rooms = ("train", "compare", "parallel")
  found = {
    name
    for name, path in MODULES.items()
    if name.split(".")[0] in rooms and {"input_ids", "tokenizer", "attention_mask"} & set(_words(path))
  }
  assert found == set()


def _words(path: Path) -> list[str]:
  return re.findall(r"[a-z_]+", path.read_text(encoding="utf-8"))
