"""`peftjax range`: the loss along a learning rate that rises from update to update, and the rate that it suggests.

The learning rate range test of Smith (2017), "Cyclical learning rates for training neural networks", arXiv 1506.01186,
section 3.3, with a rate that rises geometrically instead of by equal amounts. What is trained is thrown away.

    smoothed    the exponential mean of the losses, 0.9 of the old and 0.1 of the new, divided by 1 - 0.9^n
    lowest      the rate at which it is lowest: Smith's upper bound, above which the loss gets worse
    suggested   a tenth of it, as a peak

The test ends early where the smoothed loss is above four times its lowest value, or a loss is not finite.

D/range.json    rates, losses, smoothed losses, the lowest and the suggested rate
D/range.png     the curve
"""

from __future__ import annotations

import copy
import io
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from peftjax import config as config_lib
from peftjax import optim, outputs
from peftjax.data.packages import cache_folder
from peftjax.errors import UserError
from peftjax.files import read_json, write_bytes, write_text
from peftjax.parallel.mesh import put_batch
from peftjax.train.compiling import CompiledStep, use_cache
from peftjax.train.display import Display
from peftjax.train.loop import MakeRun, make_run

KEPT = 0.9  # of the smoothed loss in every update
ENDS = 4.0  # times the lowest smoothed loss
SHARE = 0.1  # of the lowest point's rate
FEWEST = 10  # updates
FILES = TABLE, PICTURE = "range.json", "range.png"


def rates_between(lowest: float, highest: float, updates: int) -> np.ndarray:
  """float64 [updates]: from the lowest to the highest, each the same multiple of the one before.

  Raises:
    UserError: they do not rise, or are too few.
  """
  if not (0 < lowest < highest < math.inf) or updates < FEWEST:
    raise UserError(
      f"peftjax range: from {lowest:g} to {highest:g} in {updates} updates; expected rates above 0 that rise, and at "
      f"least {FEWEST} updates"
    )
  return np.geomspace(lowest, highest, updates)


class Curve:
  """Losses as they come, `smoothed`, their running mean after each, as the module says, and the `lowest` of these."""

  def __init__(self, losses: Iterable[float] = ()):
    self.losses: list[float] = []
    self.smoothed: list[float] = []
    self.lowest = math.inf
    self._mean = 0.0
    for loss in losses:
      self.add(loss)

  def add(self, loss: float) -> None:
    """The loss of one more update."""
    self.losses.append(loss)
    self._mean = KEPT * self._mean + (1 - KEPT) * loss
    self.smoothed.append(self._mean / (1 - KEPT ** len(self.losses)))
    self.lowest = min(self.lowest, self.smoothed[-1])


def suggestion(rates: Sequence[float], curve: Sequence[float]) -> dict[str, Any]:
  """{"lowest", "suggested"}: rates, and "edge", whether the loss was still falling at the highest rate.

  Args:
    rates: tried.
    curve: their smoothed losses.

  Raises:
    UserError: no loss is finite.
  """
  if not len(curve):
    raise UserError("peftjax range: the first loss is not finite; begin with a lower --from")
  best = int(np.argmin(curve))
  lowest = float(rates[best])
  return {"lowest": lowest, "suggested": float(f"{SHARE * lowest:.2g}"), "edge": best == len(rates) - 1}


def find(
  config: ConfigDict, workdir: str | Path, lowest: float, highest: float, updates: int, make_run: MakeRun = make_run
) -> dict[str, Any]:
  """Runs the test, and writes ``range.json`` and ``range.png`` into a folder; a run in it stays as it is.

  All groups rise together, but for those that have a rate of their own in `optim.groups`, which keep it; a group's
  `learning_rate_multiplier` acts.

  Returns:
    What range.json holds: "rates", "losses", "smoothed", "lowest", "suggested", "edge", "ended", "groups".

  Raises:
    UserError: as `loop.make_run`; rates that do not rise; a sweep.
  """
  config_lib.check(config)
  rates = rates_between(lowest, highest, updates)
  if config.sweep:
    raise UserError("peftjax range: one run at a time; leave config.sweep empty")
  _check_own(Path(workdir))
  config = copy.deepcopy(config)
  config.optim.update({"learning_rate": highest, "schedule": "constant", "warmup": 0.0})
  config.train.update({"steps": updates, "spike": 0.0, "ema": 0.0, "nonfinite": "skip"})
  use_cache(str(cache_folder("compiled")))
  run = make_run(config)
  settings = run.program.optimizer.settings
  rising = [name for name in settings if "learning_rate" not in config.optim.groups.get(name, {})]
  if not rising:
    raise UserError("peftjax range: every group has its own rate in optim.groups; leave out those that are to rise")
  state = run.start()
  step = CompiledStep(run.step(), run.mesh, state, run.frozen, lambda cost: None)
  place = jax.tree.map(lambda leaf: leaf.sharding, state.opt_state)
  display = Display(0, updates, shown=jax.process_index() == 0)
  curve = Curve()
  ended = "after all updates"
  try:
    for count, rate in enumerate(rates, 1):
      peaks = {name: settings[name].learning_rate * rate / highest for name in rising}
      opt_state = jax.device_put(optim.with_peaks(state.opt_state, peaks), place)
      state, metrics = step(
        state._replace(opt_state=opt_state), run.frozen, put_batch(run.mesh, next(run.loaders.train))
      )
      loss = float(metrics["loss"])
      if not metrics["finite"]:
        ended = f"at {rate:.3g}, where the loss was not finite"
        break
      curve.add(loss)
      display.update(count, loss, None)
      display.row(count, f"rate {rate:.3g}, loss {loss:.4f}")
      if count >= FEWEST and curve.smoothed[-1] > ENDS * curve.lowest > 0:
        ended = f"at {rate:.3g}, where the smoothed loss was {ENDS:g} times its lowest"
        break
  finally:
    display.close()
  tried = [float(rate) for rate in rates[: len(curve.losses)]]
  found = {"rates": tried, "losses": curve.losses, "smoothed": curve.smoothed, **suggestion(tried, curve.smoothed),
           "ended": ended, "groups": rising}  # fmt: skip
  if jax.process_index() == 0:
    _check_own(Path(workdir))  # again: the test took its time
    with outputs.written(workdir, FILES, "range", overwrite=True) as folder:
      write_text(folder / TABLE, json.dumps(found, indent=2) + "\n")
      write_bytes(folder / PICTURE, drawn(found))
  return found


def _check_own(folder: Path) -> None:
  """Raises `UserError` if what a test writes would replace files that none wrote."""
  outputs.check_own(folder, FILES, whose="range test's", kind="range", is_own=lambda path: _is_curve(folder / TABLE))


def _is_curve(table: Path) -> bool:
  """Whether a file is a test's range.json; earlier versions listed none."""
  return table.is_file() and {"rates", "smoothed"} <= read_json(table).keys()


def drawn(found: dict[str, Any]) -> bytes:
  """The curve as PNG."""
  from matplotlib.figure import Figure  # slow to import

  figure = Figure(figsize=(6, 4), layout="constrained")
  axes = figure.subplots()
  axes.plot(found["rates"], found["losses"], linewidth=0.8, color="#b0b0b0", label="loss")
  axes.plot(found["rates"], found["smoothed"], linewidth=1.6, color="#1f6fb2", label="smoothed")
  axes.axvline(found["suggested"], color="#c0392b", linewidth=1.2, label=f"suggested: {found['suggested']:.2g}")
  axes.set(xscale="log", xlabel="learning rate", ylabel="training loss")
  axes.spines[["top", "right"]].set_visible(False)
  axes.legend(frameon=False)
  content = io.BytesIO()
  figure.savefig(content, format="png", dpi=150)
  return content.getvalue()


def show(found: dict[str, Any], workdir: str, console: Console) -> None:
  """What was found, in a few lines."""
  edge = "; the loss was still falling there, so go higher with --to" if found["edge"] else ""
  console.print(f"smoothed loss lowest at {found['lowest']:.3g}{edge}", highlight=False)
  where = f"for {', '.join(found['groups'])}; ended {found['ended']}; {workdir}/range.png"
  console.print(
    f"a tenth of it as the peak: --config.optim.learning_rate={found['suggested']:g}, {where}", highlight=False
  )
