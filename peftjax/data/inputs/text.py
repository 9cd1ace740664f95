"""What inputs of text share: the model's tokenizer, the lengths of rows, what the model must have room for."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from ml_collections import ConfigDict

from peftjax.config.checking import check_value
from peftjax.config.table import FIELDS
from peftjax.data.batching import bucket_lengths
from peftjax.data.inputs.base import Input
from peftjax.data.inputs.tokenizer_folder import read_tokenizer, special_tokens
from peftjax.data.inputs.tokenizing import Tokenizer, load_tokenizer
from peftjax.data.sources.types import Header
from peftjax.errors import UserError
from peftjax.files import read_json

if TYPE_CHECKING:
  from peftjax.model import Model
  from peftjax.tasks import Task


# Fields of `config.input`, and of `config.data`
SETTINGS = ("max_length", "buckets")


def defaults_of(names: Iterable[str]) -> dict[str, Any]:
  """Fields of `config.data` that are those of `config.input` as well -> their defaults."""
  return {name: FIELDS[f"data.{name}"].default for name in names}


class TextInput(Input):
  """An input of token ids.

  Attributes:
    data: `config.data` with the settings that `config.input` gives.
  """

  settings: ClassVar[Mapping[str, Any]] = defaults_of(SETTINGS)
  unit = "token"

  def __init__(
    self,
    config: ConfigDict,
    header: Header,
    task: Task,
    folder: Path | None = None,
    tokenizer: Tokenizer | None = None,
  ):
    super().__init__(config, header, task, folder)
    self.data = with_settings(config, self.settings)
    self._given_tokenizer = tokenizer

  @functools.cached_property
  def tokenizer(self) -> Tokenizer:
    """The model's, cut to `data.max_length`."""
    if self._given_tokenizer is not None:
      return self._given_tokenizer
    if self.folder is None:
      raise UserError(
        f"input.name: {self.header.name!r} holds texts, and a model of your own brings no tokenizer; name an input of "
        "your own, module:Name, that makes its arrays"
      )
    return load_tokenizer(self.folder, self.data.max_length)

  @property
  def buckets(self) -> tuple[int, ...]:
    return bucket_lengths(self.data.buckets, self.data.max_length)

  @classmethod
  def exported(cls, folder: Path) -> dict[str, Any]:
    """The id of the padding token, where the tokenizer's files name one."""
    if not any((folder / name).is_file() for name in ("tokenizer_config.json", "special_tokens_map.json")):
      return {}
    token = special_tokens(folder).get("pad_token")
    index = None if token is None else read_tokenizer(folder).fast.token_to_id(token)
    return {} if index is None else {"pad_token_id": index}

  @functools.cached_property
  def gives_type_ids(self) -> bool:
    """Whether batches tell first and second texts apart; by config.json where there is no tokenizer."""
    try:
      return self.tokenizer.gives_type_ids
    except UserError:
      if self.folder is None:
        raise
      config = read_json(self.folder / "config.json")
      return int(config.get("type_vocab_size", 2 if config.get("model_type") == "bert" else 0)) > 1

  @property
  def columns(self) -> tuple[str, ...]:
    """The arrays of a sequence that the model reads."""
    return ("input_ids", "attention_mask", *(("token_type_ids",) if self.gives_type_ids else ()))

  def places(self, batch: Mapping[str, np.ndarray]) -> int:
    segments = batch.get("segment_ids")
    masks = [array for name, array in batch.items() if name.endswith("attention_mask")]
    return sum(int(np.sum(one)) for one in masks) if segments is None else int(np.sum(np.asarray(segments) > 0))

  @property
  def length_setting(self) -> str:
    return f"data.max_length={self.data.max_length}"

  def identity(self) -> dict[str, Any]:
    return {"input": self.fingerprint(), "data.buckets": list(self.buckets)}

  def check(self, model: Model) -> None:
    self.tokenizer.check_fits(int(model.hf_config["vocab_size"]))
    check_positions(model, self.data.max_length)


def with_settings(config: ConfigDict, settings: Iterable[str]) -> ConfigDict:
  """`config.data` with what `config.input` says in its place.

  Raises:
    UserError: a value out of its range; both sections set a field, to different values.
  """
  data = copy.deepcopy(config.data)
  for name in settings:
    if name not in config.input or f"data.{name}" not in FIELDS:
      continue
    field, given, other = FIELDS[f"data.{name}"], config.input[name], config.data[name]
    check_value(f"input.{name}", given, field)
    if other not in (given, field.default):
      raise UserError(f"input.{name}={given!r} and data.{name}={other!r}: they are one setting; leave one out")
    data[name] = given
  return data


def check_positions(model: Model, max_length: int) -> None:
  """Raises `UserError` if the longest text, with its virtual tokens, needs more positions than are learned."""
  limit = getattr(model.module, "position_limit", None)
  virtual = sum(getattr(one, "num_virtual_tokens", 0) for one in model.methods if "model" in one.kinds)
  if isinstance(limit, int) and max_length + virtual > limit:
    beside = f" and {virtual} virtual tokens" if virtual else ""
    raise UserError(
      f"data.max_length={max_length}{beside}: the model has {limit} positions; {max(limit - virtual, 0)} tokens fit"
    )
