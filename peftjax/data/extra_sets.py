"""Data that is only evaluated on: test sets from elsewhere with the same labels, and text that should be retained."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from peftjax.data.sources import Dataset, open_as, open_data
from peftjax.errors import UserError

RETAINED = "retained"  # the split of `data.retained`


def shifted_names(data: ConfigDict) -> tuple[str, ...]:
  """The names of the splits that `data.shifted` adds: each data set's own.

  >>> shifted_names(ConfigDict({"shifted": ("packaged:reviews_tweets", "csv:other/news.csv")}))
  ('reviews_tweets', 'news')
  """
  names = []
  for spec in data.get("shifted", ()):
    rest = spec.partition(":")[2]
    names.append(re.sub(r"[^A-Za-z0-9_+-]", "_", Path(rest).stem if "/" in rest or "." in rest else rest))
  return tuple(names)


def open_shifted(data: ConfigDict, dataset: Dataset) -> dict[str, tuple[Dataset, str]]:
  """Split name -> (data set, its split to read) of `data.shifted`: its test split, else its validation split.

  Raises:
    UserError: a set with other labels, without a test split, or named as another split.
  """
  found: dict[str, tuple[Dataset, str]] = {}
  for spec, name in zip(data.get("shifted", ()), shifted_names(data)):
    with _called("data.shifted"):
      other = open_as(spec, data)
    if (other.task, other.label_names) != (dataset.task, dataset.label_names):
      ours, theirs = (", ".join(one.label_names[:4]) or one.task for one in (dataset, other))
      raise UserError(f"data.shifted: {spec} has the labels {theirs}; {dataset.name} has {ours}")
    if name in found or name in (*dataset.splits, RETAINED):
      raise UserError(f"data.shifted: {spec} would be the split {name!r}, which there is already")
    found[name] = (other, _held_out(other, f"data.shifted: {spec}"))
  return found


def open_retained(data: ConfigDict) -> tuple[Dataset, str] | None:
  """(data set, its split to read) of `data.retained`: its test split, else its validation split; None if not asked for.

  Raises:
    UserError: it cannot be opened, or has neither.
  """
  if not data.get("retained", ""):
    return None
  with _called("data.retained"):
    dataset = open_data(data.retained)
  return dataset, _held_out(dataset, f"data.retained={data.retained}")


@contextlib.contextmanager
def _called(field: str) -> Iterator[None]:
  """Mistakes in the block are those of another field than `data.name`."""
  try:
    yield
  except UserError as error:
    said = str(error)
    raise type(error)(
      field + (said.removeprefix("data.name") if said.startswith("data.name") else f": {said}")
    ) from None


def _held_out(dataset: Dataset, what: str) -> str:
  for split in ("test", "validation"):
    if split in dataset.splits:
      return split
  raise UserError(f"{what} has neither a test nor a validation split, only {', '.join(dataset.splits)}")
