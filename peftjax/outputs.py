"""What is written, and what is not written over. Nothing that was not written here is ever lost.

Folders for others to use (models, adapters, tokenizers) are `written`, and so are a study's conclusions and a range
test's curve. Whoever writes files one by one, as runs and plots do, asks `check_own` first.

Files go beside whatever is there. One of the same name is replaced if it was written here and nobody has changed it
since, or if `overwrite` asks for it; what was written before and belongs to the output no more is taken away.
`.peftjax_files.json` lists what was written: the digest of every file, and the kind of output that it is part of.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from peftjax.errors import UserError
from peftjax.files import read_json, write_text

LIST = ".peftjax_files.json"
_RUN = ("metrics.jsonl", "results.jsonl")  # of runs, and of studies

Entries = dict[str, dict[str, Any]]
"""Name of a file -> {"kind", "sha256": digests of what it is or, while it is replaced, may be}."""


@contextlib.contextmanager
def written(
  folder: str | Path,
  names: Sequence[str],
  kind: str,
  *,
  overwrite: bool = False,
  base: Path | None = None,
  clashes: Mapping[str, str] | None = None,
) -> Iterator[Path]:
  """A temporary folder whose files take their places in `folder`, one by one, when the block ends well.

  Args:
    names: of all files that the block may write.
    kind: of output; one of the same kind that was written to the folder before is replaced as a whole.
    overwrite: replace files of other origin too, and write into a run's folder or the base's.
    base: the folder that the model came from.
    clashes: name of a file that would be read together with these -> what would go wrong.

  Raises:
    UserError: the folder is not one to write to, or it cannot be written.
  """
  folder = Path(folder).expanduser()
  check(folder, names, overwrite, base, clashes)
  try:
    temporary = (folder if folder.exists() else folder.parent) / f".peftjax-{secrets.token_hex(4)}"
    temporary.mkdir(parents=True)
  except OSError as error:
    raise UserError(f"cannot write {folder}: {error.strerror}") from None
  try:
    yield temporary
    _into_place(temporary, folder, kind)
  except OSError as error:
    raise UserError(f"cannot write {folder}: {error.strerror or error}") from None
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
  """A temporary folder that becomes `folder` when the block ends well, unless another process made it meanwhile.

  Raises:
    UserError: it cannot be written.
  """
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as outer:
      temporary = Path(outer) / folder.name
      temporary.mkdir()
      yield temporary
      if not folder.exists():
        with contextlib.suppress(FileExistsError):
          temporary.rename(folder)
  except OSError as error:
    raise UserError(f"cannot write {folder}: {error.strerror or error}") from None


def remove(folder: str | Path) -> None:
  """Takes away what was written here, as it was written, and the folder if nothing else is in it."""
  folder = Path(folder)
  for name, entry in _entries(folder).items():
    if _is_as_written(folder, name, entry):
      (folder / name).unlink()
  if folder.is_dir():
    (folder / LIST).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
      folder.rmdir()


def size_of(folder: str | Path, kind: str) -> int:
  """Bytes of what was written here of a kind."""
  entries = _entries(Path(folder)).items()
  return sum((Path(folder) / name).stat().st_size for name, entry in entries if entry["kind"] == kind)


def check(
  folder: str | Path,
  names: Sequence[str],
  overwrite: bool = False,
  base: Path | None = None,
  clashes: Mapping[str, str] | None = None,
) -> None:
  """Raises a `UserError` where `written` would, so that long work does not begin in vain."""
  folder, clashes = Path(folder).expanduser(), clashes or {}
  if folder.exists() and not folder.is_dir():
    raise UserError(f"{folder} is a file; choose a folder")
  for name, reason in clashes.items():
    if (folder / name).exists():
      raise UserError(f"{folder} holds {name}: {reason}; choose another folder")
  for name in names:
    if (folder / name).is_dir():
      raise UserError(f"{folder / name} is a folder, where a file would be written; choose another folder")
  how = "choose another folder, or --overwrite"
  if not overwrite and _is_in_checkpoints(folder.resolve()):
    raise UserError(f"{folder} lies among a run's checkpoints; {how}")
  if overwrite or not folder.is_dir():
    return
  if base is not None and base.exists() and folder.samefile(base):
    raise UserError(f"{folder} is the folder of the base model; {how}")
  if any((folder / name).exists() for name in _RUN) or _has_checkpoints(folder):
    raise UserError(f"{folder} holds a run; {how}")
  check_own(folder, names, how)


def check_own(
  folder: Path,
  names: Iterable[str],
  how: str = "move it, or choose another folder",
  *,
  whose: str = "",
  kind: str = "",
  is_own: Callable[[Path], bool] = lambda path: False,
) -> None:
  """Raises `UserError` for the first of the files that is there and may not be replaced.

  Args:
    names: of files, or patterns of names, such as ``samples/*.png``.
    how: what is to be done then.
    whose: what a file of another origin is not, such as "a run's".
    kind: of the output; what the list says of files of other kinds is not asked.
    is_own: whether a file that is not listed is one's own all the same, by what it holds or stands beside.
  """
  entries = {name: entry for name, entry in _entries(folder).items() if kind in ("", entry["kind"])}
  for path in _there(folder, names):
    name = path.relative_to(folder).as_posix()
    if name in entries:
      if _is_as_written(folder, name, entries[name]):
        continue
      state = "has been changed since peftjax wrote it"
    elif is_own(path):
      continue
    elif path.is_symlink() or not path.is_file():
      state = "is no file"
    else:
      state = f"is no {whose}" if whose else "was not written by peftjax"
    raise UserError(f"{path} {state}, and would be replaced; {how}")


def _there(folder: Path, names: Iterable[str]) -> Iterator[Path]:
  for name in names:
    if "*" in name:
      yield from sorted(folder.glob(name))
    elif os.path.lexists(folder / name):
      yield folder / name


def of_other_origin(folder: Path, names: Sequence[str]) -> list[str]:
  """Those of the files that were not written here, or changed since."""
  entries = _entries(folder)
  return [name for name in names if not _is_as_written(folder, name, entries.get(name))]


def _has_checkpoints(folder: Path) -> bool:
  return any(path.name.isdigit() and path.is_dir() for path in (folder / "checkpoints").glob("*"))


def _is_in_checkpoints(folder: Path) -> bool:
  return any(one.name == "checkpoints" and (one.parent / "config.json").is_file() and _has_checkpoints(one.parent)
             for one in (folder, *folder.parents))  # fmt: skip


def _entries(folder: Path) -> Entries:
  """What was written here, by name; {} where the list is missing or is none."""
  try:
    listed = read_json(folder / LIST).get("files")
  except (OSError, UserError):
    return {}
  found = listed.items() if isinstance(listed, dict) else ()
  return {name: entry for name, entry in found if _is_entry(name, entry)}


def _is_entry(name: str, entry: Any) -> bool:
  is_whole = isinstance(entry, dict) and isinstance(entry.get("kind"), str) and isinstance(entry.get("sha256"), list)
  return is_whole and bool(name) and not Path(name).is_absolute() and ".." not in Path(name).parts


def _is_as_written(folder: Path, name: str, entry: Mapping[str, Any] | None) -> bool:
  """Whether a file is what the list says. One that a link leads to, or a folder that is a link, lies elsewhere."""
  path = folder / name
  is_here = entry is not None and path.is_file() and path.resolve() == folder.resolve() / name
  return is_here and digest(path) in entry["sha256"]  # type: ignore[index]


def digest(path: Path) -> str:
  """Hexadecimal SHA-256 of a file, read in pieces."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _into_place(temporary: Path, folder: Path, kind: str) -> None:
  files = sorted(path for path in temporary.rglob("*") if path.is_file())
  made = {path.relative_to(temporary).as_posix(): {"kind": kind, "sha256": [digest(path)]} for path in files}
  if not folder.exists():
    _write_list(temporary, made)
    temporary.rename(folder)
    return
  before = _entries(folder)
  after = {name: entry for name, entry in before.items() if entry["kind"] != kind} | made
  stale = [name for name in before if name not in after and _is_as_written(folder, name, before[name])]
  # Both states are on the list while files are replaced, so that a write that was cut off can be done again.
  either = {name: {**entry, "sha256": [*before.get(name, entry)["sha256"], *entry["sha256"]]}
            for name, entry in {**before, **after}.items()}  # fmt: skip
  _write_list(folder, either)
  for name in stale:
    (folder / name).unlink()
  for name in made:
    (folder / name).parent.mkdir(exist_ok=True)
    (temporary / name).replace(folder / name)
  _write_list(folder, after)


def _write_list(folder: Path, entries: Entries) -> None:
  write_text(folder / LIST, json.dumps({"files": entries}, indent=1, sort_keys=True) + "\n")
