"""Checks of inputs whose values are at hand: ids that the model embeds, positions that it has.

Inside a compiled program an id beyond a table reads NaN, which the loss then shows; here it is one line before it runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from peftjax.errors import UserError

IGNORED = -100
_TABLES = {
  "input_ids": "vocab_size",
  "decoder_input_ids": "vocab_size",
  "targets": "vocab_size",
  "token_type_ids": "type_vocab_size",
  "position_ids": "position_rows",
}


def check_ids(config: Any, inputs: Mapping[str, Any]) -> None:
  """Checks a model's inputs against the sizes of its tables; traced ones pass.

  Args:
    config: the family's, with those of the sizes that it has.

  Raises:
    UserError: an id below 0 or past a table's end; targets may be -100.
  """
  for name, size in _TABLES.items():
    value, count = inputs.get(name), getattr(config, size, None)
    if value is None or not isinstance(count, int) or isinstance(value, jax.core.Tracer):
      continue
    ids = np.asarray(value)
    if not np.issubdtype(ids.dtype, np.integer) and ids.dtype != bool:
      raise UserError(f"{name}: expected whole numbers, got {ids.dtype}")
    wrong = ids[(ids < 0) | (ids >= count)]
    if name == "targets":
      wrong = wrong[wrong != IGNORED]
    if wrong.size:
      raise UserError(f"{name} has {int(wrong.flat[0])}; the model has {count}, from 0 to {count - 1}")


def check_length(length: int, limit: int) -> None:
  """Raises a `UserError` for more tokens than there are learned positions."""
  if length > limit:
    raise UserError(f"{length} tokens do not fit the model's {limit} positions")
