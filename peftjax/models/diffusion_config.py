"""What all of diffusers' config.json files share, and kinds of value that they have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from peftjax.errors import UserError, nearest
from peftjax.kinds import NAME, Kind, Unfit, list_of, whole
from peftjax.models.config_fields import FEATURES, HEADS, Field, Table
from peftjax.models.vit_config import PIXELS

MOST_BLOCKS = 16
MOST_IN_BLOCK = 256
CHANNELS = whole(1, 2**16)
WIDTHS = list_of(FEATURES, MOST_BLOCKS, "numbers of channels")
TYPES = list_of(NAME, MOST_BLOCKS, "names of blocks")
WINDOW = whole(1, 64)

TABLE = Table(
  read={"architectures": Field(list_of(NAME, what="names").or_null), "sample_size": Field(PIXELS.or_null)},
  ignored=frozenset({"_class_name", "_diffusers_version", "_name_or_path"}),
)


def each(kind: Kind, what: str) -> Kind:
  """One value for all blocks, or a list of one for each; a tuple stands for the list."""
  several = list_of(kind, MOST_BLOCKS, what)

  def check(value: Any) -> Any:
    try:
      return several(value) if isinstance(value, list | tuple) else kind(value)
    except Unfit as error:
      raise Unfit(f"{error}, or one for each block") from None

  return Kind(check)


LAYERS_EACH = each(whole(1, MOST_IN_BLOCK), "numbers of layers")
HEADS_EACH = each(HEADS, "numbers of heads")
FEATURES_EACH = each(FEATURES, "numbers of features")


def spread(name: str, value: Any, blocks: int) -> tuple[Any, ...]:
  """The value for each block.

  Raises:
    UserError: a list of another length.
  """
  found = value if isinstance(value, tuple) else (value,) * blocks
  if len(found) != blocks:
    raise UserError(f"config.json: {name} has {len(found)} entries; expected {blocks}, one for each block")
  return found


def check_types(name: str, found: Sequence[str], known: Sequence[str], blocks: int) -> None:
  """Raises a `UserError` unless there is a known type for each block."""
  spread(name, tuple(found), blocks)
  for one in found:
    if one not in known:
      raise UserError(f"config.json: {name}: {one!r} is not computed here; {nearest(one, known)}")


def check_groups(channels: Sequence[int], groups: int) -> None:
  """Raises a `UserError` unless all numbers of channels divide among the groups of normalisation."""
  for one in channels:
    if one % groups:
      raise UserError(f"config.json: block_out_channels={one} does not divide among norm_num_groups={groups}")


def as_published(
  config: Any, hf_config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> tuple[Mapping[str, Any], Mapping[str, np.ndarray]]:
  """config.json without the entry of transformers that diffusers' readers do not know."""
  del config
  return {name: value for name, value in hf_config.items() if name != "architectures"}, tensors
