"""Reading a step's metrics one step late, so that the device never waits for the host."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from peftjax.errors import UserError
from peftjax.train.logs import RunLog
from peftjax.train.step import Metrics

_NOT_LOGGED = ("finite", "leaf_norms", "weight")


class Diverged(UserError):
  """A loss or gradient was not finite, and the config says stop. The update was left out."""


class Watch:
  """Holds the metrics of the last dispatched step; `dispatched` and `fetch` log those that it held.

  Args:
    config: `train.log_every` and `train.nonfinite` say what is logged and when to stop.
    log: where to.
    together: runs that every step trains at once; each is given its share of the time.
  """

  def __init__(self, config: ConfigDict, log: RunLog, together: int = 1):
    self._every, self._stop = config.train.log_every, config.train.nonfinite == "stop"
    self._log, self._together = log, together
    self._held: tuple[int, Metrics, Mapping[str, np.ndarray]] | None = None
    self._clock: float | None = None

  def dispatched(self, step: int, metrics: Metrics, batch: Mapping[str, np.ndarray], clean: bool = True) -> None:
    """Takes the metrics of a step that runs now, and logs the one before.

    Args:
      clean: nothing but the step before ran since then, so the time between counts as a step's.

    Raises:
      Diverged: the step before was not finite.
    """
    if not clean:
      self.restart_clock()
    self.fetch()
    self._held = step, metrics, batch

  def restart_clock(self) -> None:
    """Leaves the time until the next step out of the step times."""
    self._clock = None

  def fetch(self) -> None:
    """Waits for the step whose metrics are held, and logs them.

    Raises:
      Diverged: it was not finite.
    """
    if self._held is None:
      return
    step, metrics, batch = self._held
    self._held = None
    seen = {name: _number(metrics[name]) for name in ("loss", "grad_norm")}
    now = time.perf_counter()
    if self._clock is not None:
      self._log.step_took((now - self._clock) / self._together, batch)
    self._clock = now
    self._log.progress(step, seen["loss"])
    if not metrics["finite"]:
      self._not_finite(step, seen, batch)
    elif self._log.is_last(step) or due(step, self._every):
      row = {name: _plain(value) for name, value in metrics.items() if name not in _NOT_LOGGED}
      self._log.train_row(step, {"loss": row.pop("loss"), "grad_norm": row.pop("grad_norm"), **row})

  def _not_finite(self, step: int, seen: Mapping[str, float], batch: Mapping[str, np.ndarray]) -> None:
    ids = [int(one) for one in np.asarray(batch.get("index", ()))[:8]]
    what = f"step {step}: loss {seen['loss']}, gradient norm {seen['grad_norm']}, on examples {ids} ..."
    if self._stop:
      raise Diverged(f"{what}; lower optim.learning_rate, or set train.nonfinite=skip to leave such updates out")
    self._log.train_row(step, {"skipped": True, **seen})
    self._log.say(f"{what}; the update is left out")


def due(count: int, every: int) -> bool:
  """Whether something that happens `every` so many steps (0: never) happens after step `count`."""
  return every > 0 and count % every == 0


def _plain(value: Any) -> Any:
  return jax.tree.map(_number, value)


def _number(value: Any) -> float:
  """The shortest decimal that is this float32: 0.001, not 0.0010000000474974513."""
  return float(str(np.float32(value)))
