"""Where one write of a save fails, the others end too, and leave nothing to print.

Orbax writes the arrays of an item of a checkpoint at once, each a task of an event loop that lives as long as the item
is written. Where one fails, Orbax closes the loop over the others: each of them prints its own traceback when it is
thrown away, after the line that the run has said. Here the loop first lets them end, and takes their errors; the first
one is the save's.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Coroutine
from typing import Any

try:  # no part of Orbax's interface: where another version has it elsewhere, a save that fails prints more than a line
  from orbax.checkpoint._src import asyncio_utils
except ImportError:
  asyncio_utils = None

SECONDS = 30.0  # for writes to end by themselves; a full disk answers at once, and a server that is gone never


async def ended_together(first: Coroutine[Any, Any, Any]) -> Any:
  """What a coroutine gives; where it fails, all other tasks of its loop have ended before its error is raised."""
  try:
    return await first
  except Exception:
    if others := asyncio.all_tasks() - {asyncio.current_task()}:
      _, late = await asyncio.wait(others, timeout=SECONDS)
      for one in late:
        one.cancel()
      await asyncio.gather(*others, return_exceptions=True)
    raise


def end_together() -> None:
  """From now on whatever Orbax runs ends as `ended_together` says; may be called again."""
  run = getattr(asyncio_utils, "run_sync", None)
  if run is not None and not getattr(run, "ends_together", False):
    asyncio_utils.run_sync = _ending(run)


def _ending(run: Any) -> Any:
  @functools.wraps(run)
  def runs(coroutine: Coroutine[Any, Any, Any], *more: Any, **named: Any) -> Any:
    return run(ended_together(coroutine), *more, **named)

  runs.ends_together = True  # type: ignore[attr-defined]
  return runs
