"""What the sections of several dimensions say and draw alike: one number a row with its interval."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from peftjax.compare import formatting as fmt
from peftjax.compare.analysis import Estimate, Summary
from peftjax.compare.dimensions.base import Group, Plot, at_size, of_largest_size
from peftjax.compare.drawing.rows import estimated, marked
from peftjax.tasks.metric import Metric

Show = Callable[[Estimate], str]
INTERVALS = "Mean over seeds with Student's 95% interval; small strokes are single seeds."


def packed(picture: Image.Image, quality: int = 85) -> str:
  """A picture as JPEG in base 64."""
  buffer = io.BytesIO()
  picture.save(buffer, "JPEG", quality=quality)
  return base64.b64encode(buffer.getvalue()).decode()


def unpacked(jpeg: str) -> np.ndarray:
  """A `packed` picture, uint8 [height, width, 3]."""
  return np.asarray(Image.open(io.BytesIO(base64.b64decode(jpeg))))


def refusal(row: str, reason: str) -> str:
  """A sentence on why a row has no figure.

  >>> refusal("prompt", "prompt cannot be merged"), refusal("short_prompt", "prompt cannot be merged")
  ('prompt cannot be merged.', 'short_prompt: prompt cannot be merged.')
  """
  return f"{reason}." if reason.startswith(f"{row} ") else f"{row}: {reason}."


def range_sentence(groups: Sequence[Group], summary: Summary, what: str, show: Show) -> str:
  """A sentence: the reference's figure, the lowest and the highest of the others, at the largest size."""
  own = of_largest_size(groups)
  base = [one for one in own if one.row == summary.reference]
  others = sorted((one for one in own if one.row != summary.reference), key=lambda one: one.estimate)
  parts = [f"{one.row} {show(one)}" for one in (*base, *others[:1], *others[1:][-1:])]
  at = at_size(own[0].size).replace(" with", " at")
  return f"{what}{at}: {'; '.join(parts)} (the reference, the lowest and the highest; runs below)."


def by_size(
  name: str,
  groups: Sequence[Group],
  summary: Summary,
  title: str,
  across: str,
  metric: Metric,
  show: Show | None = None,
  caption: str = INTERVALS,
) -> tuple[Plot, ...]:
  """A plot for every size: one line a row with interval, mean, and a stroke for each seed.

  Args:
    show: the note at a row's end; a difference in the metric if left out.
  """
  note, plots = show or (lambda one: fmt.difference(one, metric)), []
  for size in sorted({one.size for one in groups}):
    own = [one for one in groups if one.size == size]
    drawn = [estimated(one.row, one, note(one), fmt.scale(metric)) for one in own]
    plots.append(
      Plot(
        f"{name}-{size}",
        title + at_size(size).replace(" with", ","),
        caption,
        lambda narrow, drawn=drawn: marked(drawn, summary, across, narrow, at=0.0),  # type: ignore[misc]
      )
    )
  return tuple(plots)
