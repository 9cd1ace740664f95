"""One way from a name in a config to what it names: a table's entry, or ``module:Name`` of a user's own file.

Importing a module runs it, so a module is imported only where the user named it: on the command line, in a config file
or in a program of their own. A folder that somebody else may have written is read within `only_trusted`, and whatever
its files name is then refused, unless the user has named the same. See docs/security.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import sys
import sysconfig
import traceback
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from peftjax.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class _Reading:
  """A folder that is being read; of the names in its files those that are believed, and folders whose code is."""

  folder: Path
  trusted: frozenset[str]
  roots: tuple[Path, ...] = ()

  def believes(self, name: str) -> bool:
    """Whether the user vouches for ``module:Name``: by itself, or by the folder that its file stands in."""
    if name in self.trusted | _named:
      return True
    where = name.rpartition(":")[0]
    if where.endswith(".py"):
      return any(_is_inside(Path(where).expanduser(), root) for root in self.roots)
    top = where.partition(".")[0]
    beside = [root for root in self.roots if (root / f"{top}.py").is_file() or (root / top / "__init__.py").is_file()]
    if not beside or not top.isidentifier():
      return False
    sys.path += [str(root) for root in beside if str(root) not in sys.path]
    found = importlib.util.find_spec(top)
    return found is not None and any(_is_inside(Path(str(found.origin)), root) for root in beside)

  def elsewhere(self, name: str) -> str:
    """Of a name that is not believed: that the folders that are do not have it, or that another place comes first."""
    where = name.rpartition(":")[0]
    if not self.roots or where.endswith(".py") or not (place := folder_of(name)):
      return ""
    top, roots = where.partition(".")[0], ", ".join(map(str, self.roots))
    if any((root / f"{top}.py").is_file() or (root / top).is_dir() for root in self.roots):
      return f"of {top!r} the one in {place} comes before that in {roots}: run the command elsewhere, or "
    return f"{top!r} lies in {place}, not in {roots}; "


_OTHERS = (str(Path(__file__).parent), *(sysconfig.get_paths()[one] for one in ("stdlib", "purelib", "platlib")))

_readings: list[_Reading] = []  # the innermost last
_named: set[str] = set()  # what the user's own configs have named in this process
_own_modules: set[str] = set()  # of them, those that were imported


def folder_of(name: str) -> Path | None:
  """The folder that the file of ``module:Name`` stands in, as it would be found now; None where there is none.

  Of a module in a package it is the folder that holds the package. Nothing is imported.
  """
  where = name.rpartition(":")[0]
  if where.endswith(".py"):
    return Path(where).expanduser().parent
  top, found = where.partition(".")[0], None
  with contextlib.suppress(ValueError):  # of __main__, which no import found
    found = importlib.util.find_spec(top) if top.isidentifier() else None
  if found is None or not found.has_location or not found.origin:
    here = Path.cwd()
    return here if (here / f"{top}.py").is_file() or (here / top / "__init__.py").is_file() else None
  place = Path(found.origin).parent
  return place.parent if found.submodule_search_locations else place


def is_own(file: str) -> bool:
  """Whether a Python file stands beside, or is, one that a config has named."""
  files = [getattr(sys.modules.get(name), "__file__", None) for name in _own_modules]
  return Path(file).resolve().parent in {Path(one).resolve().parent for one in files if one}


def own_frames(error: Exception) -> list[traceback.FrameSummary]:
  """The calls on an error's way that stand in the user's own files: not in this package, nor in what is installed."""
  frames = traceback.extract_tb(error.__traceback__)
  return [one for one in frames if Path(one.filename).is_file() and not one.filename.startswith(_OTHERS)]


def place_of(error: Exception) -> str:
  """Where in the user's own files an error came from, such as " (my_task.py, line 3)"; "" where in none."""
  own = own_frames(error)
  return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""


def module_of(where: str) -> str:
  """What a module, or a file that is named in its place, is called in `sys.modules`.

  >>> module_of("path/to/mine.py"), module_of("package.mine")
  ('mine', 'package.mine')
  """
  return Path(where).stem if where.endswith(".py") else where


def is_named(name: str) -> bool:
  """Whether the user's own config has named this ``module:Name`` in this process."""
  return name in _named


def holds_own(name: str) -> bool:
  """Whether a module that a config has named holds something of this name."""
  return any(hasattr(sys.modules.get(module), name) for module in _own_modules)


@contextlib.contextmanager
def only_trusted(folder: str | Path, trusted: Collection[str] = ()) -> Iterator[None]:
  """In the block, `resolve` imports nothing that only the files of a folder name, and nothing that lies in it.

  Args:
    folder: where the names come from.
    trusted: the ``module:Name`` that the user names again, and so vouches for; or folders, for all that their Python
      files hold.

  Raises:
    UserError: one is neither.
  """
  names = frozenset(one for one in trusted if ":" in one)
  roots = tuple(Path(one).expanduser().resolve() for one in trusted if ":" not in one)
  for root in roots:
    if not root.is_dir():
      raise UserError(f"--trust={root}: expected module:Name, or a folder with Python files")
  _readings.append(_Reading(Path(folder).resolve(), names, roots))
  try:
    yield
  finally:
    _readings.pop()


def resolve(field: str, name: str, table: Mapping[str, Any]) -> Any:
  """What `name` stands for.

  Args:
    field: the config field that holds the name, for errors.
    name: a key of `table`, or ``module:Name``, or ``path/to/file.py:Name``; a module stands on the Python path, beside
      the config file, or where the command runs.
    table: name -> object, or -> ``"module:Name"`` of what is imported when it is first asked for.

  Raises:
    UserError: no such name, module or attribute; a module that the user has not named.

  >>> resolve("a.b", "one", {"one": "math:pi"})
  3.141592653589793
  """
  if name in table:
    found = table[name]
    return _attribute(field, found) if isinstance(found, str) else found
  if ":" not in name:
    raise UserError(f"{field}: unknown {name!r}; {nearest(name, table)} (your own is module:Name)")
  reading = _readings[-1] if _readings else None
  if reading is None:
    _named.add(name)
  elif not reading.believes(name):
    raise UserError(
      f"{field}: {reading.folder} names {name!r}, which is code that would be run; {reading.elsewhere(name)}if it is "
      f"yours, say so with --trust={name}, or --trust=FOLDER that its file stands in"
    )
  found = _attribute(field, name, reading.folder if reading else None)
  where = name.rpartition(":")[0]
  _own_modules.add(module_of(where))
  return found


def _attribute(field: str, spec: str, outside: Path | None = None) -> Any:
  """What ``module:Name`` stands for, in a file that does not lie in the folder `outside`."""
  where, _, attribute = spec.rpartition(":")
  module = _file(field, where, outside) if where.endswith(".py") else _module(field, where, attribute, outside)
  if not hasattr(module, attribute):
    public = [one for one in dir(module) if not one.startswith("_")]
    raise UserError(f"{field}: {where} has no {attribute!r}; {nearest(attribute, public)}")
  return getattr(module, attribute)


def _module(field: str, name: str, attribute: str, outside: Path | None) -> Any:
  if not all(part.isidentifier() for part in name.split(".")):
    hint = name.removeprefix("./").replace("/", ".")
    raise UserError(f"{field}: {name!r} is no module name; write {hint}:{attribute}")
  here = Path.cwd()
  if str(here) not in sys.path and not _is_inside(here, outside):
    sys.path.append(str(here))  # last, so that nothing installed is hidden by what lies where the command runs
  try:
    top = importlib.util.find_spec(name.partition(".")[0])
    for place in [top.origin, *(top.submodule_search_locations or ())] if top else []:
      _check_outside(field, name, place, outside)
    return importlib.import_module(name)
  except UserError:
    raise
  except Exception as error:  # of the user's own program
    if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
      raise UserError(f"{field}: cannot import {name!r} ({error}); it must be on the Python path") from None
    raise UserError(f"{field}: cannot import {name!r}: {_failure(error)}") from None


def _file(field: str, where: str, outside: Path | None) -> Any:
  path = Path(where).expanduser()
  if not path.is_file():
    here = path.parent if path.parent.is_dir() else Path(".")
    raise UserError(f"{field}: no file {where!r}; {nearest(path.name, [one.name for one in here.glob('*.py')])}")
  _check_outside(field, where, str(path), outside)
  loaded = sys.modules.get(path.stem)
  if loaded is not None:
    if Path(getattr(loaded, "__file__", None) or "").resolve() == path.resolve():
      return loaded
    raise UserError(f"{field}: {where!r} would be the module {path.stem!r}, which there is already; rename the file")
  if str(path.parent.resolve()) not in sys.path:
    sys.path.append(str(path.parent.resolve()))
  spec = importlib.util.spec_from_file_location(path.stem, path)
  assert spec is not None and spec.loader is not None
  module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  except Exception as error:  # of the user's own program
    del sys.modules[path.stem]
    raise UserError(f"{field}: cannot import {where!r}: {_failure(error)}") from None
  return module


def _failure(error: Exception) -> str:
  return f"{type(error).__name__}: {error}{place_of(error)}"


def _check_outside(field: str, name: str, place: str | None, outside: Path | None) -> None:
  if place and _is_inside(Path(place), outside):
    raise UserError(f"{field}: {name!r} lies in {outside}; no code is read from there: move it beside your own")


def _is_inside(path: Path, folder: Path | None) -> bool:
  return folder is not None and path.resolve().is_relative_to(folder)
