"""TensorBoard's event files."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping
from typing import Any, ClassVar

from ml_collections import ConfigDict

from peftjax.train.rows import writing
from peftjax.train.writers.base import Begun, Writer

_FLUSH_SECONDS = 30.0


class TensorBoard(Writer):
  """tensorboard/: event files, written at once: tensorboardX's own writer stops for ever where its thread meets a full
  disk. TensorBoard hides what earlier files say of the steps after the start.
  """

  name: ClassVar[str] = "tensorboard"

  def __init__(self, begun: Begun, options: ConfigDict):
    super().__init__(begun, options)
    from tensorboardX import event_file_writer, proto, summary  # slow to import where torch is installed

    logging.getLogger("tensorboardX.x2num").setLevel(logging.ERROR)  # not finite: the run's own line says it
    self._event, self._scalar = proto.event_pb2.Event, summary.scalar
    self._folder = begun.folder / "tensorboard"
    with writing(self._folder):
      self._folder.mkdir(parents=True, exist_ok=True)
      self._file = event_file_writer.EventsWriter(str(self._folder / "events"))
    status = proto.event_pb2.SessionLog(status=proto.event_pb2.SessionLog.START)
    self._add(step=begun.start + 1, file_version="brain.Event:2")
    self._add(step=begun.start + 1, session_log=status)
    self.flush()

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Adds numbers; raises `UserError` if they cannot be written."""
    for name, value in values.items():
      self._add(step=step, summary=self._scalar(name, value))
    if time.monotonic() - self._flushed > _FLUSH_SECONDS:
      self.flush()

  def flush(self) -> None:
    """Brings what was written to the disk; raises as `write` does."""
    self._flushed = time.monotonic()
    with writing(self._folder):
      self._file.flush()

  def close(self, failed: bool) -> None:
    """Closes the file; what has not been brought to the disk may be lost."""
    del failed
    with contextlib.suppress(OSError):
      self._file.close()

  def _add(self, **content: Any) -> None:
    with writing(self._folder):
      self._file.write_event(self._event(wall_time=time.time(), **content))
