"""Files written all or not at all, and JSON read with one clear line when it is broken."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftjax.errors import UserError


def read_json(path: Path) -> dict[str, Any]:
  """A JSON object from a file.

  Raises:
    UserError: the file holds something else.
  """
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise UserError(f"{path} is no JSON: {error}") from None
  if not isinstance(value, dict):
    raise UserError(f"{path}: expected a JSON object, got {type(value).__name__}")
  return value


def write_text(path: Path, text: str) -> None:
  """Writes a file that is never seen half written; see `write_bytes`."""
  write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
  """Writes a file that is never seen half written.

  Raises:
    UserError: the folder cannot be written.
  """
  temporary = path.with_name(f".{path.name}.{os.getpid()}")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_bytes(content)
    temporary.replace(path)
  except OSError as error:
    raise UserError(f"cannot write {path}: {error.strerror}") from None


@contextlib.contextmanager
def atomic_folder(folder: str | Path, expects: str) -> Iterator[Path]:
  """A temporary folder that becomes `folder` when the block ends well; an older one of the same kind is replaced.

  Args:
    expects: the file that an existing folder must hold, so that nothing else is ever overwritten.

  Raises:
    UserError: the folder holds something else, or cannot be written.
  """
  folder = Path(folder)
  if folder.exists() and not (folder / expects).is_file() and (not folder.is_dir() or any(folder.iterdir())):
    raise UserError(f"{folder} exists and holds no {expects}; choose another folder")
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
  except OSError as error:
    raise UserError(f"cannot write {folder}: {error.strerror}") from None
  try:
    yield temporary
    temporary.chmod(0o755)
    if folder.exists():
      old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
      folder.replace(old / "was")
      temporary.replace(folder)
      shutil.rmtree(old)
    else:
      temporary.replace(folder)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
