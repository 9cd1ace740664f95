"""Counts of bytes and operations as people read them."""

from __future__ import annotations

_PREFIXES = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))


def three(value: float) -> str:
  """Three significant digits, as far as they stand before or behind the point.

  >>> three(4.0), three(69.84), three(254.4)
  ('4.00', '69.8', '254')
  """
  return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def prefixed(count: float, unit: str) -> str:
  """Decimal prefixes, three digits.

  >>> prefixed(768, "B"), prefixed(589824, "B"), prefixed(69.84e9, "FLOP")
  ('768 B', '590 kB', '69.8 GFLOP')
  """
  for prefix, scale in _PREFIXES:
    if count >= 0.9995 * scale:
      return f"{three(count / scale)} {prefix}{unit}"
  return f"{count:.0f} {unit}"
