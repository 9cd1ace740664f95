"""Files written all or not at all, and JSON read with one clear line when it is broken."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from peftjax.errors import UserError

MAX_JSON_BYTES = 2**28  # of one document; the largest tokenizer.json in use has 40 MB
MAX_JSON_DEPTH = 100  # lists and objects within each other
_NAME_BYTES, _PATH_BYTES = 255, 4096  # of a part of a path, and of a whole one with its end


def read_json(path: Path, most: int = MAX_JSON_BYTES, without: Collection[str] = ()) -> dict[str, Any]:
  """A JSON object from a file.

  Args:
    most: bytes that it may have.
    without: names of fields that no object in it keeps, so that what is not needed is not held.

  Raises:
    UserError: the file cannot be read or holds something else.
  """
  try:
    size = path.stat().st_size
    if size > most:
      raise UserError(f"{path} has {size:,} bytes; a JSON document of at most {most:,} was expected")
    content = path.read_bytes()
  except OSError as error:
    raise UserError(f"cannot read {path}: {error.strerror}") from None
  value = parse_json(content, str(path), without)
  if not isinstance(value, dict):
    raise UserError(f"{path}: expected a JSON object, got {type(value).__name__}")
  return value


def read_text(path: Path, encoding: str = "utf-8") -> str:
  """A text file, its lines ended as Python's own.

  Raises:
    UserError: it cannot be read, or is not UTF-8.
  """
  try:
    return path.read_text(encoding=encoding)
  except UnicodeDecodeError as error:
    raise UserError(f"{path}: not UTF-8: byte {error.object[error.start]:#04x}") from None
  except OSError as error:
    raise UserError(f"cannot read {path}: {error.strerror}") from None


def parse_json(content: bytes | str, where: str, without: Collection[str] = ()) -> Any:
  """The value that a JSON text describes; every string in it can be written as UTF-8.

  Args:
    content: a byte order mark in front is passed over.
    where: opens the error's line.
    without: names of fields that no object in it keeps.

  Raises:
    UserError: not UTF-8, no JSON, more than `MAX_JSON_DEPTH` deep, an integer of thousands of digits, half of a
      surrogate pair.
  """
  try:
    text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
    value = json.loads(text, object_pairs_hook=_dropping(without) if without else None)
    if text.count("{") + text.count("[") > MAX_JSON_DEPTH and _is_deeper(value, MAX_JSON_DEPTH):
      raise RecursionError
    if "\\u" in text:
      json.dumps(value, ensure_ascii=False).encode()
  except UnicodeDecodeError as error:
    raise UserError(f"{where}: not UTF-8: byte {error.object[error.start]:#04x}") from None
  except UnicodeEncodeError as error:
    half = error.object[error.start]
    raise UserError(f"{where}: the escape \\u{ord(half):04x} stands alone; it is half of a character") from None
  except json.JSONDecodeError as error:
    at = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
    raise UserError(f"{where}: no JSON: {error.msg} at {at}") from None
  except RecursionError:
    raise UserError(f"{where}: lists and objects in JSON stand more than {MAX_JSON_DEPTH} deep") from None
  except ValueError:  # Python converts no longer integers
    raise UserError(f"{where}: an integer in JSON has more than {sys.get_int_max_str_digits()} digits") from None
  return value


def _dropping(names: Collection[str]) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
  return lambda pairs: {name: value for name, value in pairs if name not in names}


def _is_deeper(value: Any, depth: int) -> bool:
  level = [value]
  for _ in range(depth):
    level = [
      one
      for outer in level
      if isinstance(outer, dict | list)
      for one in (outer.values() if isinstance(outer, dict) else outer)
      if isinstance(one, dict | list)
    ]
    if not level:
      return False
  return True


def can_be_named(name: str) -> bool:
  """Whether a machine can have a file of a name that somebody wrote: none holds a null character, or is too long.

  >>> can_be_named("train/1.png"), can_be_named("1\\0.png"), can_be_named(5000 * "a" + ".png")
  (True, False, False)
  """
  try:
    encoded = os.fsencode(name)
  except UnicodeEncodeError:  # half of a surrogate pair
    return False
  return b"\0" not in encoded and len(encoded) < _PATH_BYTES and max(map(len, encoded.split(b"/"))) <= _NAME_BYTES


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
