"""How much memory this process may have, and whether what is asked for can fit, before it is made."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable
from pathlib import Path

from peftjax.errors import UserError

_CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def limit() -> int:
  """Bytes that this process can have at most: the machine's memory, a container's, or its own limit."""
  found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
  found += [own for own in resource.getrlimit(resource.RLIMIT_AS) if own != resource.RLIM_INFINITY]
  return min([*found, *_of_containers()])


def _of_containers() -> Iterable[int]:
  for path in _CGROUPS:
    try:
      text = path.read_text().strip()
    except OSError:
      continue
    if text.isdigit():
      yield int(text)


def check(needed: int, what: str) -> None:
  """Raises `UserError` if `what` needs more bytes than this process can have."""
  if needed > (most := limit()):
    raise UserError(f"{what}: needs {shown(needed)} of memory, and there are {shown(most)} on this machine")


def shown(size: float) -> str:
  """A number of bytes, in the greatest binary unit that it reaches.

  >>> shown(3 * 2**29), shown(2**20), shown(512)
  ('1.5 GiB', '1.0 MiB', '512 bytes')
  """
  units = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
  while size >= 1024 and len(units) > 1:
    size /= 1024
    del units[0]
  return f"{size:,.0f} bytes" if units[0] == "bytes" else f"{size:,.1f} {units[0]}"
