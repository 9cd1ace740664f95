"""Numbers as people read them: percentages with their interval, bytes, counts. A dash stands for "not measured"."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from peftjax.quantities import prefixed, three
from peftjax.tasks.metric import Metric

if TYPE_CHECKING:
  from peftjax.compare.analysis import Estimate

NONE = "–"
MINUS = "−"


def score_text(value: float | None, metric: Metric) -> str:
  """In percent if the metric is a share, else to three decimals.

  >>> accuracy, pearson = Metric("accuracy", "per-example", share=True), Metric("pearson", "corpus")
  >>> score_text(0.8371, accuracy), score_text(0.8371, pearson), score_text(-0.8371, pearson)
  ('83.7', '0.837', '−0.837')
  """
  if value is None or not math.isfinite(value):
    return NONE
  return (f"{100 * value:.1f}" if metric.share else f"{value:.3f}").replace("-", MINUS)


def signed(value: float | None, metric: Metric) -> str:
  """The same with its sign; none where it rounds to zero.

  >>> accuracy = Metric("accuracy", "per-example", share=True)
  >>> signed(-0.0171, accuracy), signed(0.0171, accuracy), signed(0.00001, accuracy)
  ('−1.7', '+1.7', '0.0')
  """
  if value is None or not math.isfinite(value):
    return NONE
  text = score_text(abs(value), metric)
  return text if not float(text) else ("+" if value > 0 else MINUS) + text


def estimate(one: Estimate | None, metric: Metric) -> str:
  """A score with its interval, such as "83.7 [82.1, 85.2]"; a share's ends at 0 and 100."""
  if one is None:
    return NONE
  ends = f" [{', '.join(score_text(metric.within(end), metric) for end in one.ends)}]" if one.ends else ""
  return score_text(one.estimate, metric) + ends


def difference(one: Estimate | None, metric: Metric) -> str:
  """A difference with its interval, such as "−1.7 [−3.3, +0.1]"."""
  if one is None:
    return NONE
  ends = f" [{', '.join(signed(end, metric) for end in one.ends)}]" if one.ends else ""
  return signed(one.estimate, metric) + ends


def scale(metric: Metric) -> float:
  """What a metric is multiplied by to be shown: 100 where it is a share."""
  return 100.0 if metric.share else 1.0


def unit(metric: Metric) -> str:
  """What a difference of the metric is counted in, with the space before it; empty if it has no unit."""
  return " points" if metric.share else f" {metric.unit}" if metric.unit else ""


def counted_in(metric: Metric) -> str:
  """The same behind a comma, for an axis."""
  return unit(metric) and f",{unit(metric)}"


def named(metric: Metric) -> str:
  """The metric's name and what it is shown in.

  >>> named(Metric("accuracy", "per-example", share=True)), named(Metric("loss", "ratio", unit="nats a token"))
  ('accuracy in %', 'loss in nats a token')
  """
  shown = "%" if metric.share else metric.unit
  return f"{metric.name} in {shown}" if shown else metric.name


def size(count: float | None) -> str:
  """Decimal units, three digits.

  >>> size(768), size(589824), size(90_900_000), size(44_500_000_000)
  ('768 B', '590 kB', '90.9 MB', '44.5 GB')
  """
  return NONE if count is None else prefixed(count, "B")


def short(count: float | None) -> str:
  """A count in three digits and a letter.

  >>> short(769), short(147456), short(22_714_370)
  ('769', '147k', '22.7M')
  """
  if count is None:
    return NONE
  return prefixed(count, "").replace(" ", "").replace("G", "B")


def trimmed(text: str) -> str:
  """Without the zeros after the point, for the ticks of an axis.

  >>> trimmed("1.00k"), trimmed("60.0 MB"), trimmed("100 kB")
  ('1k', '60 MB', '100 kB')
  """
  return re.sub(r"\.0+(?=\D|$)", "", text)


def whole(count: float | None) -> str:
  """A count in full.

  >>> whole(22714370)
  '22,714,370'
  """
  return NONE if count is None else f"{count:,.0f}"


def percent(value: float | None) -> str:
  """Of a number that is in percent already; two significant digits below 10.

  >>> percent(0.0108), percent(1.285), percent(100.0), percent(12.3)
  ('0.011%', '1.3%', '100%', '12%')
  """
  if value is None:
    return NONE
  if value >= 9.95:
    return f"{value:.0f}%"
  text = f"{value:.2g}"
  return (f"{value:.6f}".rstrip("0") if "e" in text else text) + "%"


def ratio(value: float | None) -> str:
  """Times the reference.

  >>> ratio(0.6702), ratio(None)
  ('0.67×', '–')
  """
  return NONE if value is None else f"{value:.2f}×"


def seconds(value: float | None) -> str:
  """A duration.

  >>> seconds(0.1234), seconds(2.5), seconds(93.0), seconds(7260)
  ('123 ms', '2.50 s', '1 min 33 s', '2 h 1 min')
  """
  if value is None:
    return NONE
  if value < 1:
    return f"{three(1000 * value)} ms"
  if value < 60:
    return f"{value:.2f} s"
  minutes, rest = divmod(round(value), 60)
  return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def rate(value: float | None) -> str:
  """A learning rate.

  >>> rate(0.001), rate(3e-05), rate(0.005)
  ('1e-3', '3e-5', '5e-3')
  """
  if value is None:
    return NONE
  digits, _, exponent = f"{value:.1e}".partition("e")
  return f"{digits.removesuffix('.0')}e{int(exponent)}"


def runs(ids: Sequence[str]) -> str:
  """Run ids, those of one row together.

  >>> runs(["full/seed-0", "full/seed-1", "lora/seed-0", "ia3/seed-0", "ia3/seed-1", "ia3/seed-2"])
  'full/seed-{0,1}, lora/seed-0, ia3/seed-{0..2}'
  """
  seeds: dict[str, list[str]] = {}
  for run in ids:
    row, _, seed = run.partition("/seed-")
    seeds.setdefault(row, []).append(seed)
  return ", ".join(f"{row}/seed-{_seeds(own)}" for row, own in seeds.items())


def _seeds(seeds: list[str]) -> str:
  if len(seeds) < 2:
    return seeds[0]
  first, last = int(seeds[0]), int(seeds[-1])
  if len(seeds) > 2 and seeds == [str(seed) for seed in range(first, last + 1)]:
    return f"{{{first}..{last}}}"
  return f"{{{','.join(seeds)}}}"


def names(items: Sequence[str]) -> str:
  """A list in words.

  >>> names(["a"]), names(["a", "b", "c"])
  ('a', 'a, b and c')
  """
  return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1] if items else "none"
