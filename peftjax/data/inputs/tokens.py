"""The input `tokens`: text of every kind as token ids.

Its settings are fields of `config.input`; `config.data` has the same ones by the same names, for all inputs at once.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from ml_collections import ConfigDict

from peftjax.config.checking import check_value
from peftjax.config.table import FIELDS
from peftjax.data.batching import bucket_lengths
from peftjax.data.inputs.base import Batch, Input, Random, Shapes, Sizes
from peftjax.data.inputs.collating import Collate
from peftjax.data.inputs.language import UNCUT, CausalCollate, Form, form_of
from peftjax.data.inputs.packing import PackedOrder, PackedReader, packed_spec, pieces_of
from peftjax.data.inputs.tokenizer_folder import read_tokenizer, special_tokens
from peftjax.data.inputs.tokenizing import Tokenizer, load_tokenizer
from peftjax.data.measuring import Measured
from peftjax.data.reading import Share
from peftjax.data.sources.types import Example, Header
from peftjax.errors import UserError
from peftjax.files import read_json
from peftjax.registry import resolve

if TYPE_CHECKING:
  from peftjax.model import Model
  from peftjax.tasks import Task

# How examples stand in rows, as `Task.collate` names it
COLLATES: dict[str, str] = {
  "text": "peftjax.data.inputs.collating:TextCollate",
  "causal": "peftjax.data.inputs.language:CausalCollate",
  "seq2seq": "peftjax.data.inputs.language:Seq2SeqCollate",
}

# Fields of `config.input`, and of `config.data`
SETTINGS = ("max_length", "buckets", "max_target_length", "format", "prefix", "separator", "packing")


class Tokens(Input):
  """Token ids of texts, pairs, words with tags, prompts with responses, conversations, sources with targets.

  Attributes:
    data: `config.data` with the settings that `config.input` gives.
  """

  settings: ClassVar[Mapping[str, Any]] = {name: FIELDS[f"data.{name}"].default for name in SETTINGS}
  unit = "token"

  def __init__(
    self,
    config: ConfigDict,
    header: Header,
    task: Task,
    folder: Path | None = None,
    tokenizer: Tokenizer | None = None,
    form: Form | None = None,
  ):
    super().__init__(config, header, task, folder)
    self.data = _with_settings(config)
    self._given = tokenizer, form
    self._collate_class: type[Collate] = resolve("task.collate", task.collate, COLLATES)
    if self.data.packing and task.collate != "causal":
      raise UserError(f"data.packing: only causal_lm packs several texts into a row, not {task.name}")

  @functools.cached_property
  def tokenizer(self) -> Tokenizer:
    """The model's, cut to `data.max_length`."""
    if self._given[0] is not None:
      return self._given[0]
    assert self.folder is not None
    return load_tokenizer(self.folder, self.data.max_length)

  @functools.cached_property
  def form(self) -> Form:
    """Of prompts and sources."""
    if self._given[1] is not None or self.folder is None:
      return self._given[1] or Form()
    return form_of(self.data, self.folder)

  @functools.cached_property
  def collate_rows(self) -> Collate:
    """What makes rows of examples."""
    return self._collate_class.make(self.tokenizer, self.form, self.data, self.header)

  @property
  def buckets(self) -> tuple[int, ...]:
    return bucket_lengths(self.data.buckets, self.data.max_length)

  def spec(self, rows: int, length: int) -> Shapes:
    return self._collate_class.spec(self.data, self.header, rows, length, self._gives_type_ids)

  @functools.cached_property
  def _gives_type_ids(self) -> bool:
    """Whether batches tell first and second texts apart; by config.json where there is no tokenizer."""
    try:
      return self.tokenizer.gives_type_ids
    except UserError:
      assert self.folder is not None
      config = read_json(self.folder / "config.json")
      return int(config.get("type_vocab_size", 2 if config.get("model_type") == "bert" else 0)) > 1

  def batch(self, examples: Sequence[Example], ids: np.ndarray, length: int, rngs: Iterable[Random]) -> Batch:
    return self.labelled(self.collate_rows(examples, ids, length), examples, len(ids))

  def encode(self, example: Example, rng: Random) -> Batch:
    ids = np.zeros(1, np.int32)
    row = self.collate_rows([example], ids, self.buckets[-1])
    return {name: array[0] for name, array in row.items() if name not in ("index", "weight")}

  def length(self, example: Example) -> int:
    return int(self.sizes([example]).lengths[0])

  def sizes(self, examples: Sequence[Example]) -> Sizes:
    return self.collate_rows.sizes(examples)

  def places(self, batch: Mapping[str, np.ndarray]) -> int:
    segments = batch.get("segment_ids")
    return int(np.sum(batch.get("attention_mask", 0))) if segments is None else int(np.sum(np.asarray(segments) > 0))

  @property
  def length_setting(self) -> str:
    return f"data.max_length={self.data.max_length}"

  def fingerprint(self) -> str:
    return f"{self.collate_rows.fingerprint()}{self._day}"

  @property
  def _day(self) -> str:
    """The date that a chat template writes into every conversation; empty: it writes none."""
    chat = self.form.chat
    reads_it = chat is not None and chat.knows_the_date and bool({"source", "messages"} & set(self.header.fields))
    return f" {chat.now:%Y-%m-%d}" if chat is not None and reads_it else ""

  def training(self) -> Input:
    return PackedTokens(self) if self.data.packing else self

  def identity(self) -> dict[str, Any]:
    return {"tokenizer": self.collate_rows.fingerprint(), "data.buckets": list(self.buckets)}

  def check(self, model: Model) -> None:
    self.tokenizer.check_fits(int(model.hf_config["vocab_size"]))
    check_positions(model, self.data.max_length)

  def notes(self, measured: Measured | None) -> list[str]:
    """What is cut or lost; `measured` are the lengths of the training examples.

    Raises:
      UserError: every response is cut off as a whole.
    """
    assert measured is not None
    longest, count = self.data.max_length, len(measured.lengths)
    has_responses = not {"text", "tokens"} & set(self.header.fields)
    if has_responses and measured.lost == count:
      raise UserError(
        f"data.max_length={longest}: none of the {count:,} training examples has a response left when cut there; "
        "raise it, or try data.format='plain' if a chat template fills the rows"
      )
    lines = [f"train: the chat template writes the date into every conversation:{self._day}"] if self._day else []
    made_for = self.tokenizer.made_for
    if made_for is not None and int(measured.lengths.max(initial=0)) > made_for:
      said = "tokens that the tokenizer says the model is made for"
      lines.append(f"train: texts are longer than the {made_for:,} {said}")
    lost = "words lose their tags, being cut off or unknown to the tokenizer"
    if has_responses:
      lost = "examples have no response left and teach nothing; raise data.max_length"
    if measured.cut:
      share = measured.cut / count
      lines.append(f"train: {measured.cut:,} of {count:,} texts ({share:.1%}) are cut at {longest} tokens")
    if measured.lost:
      lines.append(f"train: {measured.lost:,} {lost}")
    return lines


def _with_settings(config: ConfigDict) -> ConfigDict:
  """`config.data` with what `config.input` says in its place.

  Raises:
    UserError: a value out of its range; both sections set a field, to different values.
  """
  data = copy.deepcopy(config.data)
  for name in SETTINGS:
    if name not in config.input:
      continue
    field, given, other = FIELDS[f"data.{name}"], config.input[name], config.data[name]
    check_value(f"input.{name}", given, field)
    if other not in (given, field.default):
      raise UserError(f"input.{name}={given!r} and data.{name}={other!r}: they are one setting; leave one out")
    data[name] = given
  return data


class PackedTokens(Tokens):
  """Rows of several sequences, which training takes; texts without prompts are cut into pieces instead of shortened."""

  def __init__(self, inputs: Tokens):
    super().__init__(inputs.config, inputs.header, inputs.task, inputs.folder)
    self._plain = inputs
    self._fill = ""

  @property
  def tokenizer(self) -> Tokenizer:
    return self._plain.tokenizer

  @functools.cached_property
  def collate_rows(self) -> CausalCollate:
    in_pieces = not {"source", "messages"} & set(self.header.fields)
    return CausalCollate(self.tokenizer.cut_to(UNCUT), self._plain.form, self.data.max_length, in_pieces)

  def spec(self, rows: int, length: int) -> Shapes:
    return packed_spec(rows, length)

  def order(self, ids: np.ndarray, lengths: np.ndarray, batch_size: int, seed: int) -> PackedOrder:
    made = PackedOrder(pieces_of(ids, lengths, self.data.max_length), self.data.max_length, batch_size, seed)
    pieces, kind = len(made.pieces.lengths), f"{made.examples:,} rows of {made.capacity} tokens"
    self._fill = f"train: {pieces:,} sequences packed into {kind}, {made.fill:.1%} of them tokens"
    return made

  def reader(self, source: Any, share: Share, seed: int, order: PackedOrder) -> PackedReader:
    return PackedReader(source, self.collate_rows, share, order)

  def identity(self) -> dict[str, Any]:
    return self._plain.identity() | {"data.packing": int(self.data.max_length)}

  def notes(self, measured: Measured | None) -> list[str]:
    return [*super().notes(measured), self._fill]


def check_positions(model: Model, max_length: int) -> None:
  """Raises `UserError` if the longest text, with its virtual tokens, needs more positions than are learned."""
  limit = getattr(model.module, "position_limit", None)
  virtual = sum(getattr(one, "num_virtual_tokens", 0) for one in model.methods if "model" in one.kinds)
  if isinstance(limit, int) and max_length + virtual > limit:
    beside = f" and {virtual} virtual tokens" if virtual else ""
    raise UserError(
      f"data.max_length={max_length}{beside}: the model has {limit} positions; {max(limit - virtual, 0)} tokens fit"
    )


def padding_id(folder: Path) -> int | None:
  """The id of the padding token that the tokenizer's files in a model folder name; None where they name none."""
  if not any((folder / name).is_file() for name in ("tokenizer_config.json", "special_tokens_map.json")):
    return None
  token = special_tokens(folder).get("pad_token")
  index: int | None = None if token is None else read_tokenizer(folder).fast.token_to_id(token)
  return index
