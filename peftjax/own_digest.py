"""What tells one state of a user's own code from another: a digest of a definition and of what it uses.

Only the code that a definition reaches counts, so that an evaluator or `get_config` in the same file may change.
Comments, docstrings and the layout of lines do not count either.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftjax.registry import module_of

_INSTALLED = {Path(sysconfig.get_paths()[one]) for one in ("stdlib", "purelib", "platlib")}
_WHOLE = "*"  # in place of a name: all of a file


@dataclasses.dataclass(frozen=True)
class _Statement:
  """One that stands on a file's outermost level; of an import one for each name.

  Attributes:
    binds: the names that it gives something to.
    uses: the names that it reads.
    text: without comments and docstrings.
    imports: (level, module, the name in it or `_WHOLE`) of every import in it.
  """

  binds: frozenset[str]
  uses: frozenset[str]
  text: str
  imports: tuple[tuple[int, str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class _File:
  """A Python file.

  Attributes:
    path: absolute.
    root: the folder that its module's name starts from.
    statements: of it; one without names where it cannot be parsed.
  """

  path: Path
  root: Path
  statements: tuple[_Statement, ...]


# Path -> (what the module was loaded by, the file): the code that runs counts, not what it was changed to since
_read: dict[Path, tuple[Any, _File]] = {}


def of(module: str, name: str) -> str:
  """Hex digest of a definition in a module and of all that it uses of that file and of others of the same project.

  Args:
    module: as `sys.modules` has it.
    name: on its outermost level; where it has no statement of its own, the whole file counts.

  Returns:
    "" where the module was read from no file, as in a notebook.
  """
  loaded = sys.modules.get(module)
  given = getattr(loaded, "__file__", None)
  if not given or not given.endswith(".py") or not Path(given).is_file():
    return ""
  path, depth = Path(given).resolve(), module.count(".") + (Path(given).name == "__init__.py")
  start = _file(path, path.parents[depth])
  found: set[tuple[str, str]] = set()
  pending, seen = [(start, name)], set()
  while pending:
    file, name = pending.pop()
    if (file.path, name) in seen:
      continue
    seen.add((file.path, name))
    known = {bound for one in file.statements for bound in one.binds}
    whole = name == _WHOLE or (file is start and name not in known)
    for one in file.statements:
      if whole or name in one.binds or _WHOLE in one.binds:
        found.add((str(file.path.relative_to(file.root)), one.text))
        pending += [(file, used) for used in one.uses & known]
        pending += [each for which in one.imports for each in _imported(file, which, start)]
  return hashlib.sha256(repr(sorted(found)).encode()).hexdigest()


def of_name(spec: str) -> str:
  """`of` what ``module:Name`` or ``path/to/file.py:Name`` names."""
  where, name = spec.split(":")[:2]
  return of(module_of(where), name)


def is_packaged(kind: Any) -> bool:
  """Whether a class or function is one of this package."""
  return str(kind.__module__).startswith("peftjax.")


def _imported(file: _File, imports: tuple[int, str, str], start: _File) -> Iterator[tuple[_File, str]]:
  """What an import of a file of the same project takes from there; nothing of what is installed."""
  level, module, name = imports
  folder = file.path.parents[level - 1] if level else file.root
  parts = [one for one in module.split(".") if one]
  if not level:
    top = start.path.relative_to(start.root).parts[0].removesuffix(".py")
    if parts[0] == "peftjax" or (start.root in _INSTALLED and parts[0] != top):
      return
  for more, wanted in ([([name], _WHOLE)] if name != _WHOLE else []) + [([], name)]:
    place = folder.joinpath(*parts, *more)
    for path in (*([place.with_name(f"{place.name}.py")] if parts or more else []), place / "__init__.py"):
      if path.is_file() and path.is_relative_to(file.root):
        yield _file(path, file.root), wanted
        return


def _file(path: Path, root: Path) -> _File:
  dotted = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
  by: Any = getattr(sys.modules.get(dotted), "__spec__", None)
  if by is None:  # what is not loaded yet is loaded as it is by then
    by = (path.stat().st_mtime_ns, path.stat().st_size)
  kept = _read.get(path)
  if kept is not None and (kept[0] is by or (isinstance(by, tuple) and kept[0] == by)):  # specs of reloads are equal
    return kept[1]
  made = _File(path, root, tuple(_statements(path.read_bytes())))
  _read[path] = (by, made)
  return made


def _statements(content: bytes) -> Iterator[_Statement]:
  try:
    tree = ast.parse(content)
  except (SyntaxError, ValueError):
    yield _Statement(frozenset({_WHOLE}), frozenset(), content.decode(errors="replace"))
    return
  for node in ast.walk(tree):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
      node.body[:1] = [] if len(node.body) > 1 else [ast.Pass()]
  for one in tree.body:
    if isinstance(one, ast.Import | ast.ImportFrom):
      for alias, imports in _imports(one):
        text = f"{imports[:2]} {ast.unparse(alias)}"
        yield _Statement(frozenset({_bound_by(alias)}), frozenset(), text, (imports,))
      continue
    nodes = list(ast.walk(one))
    uses = frozenset(node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load))
    within = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    found = tuple(imports for node in within for _, imports in _imports(node))
    yield _Statement(frozenset(_bound(one)), uses, ast.unparse(one), found)


def _imports(node: ast.Import | ast.ImportFrom) -> Iterator[tuple[ast.alias, tuple[int, str, str]]]:
  for alias in node.names:
    if isinstance(node, ast.ImportFrom):
      yield alias, (node.level, node.module or "", alias.name)
    else:
      yield alias, (0, alias.name, _WHOLE)


def _bound_by(alias: ast.alias) -> str:
  return alias.asname or alias.name.partition(".")[0]


def _bound(statement: ast.stmt) -> Iterator[str]:
  """The names that a statement of a file's outermost level defines, assigns or changes a part of."""
  if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
    yield statement.name
    return
  for node in ast.walk(statement):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
      yield node.name
    elif isinstance(node, ast.Import | ast.ImportFrom):
      yield from map(_bound_by, node.names)
    elif isinstance(node, ast.Name | ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store):
      root: ast.expr = node
      while isinstance(root, ast.Attribute | ast.Subscript):
        root = root.value
      if isinstance(root, ast.Name):
        yield root.id
