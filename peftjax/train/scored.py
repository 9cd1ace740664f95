"""What tasks and evaluators give as scores, held against what their `specs` say: one line where the two differ."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from peftjax.errors import UserError, nearest
from peftjax.tasks.metric import Metric

TAKEN = ("step", "split", "final")  # what a row of metrics.jsonl holds beside its metrics
ROUNDING = 1e-6  # beyond the ends of a share
AGREEMENT = 1e-4  # of a metric with its rows, of their mean size: what sums of many float32 may lose


def check_names(specs: Mapping[str, Iterable[Metric]]) -> None:
  """Checks that no metric would be written in another's place.

  Args:
    specs: those of each evaluator, by what errors call it.

  Raises:
    UserError: two have a metric of one name, or a name is taken.
  """
  whose: dict[str, str] = {}
  for who, each in specs.items():
    if not isinstance(each, tuple | list) or not all(isinstance(one, Metric) for one in each):
      raise UserError(f"{who} has specs={each!r:.80}; expected a tuple of peftjax.tasks.Metric")
    for one in each:
      if one.name in TAKEN:
        raise UserError(f"{who} has a metric {one.name!r}, which rows of metrics.jsonl hold already; choose another")
      if one.name in whose:
        also = "twice" if whose[one.name] == who else f"and {whose[one.name]} has one too"
        raise UserError(f"{who} has a metric {one.name!r} {also}: one would replace the other; choose another name")
      whose[one.name] = who


def numbers(who: str, metrics: Mapping[str, Any], specs: Iterable[Metric]) -> dict[str, float]:
  """The metrics as numbers that JSON knows; one that is not finite stays, and is written as null.

  Args:
    who: gave them, for errors.

  Raises:
    UserError: one that no spec names, or that is missing, is no number, or lies outside what its spec says.
  """
  known = {one.name: one for one in specs}
  if missing := [name for name in known if name not in metrics]:
    given = ", ".join(map(str, metrics)) or "nothing"
    raise UserError(f"{who} gives {given}; its specs name {missing[0]!r} too (nan where there is no value)")
  found = {}
  for name, value in metrics.items():
    if name not in known:
      raise UserError(f"{who} gives {name!r}, which none of its specs names; {nearest(str(name), known)}")
    found[name] = _number(who, name, value)
    _check_share(f"{who} gives {name!r}: {found[name]:g}", known[name], found[name], found[name])
  return found


def _number(who: str, name: str, value: Any) -> float:
  if hasattr(value, "item") and np.shape(value) == ():  # of numpy or JAX
    value = value.item()
  if not isinstance(value, int | float):
    shown = f"an array {list(np.shape(value))}" if hasattr(value, "shape") else f"{value!r:.80}"
    raise UserError(f"{who} gives {name!r}: {shown}; expected a number")
  return value


def _check_share(what: str, spec: Metric, low: float, high: float) -> None:
  if spec.share and (low < -ROUNDING or high > spec.highest + ROUNDING):
    ends = "from 0 to 1" if math.isfinite(spec.highest) else "of at least 0"
    raise UserError(f"{what}; its spec says share=True, which is a number {ends}")


def check_rows(who: str, rows: Mapping[str, Any], specs: Iterable[Metric]) -> None:
  """Checks that rows can be kept, and that those that metrics follow from are numbers.

  Args:
    who: gave them, for errors.
    rows: with "index", one value an example in each.

  Raises:
    UserError: a row is no array with one value an example, or not what a spec needs.
  """
  count = len(rows["index"])
  arrays = {}
  for name, row in rows.items():
    try:
      arrays[name] = np.asarray(row)
    except ValueError:  # lists of several lengths
      arrays[name] = np.asarray(None)
    if arrays[name].dtype == object:
      raise UserError(f"{who} gives {name!r} as Python objects; expected an array of numbers or texts")
    if not arrays[name].shape or len(arrays[name]) != count:
      raise UserError(f"{who} gives {name!r} {list(arrays[name].shape)} for {count} examples")
  for one in specs:
    for needed in (*filter(None, [one.value]), *one.numerator, *one.denominator):
      if needed not in arrays:
        raise UserError(f"{who} gives {', '.join(arrays)}; {one.name!r} follows from the row {needed!r}")
      row = arrays[needed]
      if row.ndim != 1 or row.dtype.kind in "USM" or np.iscomplexobj(row):
        raise UserError(f"{who} gives {needed!r} {row.dtype}{list(row.shape)}; {one.name!r} follows from it, and needs "
                        f"a number for each example")  # fmt: skip
    if one.kind == "per-example" and one.value:
      row = arrays[one.value].astype(np.float64)
      row = row[np.isfinite(row)]
      if len(row):
        ends = float(row.min()), float(row.max())
        what = f"{who} gives {one.value!r} from {ends[0]:g} to {ends[1]:g}, and {one.name!r} is its mean"
        _check_share(what, one, *ends)


def check_agreement(who: str, metrics: Mapping[str, float], rows: Mapping[str, Any], specs: Iterable[Metric]) -> None:
  """Checks that metrics which are means or ratios of rows are those of these rows: a study computes them anew.

  Nothing is said of other kinds, nor where a number is not finite.

  Raises:
    UserError: they differ by more than rounding.
  """
  for one in specs:
    if (found := _of_rows(one, rows)) is None:
      continue
    value, size, how = found
    given = float(metrics[one.name])
    if math.isfinite(given) and abs(given - value) > AGREEMENT * size:
      raise UserError(f"{who}: metrics gives {one.name!r}: {given:.6g}, and {how} is {value:.6g}; studies rest on the "
                      f"rows, so that both must be the same (or the spec's kind 'corpus')")  # fmt: skip


def _of_rows(spec: Metric, rows: Mapping[str, Any]) -> tuple[float, float, str] | None:
  """(what rows say, the size that rounding is measured by, how it follows); None where they do not say."""
  if spec.kind == "per-example" and spec.value:
    row = np.asarray(rows[spec.value]).astype(np.float64)
    if not len(row) or not np.isfinite(row).all():
      return None
    return float(row.mean()), _loss(rows[spec.value]) * float(np.abs(row).mean()), f"the mean of its row {spec.value!r}"
  if spec.kind == "ratio" and spec.numerator and spec.denominator:
    above, below = spec.counts(rows)
    if not np.isfinite(above).all() or not np.isfinite(below).all() or not below.sum():
      return None
    loss = max(_loss(rows[name]) for name in (*spec.numerator, *spec.denominator))
    size = loss * float(np.abs(above).sum() / abs(below.sum()))
    return float(spec.sign * above.sum() / below.sum()), size, "the ratio of its rows"
  return None


def _loss(row: Any) -> float:
  """How much more than float32 rounding may take of a row: bfloat16 and float16 keep two or three digits."""
  return 100.0 if np.asarray(row).dtype.itemsize == 2 and np.asarray(row).dtype.kind not in "iu" else 1.0
