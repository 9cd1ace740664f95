"""What a run tells: metrics.jsonl, timing.jsonl, TensorBoard events, and progress on stderr.

metrics.jsonl holds only what the config determines, so a run that was killed and resumed writes the same bytes as one
that was not. Whatever depends on the clock goes to timing.jsonl.
"""

from __future__ import annotations

import contextlib
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from peftjax.errors import UserError
from peftjax.files import parse_json, write_text
from peftjax.train.run import Run

Row = dict[str, Any]
_FLUSH_SECONDS = 30.0


def read_rows(path: Path) -> list[Row]:
  """The rows of a .jsonl file, each with its "step"; a last line that was cut off by a kill is left out.

  Raises:
    UserError: the file cannot be read, or a line in it is no row.
  """
  if not path.is_file():
    return []
  try:
    lines = path.read_bytes().split(b"\n")
  except OSError as error:
    raise UserError(f"cannot read {path}: {error.strerror}") from None
  return [_row(line, f"{path}:{number}") for number, line in enumerate(lines[:-1], 1)]


def _row(line: bytes, where: str) -> Row:
  row = parse_json(line, where)
  step = row.get("step") if isinstance(row, dict) else None
  if not isinstance(step, int) or isinstance(step, bool) or not isinstance(row.get("split", ""), str):
    raise UserError(f'{where}: expected an object with a whole number as "step"; remove the line to go on without it')
  return dict(row)


class RowFile:
  """A .jsonl file that grows by whole lines. Opening it drops the rows that came after the checkpoint of `last_step`:
  those of later steps, and the evaluations of that step, which follow its save.
  """

  def __init__(self, path: Path, last_step: int):
    kept = [row for row in read_rows(path) if row["step"] < last_step + ("split" not in row)]
    write_text(path, "".join(_line(row) for row in kept))
    self._path = path
    self._file = path.open("ab", buffering=0)

  def write(self, row: Row) -> None:
    """Appends a row; a kill of this process after the return cannot undo it.

    Raises:
      UserError: it cannot be written, as on a full disk.
    """
    content = _line(row).encode()
    with writing(self._path):
      while content:
        content = content[self._file.write(content) :]

  def close(self) -> None:
    """Closes the file."""
    self._file.close()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
  """An `OSError` in the block becomes one line."""
  try:
    yield
  except OSError as error:
    raise UserError(f"cannot write {path}: {error.strerror or error}; the same command goes on") from None


def _line(row: Row) -> str:
  return json.dumps(_finite(row), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
  """JSON knows no NaN and no infinity: they become null."""
  if isinstance(value, Mapping):
    return {key: _finite(one) for key, one in value.items()}
  return None if isinstance(value, float) and not math.isfinite(value) else value


class RunLog:
  """The files and the progress display of one run; silent in every process but the first.

  Args:
    folder: the run's.
    start: the step the run starts from; later rows of an earlier attempt are dropped.
    run: whose steps are logged.
    silent: writes and shows nothing.
    shown: whether it has a display of its own.
  """

  def __init__(self, folder: Path, start: int, run: Run, silent: bool = False, shown: bool = True):
    config = run.config.train
    self._silent = silent
    self._total = run.total_steps
    self._batch_size = config.batch_size
    self._window: list[tuple[float, int]] = []  # seconds and tokens of the steps since the last timing row
    if silent:
      return
    last = start or -1  # a run that starts anew also evaluates step 0 anew
    self._metrics = RowFile(folder / "metrics.jsonl", last)
    self._timing = RowFile(folder / "timing.jsonl", last)
    self._events = EventFile(folder / "tensorboard", start) if config.tensorboard else None
    self._display = Display(start, self._total, shown)

  def __enter__(self) -> RunLog:
    return self

  def __exit__(self, *error: object) -> None:
    if self._silent:
      return
    self._display.close()
    self._metrics.close()
    self._timing.close()
    if self._events is not None:
      try:
        if error[0] is None:
          self._events.flush()
      finally:
        self._events.close()

  def step_took(self, seconds: float, tokens: int) -> None:
    """Remembers the time of one step that nothing else (compiling, saving, evaluating) fell into."""
    self._window.append((seconds, tokens))

  def is_last(self, step: int) -> bool:
    """Whether a step is the run's last."""
    return step == self._total

  def progress(self, step: int, loss: float) -> None:
    """Moves the bar."""
    if not self._silent:
      recent = [seconds for seconds, _ in self._window]
      self._display.update(step, loss, self._batch_size * len(recent) / sum(recent) if recent else None)

  def train_row(self, step: int, row: Row) -> None:
    """One row of training metrics, and the time of the steps since the last one."""
    if self._silent:
      return
    self._metrics.write({"step": step, **row})
    for name, value in _scalars(row):
      self._event(f"train/{name}", value, step)
    if self._window:
      seconds = [one for one, _ in self._window]
      timing = {
        "step_seconds": round(statistics.median(seconds), 6),
        "examples_per_second": round(self._batch_size * len(seconds) / sum(seconds), 2),
        "tokens_per_second": round(sum(tokens for _, tokens in self._window) / sum(seconds), 1),
      }
      self._timing.write({"step": step, **timing})
      for name, value in timing.items():
        self._event(f"timing/{name}", value, step)
      self._window.clear()
    self._display.row(step, f"loss {row['loss']:.4f}")

  def evaluation_row(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
    """One row of a split's metrics."""
    if self._silent:
      return
    self._metrics.write({"step": step, "split": split, **metrics})
    for name, value in metrics.items():
      self._event(f"{split}/{name}", value, step)
    self.say(f"step {step}: {split} " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))

  def say(self, text: str) -> None:
    """One line on stderr."""
    if not self._silent:
      self._display.say(text)

  def _event(self, name: str, value: float, step: int) -> None:
    if self._events is not None:
      self._events.write(name, value, step)


def _scalars(row: Row, prefix: str = "") -> Iterator[tuple[str, float]]:
  for name, value in row.items():
    if isinstance(value, Mapping):
      yield from _scalars(dict(value), f"{prefix}{name}/")
    elif isinstance(value, int | float):
      yield prefix + name, float(value)


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


class Display:
  """A progress bar where stderr is a terminal, a line now and then elsewhere; nothing at all unless `shown`."""

  def __init__(self, start: int, total: int, shown: bool = True):
    self._shown = shown
    self._console = Console(stderr=True, soft_wrap=True)
    self._total = total
    self._last_line = time.monotonic()
    self._bar: Progress | None = None
    if shown and self._console.is_terminal:
      columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"))
      self._bar = Progress(*columns, TimeRemainingColumn(), console=self._console, transient=True)
      self._bar.start()
      self._task = self._bar.add_task("", total=total, completed=start, text="")

  def update(self, step: int, loss: float, rate: float | None) -> None:
    """Moves the bar."""
    if self._bar is not None:
      shown = f"loss {loss:.4f}" + (f", {rate:.1f} examples/s" if rate else "")
      self._bar.update(self._task, completed=step, text=shown)

  def row(self, step: int, text: str, every: float = 5.0) -> None:
    """A line about a step where there is no bar, unless the last one was less than `every` seconds ago."""
    if self._bar is None and (step == self._total or time.monotonic() - self._last_line >= every):
      self._last_line = time.monotonic()
      self.say(f"step {step} of {self._total}: {text}")

  def say(self, text: str) -> None:
    """One line."""
    if not self._shown:
      return
    if self._bar is not None:
      self._console.print(text, highlight=False, markup=False)
    else:
      print(text, file=sys.stderr, flush=True)

  def close(self) -> None:
    """Takes the bar away."""
    if self._bar is not None:
      self._bar.stop()
