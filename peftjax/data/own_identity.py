"""What of a user's own data and input must be as it was for a saved position in the data to fit.

A source and an input of this package say all of it in their fingerprints, whatever its version is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from peftjax import named_code, own_digest

if TYPE_CHECKING:
  from peftjax.data.inputs.base import Input
  from peftjax.data.sources.types import Dataset

_SOURCE = "the source"
_SPLITS, _NAMES = "the number of examples of each split", "label_names"
_BUCKETS, _FILLS = "the buckets of the input", "the fills of the input"
_NOT_IN_EARLIER = (_SOURCE, _SPLITS, _NAMES, _BUCKETS, _FILLS)


def own_identity(dataset: Dataset, inputs: Input) -> dict[str, Any]:
  """Name -> what must be equal, ready for JSON; {} where both are this package's."""
  found: dict[str, Any] = {}
  if dataset.own:
    found[_SOURCE] = dataset.own
    found[_SPLITS] = {str(name): int(count) for name, count in dataset.splits.items()}
    found[_NAMES] = list(map(str, dataset.label_names))
  if not own_digest.is_packaged(type(inputs)):
    found[_BUCKETS] = [int(one) for one in inputs.buckets]
    found[_FILLS] = {str(name): repr(np.asarray(fill).tolist()) for name, fill in sorted(inputs.fills.items())}
  return found


def is_own(dataset: Dataset, inputs: Input) -> bool:
  """Whether the source or the input is the user's own."""
  return bool(dataset.own) or not own_digest.is_packaged(type(inputs))


def own_code(dataset: Dataset, inputs: Input) -> dict[str, str]:
  """The code that must be equal, as `named_code.code_of` gives it; {} where both are this package's."""
  return named_code.digests([dataset.own, named_code.name_of(type(inputs))])


def difference(saved: Mapping[str, Any], identity: Mapping[str, Any]) -> str:
  """What differs in a saved identity from one, in words; "" where it fits. What earlier versions did not save fits."""
  for name, value in identity.items():
    was = saved.get(name)
    if was == value or (name in _NOT_IN_EARLIER and name not in saved):
      continue
    if isinstance(was, list) and isinstance(value, list) and len(was) == len(value) > 8:
      at = next(at for at, (one, other) in enumerate(zip(was, value, strict=True)) if one != other)
      name, was, value = f"number {at} of {name}", was[at], value[at]
    return f"{name} was {was!r}, is {value!r}"
  return ""
