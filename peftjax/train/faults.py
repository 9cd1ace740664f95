"""What a machine does to a run (a full disk, a folder that cannot be written any more, a file that is gone)."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

from peftjax.errors import UserError

log = logging.getLogger(__name__)
_GONE = "a file that was being written is gone"
_SIGNS = {
  **{
    one: one
    for one in ("no space left", "disk quota", "file too large", "read-only file system", "permission denied",
                "no such file", "input/output error", "stale file handle", "too many open files", "not a directory",
                "transport endpoint")
  },
  "resource_exhausted": "no space left",  # the status of TensorStore; what the system says often stands beside it
  "permission_denied": "permission denied",
  "not_found": _GONE,
  "no arraymetadata found": _GONE,
}  # fmt: skip

_PASSING = ("too many open files", "cannot allocate memory", "stale file handle", "transport endpoint", "timed out",
            "temporarily unavailable")  # fmt: skip


def is_passing(error: BaseException) -> bool:
  """Whether an error says nothing of the file that was read: the machine had no handle, memory or connection left."""
  return isinstance(error, MemoryError) or any(one in str(error).lower() for one in _PASSING)


def first_line(error: BaseException) -> str:
  """The kind of an error and the first line of what it says."""
  lines = str(error).strip().splitlines()
  return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


@contextlib.contextmanager
def faults_as_one_line(what: str, steps: Callable[[], list[int]]) -> Iterator[None]:
  """A fault of the machine in the block becomes one line that names the checkpoint that stays; where it happened is
  logged for those who debug.

  Args:
    what: what was being done.
    steps: gives the steps that have a checkpoint.

  Raises:
    UserError: for an `OSError`, or for another error that speaks of one, as storage libraries' do.
  """
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    sign = next((one for one in _SIGNS if one in str(error).lower()), "")
    if not isinstance(error, OSError) and not sign:
      raise
    log.debug("%s failed", what, exc_info=True)
    reason = getattr(error, "strerror", None) or _SIGNS.get(sign) or str(error).strip().splitlines()[0]
    where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
    saved = steps()
    stays = f"the checkpoint of step {saved[-1]} is whole" if saved else "there is no checkpoint yet"
    raise UserError(f"{what}: {reason[:200]}{where}; {stays}, and the same command goes on") from None
