"""The manifest of a checkpoint: SHA-256 of each of its files, so that damage of any byte is found, also of bytes in
which the storage format keeps nothing.

    checkpoints/300/manifest     the digest of what follows; then one line for each file: digest, bytes, path

It is written into the temporary folder just before Orbax renames it, so that a finished checkpoint has one. The process
that renames reads all files once more for it, in the background (1.6 GiB a second on one core). To verify, processes
divide the files by size, and agree on the first damaged one.
"""

from __future__ import annotations

import asyncio
import hashlib
import stat
import time
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint._src.metadata.checkpoint import step_metadata_file_path
from orbax.checkpoint._src.path.atomicity import AtomicRenameTemporaryPath

from peftjax.errors import UserError
from peftjax.train.faults import is_passing

NAME = "manifest"
_WHOLE, _MISSING, _SIZE, _BYTES, _UNREADABLE, _FORBIDDEN, _NOT_NOW = range(7)
_REASONS = ("", "is missing", "has another size than was saved", "has other bytes than were saved", "cannot be read",
            "may not be read by this user", "cannot be read now, as too much is open or in memory")  # fmt: skip


def write(folder: Path) -> None:
  """Writes the manifest of all files in a folder."""
  files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / NAME)
  lines = [f"{_digest(path)} {path.stat().st_size} {path.relative_to(folder).as_posix()}\n" for path in files]
  body = "".join(lines).encode()
  (folder / NAME).write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


def verify(folder: Path, items: Iterable[str] = ()) -> bool:
  """Compares files with the manifest; every process of the run calls it, and all get the same answer.

  Args:
    folder: of a checkpoint.
    items: first parts of the paths to compare; empty: all.

  Returns:
    Whether there is a manifest.

  Raises:
    ValueError: a file, or the manifest, is damaged or missing.
    UserError: a file may not be read.
  """
  exists = (folder / NAME).is_file()
  broken = _BYTES
  try:
    entries = _entries(folder) if exists else []
  except OSError as error:
    entries, broken = None, _NOT_NOW if is_passing(error) else _UNREADABLE
  chosen = set(items)
  files = [entry for entry in entries or () if not chosen or entry[2].partition("/")[0] in chosen]
  found = (len(files), _WHOLE) if entries is not None else (-1, broken)
  for place in _share([size for _, size, _ in files]):
    digest, size, path = files[place]
    if reason := _compare(folder / path, digest, size):
      found = (place, reason)
      break
  if jax.process_count() > 1:
    everyone = multihost_utils.process_allgather(np.array([*found, exists], np.int32))
    found, exists = min((place, reason) for place, reason, _ in everyone.tolist()), bool(everyone[:, 2].all())
  place, reason = found
  name = files[place][2] if 0 <= place < len(files) else NAME
  if reason in (_FORBIDDEN, _NOT_NOW):
    raise UserError(f"{folder / name} {_REASONS[reason]}")
  if reason:
    raise ValueError(f"{name} {_REASONS[reason]}")
  return exists


class WithManifest(AtomicRenameTemporaryPath):
  """Orbax's temporary folder of a checkpoint, which gets its manifest just before it is renamed."""

  async def finalize(self) -> None:
    """Completes the metadata, writes the manifest and renames; the folders of items are renamed only."""
    store = self._checkpoint_metadata_store
    if store is None:
      await super().finalize()
      return
    await asyncio.to_thread(_complete, store, Path(self.get()), Path(self.get_final()))


def _complete(store: object, temporary: Path, final: Path) -> None:
  store.wait_until_finished()  # type: ignore[attr-defined]
  store.update(file_path=step_metadata_file_path(temporary), commit_timestamp_nsecs=time.time_ns())  # type: ignore[attr-defined]
  store.wait_until_finished()  # type: ignore[attr-defined]
  write(temporary)
  temporary.replace(final)


def _entries(folder: Path) -> list[tuple[str, int, str]] | None:
  """(digest, bytes, path) of each file, or None if the manifest itself is damaged."""
  first, _, body = (folder / NAME).read_bytes().partition(b"\n")
  if first != hashlib.sha256(body).hexdigest().encode():
    return None
  try:
    rows = [line.split(" ", 2) for line in body.decode().splitlines()]
    entries = [(digest, int(size), name) for digest, size, name in rows]
  except ValueError:
    return None
  inside = all(not Path(name).is_absolute() and ".." not in Path(name).parts for _, _, name in entries)
  return entries if inside else None


def _share(sizes: list[int]) -> list[int]:
  """The files that this process compares: parts of about equal size, ascending."""
  parts = [0] * jax.process_count()
  own = []
  for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
    least = parts.index(min(parts))
    parts[least] += sizes[index] + 1
    if least == jax.process_index():
      own.append(index)
  return sorted(own)


def _compare(path: Path, digest: str, size: int) -> int:
  try:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):  # a pipe or a device would be read without end
      return _UNREADABLE
    if status.st_size != size:
      return _SIZE
    return _WHOLE if _digest(path) == digest else _BYTES
  except FileNotFoundError:
    return _MISSING
  except PermissionError:
    return _FORBIDDEN
  except OSError as error:
    return _NOT_NOW if is_passing(error) else _UNREADABLE


def _digest(path: Path) -> str:
  """Hexadecimal SHA-256 of a file, read in pieces."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
