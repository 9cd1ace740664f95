"""The labels of a batch's examples, each held against what the header says that it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from peftjax.data.sources.types import Example, Header, WrongExample

_GREATEST = float(np.finfo(np.float32).max)


def labels_of(
  header: Header, examples: Sequence[Example], ids: np.ndarray, shape: tuple[int, ...], kind: str
) -> np.ndarray:
  """[B, ...]: what examples have as `label`.

  Args:
    header: of their data.
    ids: of the examples.
    shape: of one label: (C,) where it is a zero or one for each of C names.
    kind: "i" of classes, of which each example has one; "f" of numbers, and of several classes.

  Raises:
    WrongExample: an example has none, or one that is none of the header's; the first is named.
  """
  count = len(header.label_names)
  try:
    labels = np.array([one["label"] for one in examples])
    numbers = labels.dtype.kind in "biuf" and labels.size == len(examples) * math.prod(shape)
  except (KeyError, ValueError):  # of several sizes
    numbers = False
  if not numbers:
    _check(header, examples, ids, shape, kind)
    labels = np.array([np.asarray(one["label"], np.float64) for one in examples])
  labels = labels.reshape(len(examples), *shape)
  if shape:
    right = ((labels == 0) | (labels == 1)).all(axis=1)
  elif kind == "i":
    right = ((labels >= 0) & (labels < count)) if count else np.isfinite(labels)
    if labels.dtype.kind == "f":
      right &= labels == np.floor(labels)
  else:
    right = np.abs(labels) <= _GREATEST
  if not right.all():
    _check(header, examples, ids, shape, kind)
  return labels


def _check(header: Header, examples: Sequence[Example], ids: np.ndarray, shape: tuple[int, ...], kind: str) -> None:
  for one, number in zip(examples, ids):
    if "label" not in one:
      raise WrongExample(number, header.name, f" has no label; it holds {', '.join(map(str, one)) or 'nothing'}")
    if expected := _wrong(one["label"], header.label_names, shape, kind):
      label = one["label"]
      shown = f"{label:g}" if isinstance(label, float | np.floating) else f"{label!r:.60}"
      raise WrongExample(number, header.name, f" has the label {shown}; {expected}")


def _wrong(label: Any, names: Sequence[str], shape: tuple[int, ...], kind: str) -> str:
  """What was expected in place of a label; "" of one that is right."""
  count = len(names)
  try:
    value = np.asarray(label, np.float64)
  except (TypeError, ValueError):
    value = None
  if shape:
    right = value is not None and value.size == count and bool(((value == 0) | (value == 1)).all())
    return "" if right else f"expected {count} zeros and ones, one for each of {', '.join(names[:8])}"
  if isinstance(label, str) or label is None or value is None or value.size != 1:
    return f"expected its place among {', '.join(names[:8])}" if count else "expected a number"
  number = float(value.reshape(()))
  if kind == "f" or not math.isfinite(number):
    return "" if abs(number) <= _GREATEST and kind == "f" else "a finite number was expected"
  if count and not 0 <= number < count:
    return f"expected 0 to {count - 1}, as {count} are named"
  return "" if number == math.floor(number) else f"expected a whole number{f', 0 to {count - 1}' if count else ''}"
