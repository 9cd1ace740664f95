"""TensorBoard's event files."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

from peftjax.train.rows import writing

_FLUSH_SECONDS = 30.0


class EventFile:
  """Scalars for TensorBoard, written at once: tensorboardX's own writer stops for ever where its thread meets a full
  disk. TensorBoard hides what earlier files say of the steps after `start`.
  """

  def __init__(self, folder: Path, start: int):
    from tensorboardX import event_file_writer, proto, summary  # slow to import where torch is installed

    self._folder, self._event, self._scalar = folder, proto.event_pb2.Event, summary.scalar
    with writing(folder):
      folder.mkdir(parents=True, exist_ok=True)
      self._file = event_file_writer.EventsWriter(str(folder / "events"))
    status = proto.event_pb2.SessionLog(status=proto.event_pb2.SessionLog.START)
    self._add(step=start + 1, file_version="brain.Event:2")
    self._add(step=start + 1, session_log=status)
    self.flush()

  def write(self, name: str, value: float, step: int) -> None:
    """Adds one number; raises `UserError` if it cannot be written."""
    self._add(step=step, summary=self._scalar(name, value))
    if time.monotonic() - self._flushed > _FLUSH_SECONDS:
      self.flush()

  def flush(self) -> None:
    """Brings what was written to the disk; raises as `write` does."""
    self._flushed = time.monotonic()
    with writing(self._folder):
      self._file.flush()

  def close(self) -> None:
    """Closes the file; what has not been brought to the disk may be lost."""
    with contextlib.suppress(OSError):
      self._file.close()

  def _add(self, **content: Any) -> None:
    with writing(self._folder):
      self._file.write_event(self._event(wall_time=time.time(), **content))
