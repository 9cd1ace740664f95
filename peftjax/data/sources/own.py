"""A data set of the user's own, held against the protocol as it is opened and as its examples are read."""

from __future__ import annotations

import dataclasses
import json
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from peftjax.data.sources.types import BESIDE, Dataset, Example, Named, Source, WrongExample
from peftjax.errors import UserError
from peftjax.own_code import NOT_OF_CODE, said


class NotedNamed(Named):
  """What a user names, which notes what of it is read.

  Attributes:
    read: names of fields.
  """

  __slots__ = ("read",)
  read: set[str]

  def __new__(cls, *given: Any, **named: Any) -> NotedNamed:
    made = super().__new__(cls)
    object.__setattr__(made, "read", set())
    return made

  def __getattribute__(self, name: str) -> Any:
    if name in _FIELDS or name == "__dict__":
      object.__getattribute__(self, "read").update([name] if name in _FIELDS else _FIELDS)
    return object.__getattribute__(self, name)


_FIELDS = {one.name: one.default for one in dataclasses.fields(Named)}


def opened(function: Callable[[str, Named], Any], rest: str, named: Named) -> tuple[Any, str]:
  """(what a function of the user's own gives, "setting=value" of what is named and not read by it).

  What keeps `named` may still read all of it, when an example is asked for.
  """
  noted = NotedNamed(**vars(named))
  read, kept = noted.read, weakref.ref(noted)
  found = function(rest, noted)
  del noted
  for name, default in _FIELDS.items():
    value = getattr(named, name)
    if value != default and name not in read and kept() is None:
      return found, f"{name if name in _PLAIN else f'{name}_column'}={value!r}"
  return found, ""


_PLAIN = ("label_kind", "image_root", "audio_root")  # fields of `config.data` by the same names


@dataclasses.dataclass(frozen=True)
class OwnSource:
  """The examples of one split.

  Attributes:
    source: the user's.
    where: the data's name and the split, for errors.
    fields: that each example holds, but for a label, which whoever needs it asks for; empty: any. New examples have no
      others, so that an input that reads one would be given less of them than it was trained on.
  """

  source: Any
  where: str
  fields: tuple[str, ...]

  def __len__(self) -> int:
    return len(self.source)

  def __iter__(self) -> Iterator[Example]:
    return (self[index] for index in range(len(self)))

  def __getitem__(self, index: int) -> Example:
    try:
      example: Any = self.source[index]
    except NOT_OF_CODE:
      raise
    except Exception as error:
      raise WrongExample(index, self.where, f": {said(error)}") from error
    if not isinstance(example, Mapping):
      raise UserError(f"example {index} of {self.where} is {type(example).__name__}; expected a dict")
    if missing := [name for name in self.fields if name != "label" and name not in example]:
      held = ", ".join(map(str, example)) or "nothing"
      raise UserError(f"example {index} of {self.where} has no {missing[0]!r}, which its header names; it holds {held}")
    if self.fields and (more := [name for name in example if name not in (*self.fields, *BESIDE)]):
      what = f"example {index} of {self.where} has {more[0]!r}, which its header does not name"
      raise UserError(f"{what}: leave it out, or add it to fields={self.fields}")
    return dict(example)


@dataclasses.dataclass(frozen=True)
class OwnRead:
  """Split name -> its `OwnSource`."""

  dataset: Dataset

  def __call__(self, split: str) -> Source:
    of = self.dataset
    source, where = of.read(split), f"{of.name}, {split}"
    try:
      count = len(source)
    except NOT_OF_CODE:
      raise
    except Exception as error:
      raise UserError(f"{where}: {said(error)}; expected an object with __len__ and __getitem__") from error
    if count < of.splits[split]:
      raise UserError(f"{where}: it has {count} examples, and splits says {of.splits[split]}")
    return OwnSource(source, where, tuple(of.fields))


def checked(spec: str, given: Any) -> Dataset:
  """What a function of the user's own gave, as a data set whose examples are held against its header.

  Raises:
    UserError: it is no data set with a training split, a split has no examples, or a part of it is of another kind.
  """
  if not isinstance(given, Dataset):
    raise UserError(f"data.name={spec!r} gave {type(given).__name__}; expected a peftjax.data.sources.Dataset")
  if not given.splits.get("train"):
    held = ", ".join(f"{name}: {count}" for name, count in given.splits.items()) or "none"
    raise UserError(f"data.name={spec!r} has no examples in a split 'train'; its splits: {held}")
  for split, count in given.splits.items():
    if not isinstance(count, int | np.integer) or isinstance(count, bool) or count < 0:
      raise UserError(f"data.name={spec!r} has splits with {split!r}: {count!r:.40}; expected a number of examples")
    if not count:
      raise UserError(f"data.name={spec!r} has splits with {split!r}: 0; leave a split without examples out")
  read: Callable[..., Any] | None = given.read
  if not callable(read):
    raise UserError(f"data.name={spec!r} has read={read!r:.80}; expected a function from a split to its examples")
  try:
    json.dumps(given.identity, sort_keys=True)
  except (TypeError, ValueError) as error:
    raise UserError(
      f"data.name={spec!r} has identity={given.identity!r:.80}; expected numbers, texts, lists and dicts of them "
      f"({error})"
    ) from None
  return dataclasses.replace(given, read=OwnRead(given), own=spec)
