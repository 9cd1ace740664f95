"""Several processes, on one host or on many, that divide the work of one study by files in its folder.

    D/leases/NAME.0001      who works on NAME, and a number that grows while they live: the heartbeat
    D/leases/NAME.0002      who took it over when that number stood still, or who came after it had ended

A lease is taken by creating the file of the next number, which one process alone can do. It is free if there is none,
if the last one has ended, if its process on this host is gone, or if its heartbeat stood still for `patience` seconds
as seen from here: no clock of another host is trusted. A process gets every piece of work, those that others do only
after they have ended; what is finished by then it passes over. So every process ends with the whole study.

A lease says of what the work is. Where a living process has the same name for other work, this one is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from peftjax.errors import UserError
from peftjax.files import parse_json, write_text

Item = TypeVar("Item")
BEATS = 6.0  # heartbeats in the time after which a silent owner is given up


@dataclasses.dataclass
class Lease:
  """A piece of work that this process has; leaving the block ends it."""

  path: Path
  state: dict[str, Any]
  every: float
  _ended: threading.Event = dataclasses.field(default_factory=threading.Event)

  def __enter__(self) -> Lease:
    self._thread = threading.Thread(target=self._beat, daemon=True)
    self._thread.start()
    return self

  def __exit__(self, *error: object) -> None:
    self._ended.set()
    self._thread.join()
    if not _later(self.path):
      write_text(self.path, json.dumps(self.state | {"ended": True}))

  def _beat(self) -> None:
    while not self._ended.wait(self.every):
      if _later(self.path):
        return  # given up by others, after this process stood still for too long
      self.state["beat"] += 1
      with contextlib.suppress(UserError, OSError):  # a folder that is away for a moment
        write_text(self.path, json.dumps(self.state))


class Leases:
  """The leases of one study, as one process sees them.

  Args:
    workdir: D.
    patience: seconds without a heartbeat after which work is taken over.
    host: of this process; processes of other hosts are known by their heartbeat alone.
  """

  def __init__(self, workdir: Path, patience: float = 60.0, host: str = ""):
    self._folder, self._patience = workdir / "leases", patience
    self._host = host or _host()
    self._seen: dict[Path, tuple[str, float]] = {}
    self._token = uuid.uuid4().hex

  @functools.cached_property
  def started(self) -> float:
    """When this process first asked for work, by the clock of the folder's file system."""
    mark = self._folder / f".{self._token}"
    write_text(mark, "")
    when = mark.stat().st_mtime
    mark.unlink()
    return when

  @contextlib.contextmanager
  def shared(
    self,
    items: Sequence[Item],
    name: Callable[[Item], str],
    poll: float = 0.5,
    content: Callable[[Item], str] = lambda _: "",
  ) -> Iterator[Iterator[Item]]:
    """Gives every item once, each while this process has its lease; those that others have, when they have ended.

    Args:
      name: of an item's lease; the same in every process.
      poll: seconds between two looks at what others have.
      content: what tells an item from another one of the same name; "": nothing does.

    Raises:
      UserError: another process works on something else by the name of an item.
    """
    given = self._given(items, name, poll, content)
    try:
      yield given
    finally:
      given.close()  # ends the lease under way, whatever happened

  def _given(
    self, items: Sequence[Item], name: Callable[[Item], str], poll: float, content: Callable[[Item], str]
  ) -> Generator[Item, None, None]:
    waiting = [(item, name(item), content(item)) for item in items]
    while waiting:
      for work in list(waiting):
        item, named, held = work
        if (lease := self.take(named, held)) is not None:
          waiting.remove(work)
          with lease:
            yield item
          break  # the first that is free: what others took meanwhile may have ended
      else:
        time.sleep(poll)

  def check(self, works: Mapping[str, str]) -> None:
    """Raises a `UserError` if a process that lives has one of the names of some works for another content."""
    for name, content in works.items():
      _, paths = self._listed(name)
      if paths:
        self._is_free(paths[-1], name, content)

  def take(self, name: str, content: str = "") -> Lease | None:
    """The lease of a name, or None while another process has it.

    Raises:
      UserError: that process lives, and works on another content.
    """
    asked = self.started  # makes the folder
    stem, paths = self._listed(name)
    if paths and not self._is_free(paths[-1], name, content):
      return None
    path = self._folder / f"{stem}.{_number(paths[-1]) + 1 if paths else 1:04d}"
    state = {
      "host": self._host,
      "process": os.getpid(),
      "since": _since(os.getpid()),
      "token": self._token,
      "beat": 0,
      "asked": asked,
      "name": name,
      "content": content,
    }
    try:
      with path.open("x", encoding="utf-8") as file:
        file.write(json.dumps(state))
    except FileExistsError:
      return None
    if _later(path):  # what was listed above is long gone, and this number with it
      path.unlink()
      return None
    for old in paths:
      old.unlink(missing_ok=True)
    return Lease(path, state, self._patience / BEATS)

  def failed_since(self, path: Path) -> str | None:
    """The last line of an error's file if another process wrote it after this one had come."""
    if not path.is_file() or path.stat().st_mtime <= self.started:
      return None
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].removeprefix("peftjax.errors.UserError: ") if lines else ""

  def _listed(self, name: str) -> tuple[str, list[Path]]:
    """(the stem of a name's leases, those that there are, the last one last)."""
    stem = re.sub(r"[^A-Za-z0-9=+_-]+", "-", name)
    return stem, sorted(self._folder.glob(f"{stem}.[0-9][0-9][0-9][0-9]"))

  def _is_free(self, path: Path, name: str, content: str) -> bool:
    try:
      text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
      return False  # replaced at this moment
    lives, holds = False, ""
    with contextlib.suppress(UserError, KeyError, TypeError, AttributeError):  # not yet written, or by nobody here
      state = parse_json(text, str(path))
      lives = state["host"] == self._host
      if state.get("ended") or (lives and _since(int(state["process"])) != state["since"]):
        return True
      holds = state["content"] if state["name"] == name else ""  # two names may have one stem
    now = time.monotonic()
    if path not in self._seen or self._seen[path][0] != text:
      lives |= path in self._seen  # it beats
      self._seen[path] = (text, now)
    if lives and content and holds and holds != content:
      raise UserError(
        f"{path.parent.parent}: process {state['process']} of {state['host'].split()[0]} works on {name} of another "
        "config; use another --workdir, or the same config"
      )
    return now - self._seen[path][1] >= self._patience


def _later(path: Path) -> bool:
  """Whether a lease of the same name has a higher number."""
  return any(_number(other) > _number(path) for other in path.parent.glob(f"{path.stem}.[0-9][0-9][0-9][0-9]"))


def _number(path: Path) -> int:
  return int(path.suffix[1:])


def _host() -> str:
  """This host as no other one calls itself: its name, its boot, and the processes that it can see."""
  parts = [socket.gethostname()]
  with contextlib.suppress(OSError):
    parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    parts.append(str(Path("/proc/self/ns/pid").readlink()))
  return " ".join(parts)


def _since(process: int) -> str:
  """When a process of this host started; "" if there is none."""
  try:
    stat = Path(f"/proc/{process}/stat").read_text()
  except OSError:
    return "" if not _runs(process) else "runs"
  fields = stat.rpartition(")")[2].split()
  return "" if fields[0] == "Z" else fields[19]


def _runs(process: int) -> bool:
  """Without /proc, as on macOS."""
  try:
    os.kill(process, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    return True
  return True
