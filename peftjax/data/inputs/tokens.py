"""The input `tokens`: text of every kind as token ids.

Its settings are fields of `config.input`; `config.data` has the same ones by the same names, for all inputs at once.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ml_collections import ConfigDict

from peftjax.config.table import FIELDS
from peftjax.data.inputs.base import Batch, Input, Random, Shapes, Sizes
from peftjax.data.inputs.collating import Collate
from peftjax.data.inputs.language import UNCUT, CausalCollate, Form, form_of
from peftjax.data.inputs.packing import PackedOrder, PackedReader, packed_spec, pieces_of
from peftjax.data.inputs.text import SETTINGS as OF_ALL
from peftjax.data.inputs.text import TextInput, defaults_of
from peftjax.data.inputs.tokenizing import Tokenizer
from peftjax.data.measuring import Measured
from peftjax.data.reading import Share
from peftjax.data.sources.types import Example, Header
from peftjax.errors import UserError
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
SETTINGS = (*OF_ALL, "max_target_length", "format", "prefix", "separator", "packing")


class Tokens(TextInput):
  """Token ids of texts, pairs, words with tags, prompts with responses, conversations, sources with targets."""

  settings = defaults_of(SETTINGS)

  def __init__(
    self,
    config: ConfigDict,
    header: Header,
    task: Task,
    folder: Path | None = None,
    tokenizer: Tokenizer | None = None,
    form: Form | None = None,
  ):
    super().__init__(config, header, task, folder, tokenizer)
    self._given_form = form
    self._collate_class: type[Collate] = resolve("task.collate", task.collate, COLLATES)

  @property
  def reads(self) -> tuple[str, ...]:
    """By task and data; a chat template leaves no place for a separator."""
    found = (*OF_ALL, *self._collate_class.reads(self.header))
    templated = self.data.separator != FIELDS["data.separator"].default and self.form.chat is not None
    return tuple(name for name in found if name != "separator" or not templated)

  @functools.cached_property
  def form(self) -> Form:
    """Of prompts and sources."""
    if self._given_form is not None or self.folder is None:
      return self._given_form or Form()
    return form_of(self.data, self.folder)

  @functools.cached_property
  def collate_rows(self) -> Collate:
    """What makes rows of examples."""
    return self._collate_class.make(self.tokenizer, self.form, self.data, self.header)

  def spec(self, rows: int, length: int) -> Shapes:
    return self._collate_class.spec(self.data, self.header, rows, length, self.gives_type_ids)

  def batch(self, examples: Sequence[Example], ids: np.ndarray, length: int, rngs: Iterable[Random]) -> Batch:
    return self.labelled(self.collate_rows(examples, ids, length), examples, ids)

  def encode(self, example: Example, rng: Random) -> Batch:
    ids = np.zeros(1, np.int32)
    row = self.collate_rows([example], ids, self.buckets[-1])
    return {name: array[0] for name, array in row.items() if name not in ("index", "weight")}

  def length(self, example: Example) -> int:
    return int(self.sizes([example]).lengths[0])

  def sizes(self, examples: Sequence[Example]) -> Sizes:
    return self.collate_rows.sizes(examples)

  def fingerprint(self) -> str:
    return f"{self.collate_rows.fingerprint()}{self._day}"

  @property
  def _day(self) -> str:
    """The date that a chat template writes into every conversation; empty: it writes none."""
    chat = self.form.chat
    reads_it = chat is not None and chat.knows_the_date and bool({"source", "messages"} & set(self.header.fields))
    return f" {chat.now:%Y-%m-%d}" if chat is not None and reads_it else ""

  def check(self, model: Model) -> None:
    super().check(model)
    self.collate_rows.fingerprint()  # asks for each token that rows get besides their texts'

  def training(self) -> Input:
    return PackedTokens(self) if self.data.packing else self

  def identity(self) -> dict[str, Any]:
    return {"tokenizer": self.collate_rows.fingerprint(), "data.buckets": list(self.buckets)}

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


class PackedTokens(Tokens):
  """Rows of several sequences, which training takes; texts without prompts are cut into pieces instead of shortened."""

  measures_all = True  # which sequences fit into a row follows from all lengths

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
