"""What of a user's own data and input must be as it was for a saved position in the data to fit.

A source and an input of this package say all of it in their fingerprints, whatever its version is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from peftjax import own_digest

if TYPE_CHECKING:
  from peftjax.data.inputs.base import Input
  from peftjax.data.sources.types import Dataset

_SPLITS, _NAMES = "the number of examples of each split", "label_names"
_BUCKETS, _FILLS = "the buckets of the input", "the fills of the input"
_SOURCE_CODE, _INPUT_CODE = "the code of the source", "the code of the input"
_NOT_IN_EARLIER = (_SPLITS, _NAMES, _BUCKETS, _FILLS, _SOURCE_CODE, _INPUT_CODE)


def own_identity(dataset: Dataset, inputs: Input) -> dict[str, Any]:
  """Name -> what must be equal, ready for JSON; {} where both are this package's."""
  found: dict[str, Any] = {}
  if dataset.code:
    found[_SPLITS] = {str(name): int(count) for name, count in dataset.splits.items()}
    found[_NAMES] = list(map(str, dataset.label_names))
  if not own_digest.is_packaged(type(inputs)):
    found[_BUCKETS] = [int(one) for one in inputs.buckets]
    found[_FILLS] = {str(name): repr(np.asarray(fill).tolist()) for name, fill in sorted(inputs.fills.items())}
  if dataset.code:
    found[_SOURCE_CODE] = dataset.code
  if not own_digest.is_packaged(type(inputs)):
    found[_INPUT_CODE] = own_digest.of_class(type(inputs))
  return found


def difference(saved: Mapping[str, Any], identity: Mapping[str, Any], code_changed: bool = False) -> str:
  """What differs in a saved identity from one, in words; "" where it fits. What earlier versions did not save fits.

  Args:
    code_changed: whether code that has changed fits too.
  """
  for name, value in identity.items():
    was = saved.get(name)
    if was == value or (name in _NOT_IN_EARLIER and name not in saved):
      continue
    if name in (_SOURCE_CODE, _INPUT_CODE):
      if code_changed:
        continue
      return f"{name} has changed since; where it was a correction, --config.data.code_changed=True goes on"
    if isinstance(was, list) and isinstance(value, list) and len(was) == len(value) > 8:
      at = next(at for at, (one, other) in enumerate(zip(was, value, strict=True)) if one != other)
      name, was, value = f"number {at} of {name}", was[at], value[at]
    return f"{name} was {was!r}, is {value!r}"
  return ""
