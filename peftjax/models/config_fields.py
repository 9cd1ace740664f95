"""What each family does with each field of config.json: read with its type and range, refused, or passed over.

A value that changes what Hugging Face's model computes is obeyed or refused in one line, never ignored. The tables are
checked against the fields of transformers' own config classes by ``tests/models/test_config_fields.py``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from peftjax.errors import UserError
from peftjax.kinds import NAME, Kind, Unfit, list_of, number, shown, value_of, whole

# The largest values that are taken, far above what has been published, so that no array of a config.json that was
# made up can reach 2^63 elements and no loop over layers takes longer than a second.
MOST_LAYERS = 2**12
MOST_HEADS = 2**13
MOST_FEATURES = 2**20
MOST_IDS = 2**31 - 1


def _ids(value: Any) -> int | tuple[int, ...]:
  if isinstance(value, list | tuple) and value:
    return tuple(ANY_ID(one) for one in value)
  try:
    found: int = ANY_ID(value)
  except Unfit:
    raise Unfit("a token id or a list of them") from None
  return found


def _label_names(value: Any) -> dict[str, str]:
  if not isinstance(value, Mapping) or not value or len(value) > MOST_FEATURES:
    raise Unfit("an object of label names by their number")
  if not all(str(key).isdigit() and isinstance(name, str | int) for key, name in value.items()):
    raise Unfit("an object of label names by their number")
  return {str(key): str(name) for key, name in value.items()}


LABEL_NAMES = Kind(_label_names)
VOCABULARY = whole(1, MOST_IDS)
POSITIONS = whole(1, MOST_IDS)
LAYERS = whole(1, MOST_LAYERS)
HEADS = whole(1, MOST_HEADS)
FEATURES = whole(1, MOST_FEATURES)
RATE = number(0.0, below=1.0)
POSITIVE = number(above=0.0)
EPSILON = number(above=0.0, below=1.0)
SPREAD = number(0.0)
SHARE = number(0.0, 1.0)
REAL = number()
ANY_ID = whole(-(2**31), MOST_IDS)  # some checkpoints say -1 for none
IDS = Kind(_ids)


@dataclasses.dataclass(frozen=True)
class Field:
  """A field that is read: its kind, and its value where config.json has none, which is transformers'."""

  kind: Kind
  default: Any = None


@dataclasses.dataclass(frozen=True)
class Only:
  """A field of which only some values are taken.

  Attributes:
    values: those that change nothing here.
    why: what the others would ask for.
  """

  values: tuple[Any, ...]
  why: str


@dataclasses.dataclass(frozen=True)
class Table:
  """All fields of a family's config.json, each in one place.

  Attributes:
    read: name -> field.
    refused: name -> the values that are taken.
    ignored: names whose value changes nothing that is computed here.
    spellings: other name -> name, as in transformers' `attribute_map`.
  """

  read: Mapping[str, Field]
  refused: Mapping[str, Only] = dataclasses.field(default_factory=dict)
  ignored: frozenset[str] = frozenset()
  spellings: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def __or__(self, other: Table) -> Table:
    """Both tables; where they differ, the other."""
    mine = {name: field for name, field in self.read.items() if name not in other.refused}
    refused = {name: only for name, only in self.refused.items() if name not in other.read.keys() | other.ignored}
    return Table(
      {**mine, **other.read},
      {**refused, **other.refused},
      self.ignored - other.read.keys() - other.refused.keys() | other.ignored,
      {**self.spellings, **other.spellings},
    )

  def values(self, hf_config: Mapping[str, Any]) -> dict[str, Any]:
    """Every field that is read -> its value, checked, or its default. Labels may be counted by their names.

    Raises:
      UserError: a value of another type or out of range, or one that asks for what is not computed here.
    """
    given = _spelled(hf_config, self.spellings)
    for name, only in self.refused.items():
      if name in given and not any(_same(given[name], value) for value in only.values):
        expected = " or ".join(json.dumps(value) for value in only.values)
        raise UserError(f"config.json: {name}={shown(given[name])}: {only.why}; expected {expected}")
    found = {name: _value(name, given, field) for name, field in self.read.items()}
    if "num_labels" in found:
      found["num_labels"] = found["num_labels"] or len(found["id2label"] or (0, 1))
    return found


def _same(one: Any, other: Any) -> bool:
  return one == other and isinstance(one, bool) == isinstance(other, bool)


def _spelled(hf_config: Mapping[str, Any], spellings: Mapping[str, str]) -> dict[str, Any]:
  given = dict(hf_config)
  for other, name in spellings.items():
    if other in given:
      value = given.pop(other)
      if name in given and not _same(given[name], value):
        raise UserError(f"config.json: {other}={shown(value)} and {name}={shown(given[name])} are the same field")
      given[name] = value
  return given


def _value(name: str, given: Mapping[str, Any], field: Field) -> Any:
  if name not in given:
    return field.default
  return value_of("config.json", name, given[name], field.kind)


def fields_for(table_values: Mapping[str, Any], config_class: Any, **renamed: str) -> dict[str, Any]:
  """The values that a config dataclass has fields for; `renamed`: its field -> the table's name."""
  known = {field.name for field in dataclasses.fields(config_class)}
  found = {name: value for name, value in table_values.items() if name in known}
  return found | {field: table_values[name] for field, name in renamed.items()}


# What all of transformers' config classes have.
_NOT_HERE = "is not computed here"
COMMON = Table(
  read={
    "architectures": Field(list_of(NAME, what="names").or_null),
    "id2label": Field(LABEL_NAMES.or_null),
    "num_labels": Field(FEATURES.or_null),
    "initializer_range": Field(SPREAD, 0.02),
    "bos_token_id": Field(IDS.or_null),
    "eos_token_id": Field(IDS.or_null),
    "pad_token_id": Field(ANY_ID.or_null),
  },
  refused={
    "is_encoder_decoder": Only((False,), "an encoder and a decoder"),
    "is_causal": Only((True,), "attention to later tokens"),
    "per_layer_config": Only((None,), f"a config of its own for some layers {_NOT_HERE}"),
    "quantization_config": Only((None,), "the weights are quantised by another library; save them as floats first"),
  },
  ignored=frozenset(
    {
      "transformers_version",
      "output_hidden_states",
      "return_dict",
      "dtype",
      "chunk_size_feed_forward",
      "label2id",
      "problem_type",
      "use_cache",
    }
  ),
)
