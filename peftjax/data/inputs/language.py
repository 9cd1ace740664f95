"""Batches for language models: texts, prompts with responses, conversations, sources with targets."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from peftjax.data.inputs.base import IGNORED, Batch, Shapes, Sizes, weight_and_index
from peftjax.data.inputs.chat import ChatTemplate, encode_chat, has_chat_template, load_chat_template
from peftjax.data.inputs.collating import Collate, padded, token_shapes
from peftjax.data.inputs.tokenizing import Tokenizer
from peftjax.data.sources.types import Example, Header
from peftjax.errors import UserError, nearest

FORMATS = ("auto", "chat", "plain")
UNCUT = 2**30


@dataclasses.dataclass(frozen=True)
class Form:
  """How a source and its target become what the model reads.

  Attributes:
    prefix: stands before every source.
    separator: stands between a source and its target, where both are one text.
    chat: the model's template, if sources are a user's messages and targets the assistant's.
  """

  prefix: str = ""
  separator: str = "\n"
  chat: ChatTemplate | None = None

  def prompt_ids(self, tokenizer: Tokenizer, source: str) -> list[int]:
    """What a decoder reads before it answers a source."""
    if self.chat is None:
      ids = [int(token) for token in tokenizer.encode([self.prefix + source + self.separator]).ids[0]]
      return ids[:-1] if ids and ids[-1] == tokenizer.eos_id else ids
    text = self.chat.render([{"role": "user", "content": self.prefix + source}], asks_for_answer=True)
    return tokenizer.encode_bare([text])[0]

  def fingerprint(self) -> str:
    """Hex digest of prefix, separator and chat template."""
    chat = (self.chat.source, sorted(self.chat.variables.items())) if self.chat else ""
    return hashlib.sha256(repr((self.prefix, self.separator, chat)).encode()).hexdigest()


def form_of(data: ConfigDict, folder: str | Path) -> Form:
  """The form that `config.data` asks for with the model in `folder`: its chat template where it has one.

  Raises:
    UserError: an unknown `data.format`, or "chat" for a model without a template.
  """
  if data.format not in FORMATS:
    raise UserError(f"data.format={data.format!r}; {nearest(data.format, FORMATS)}")
  chat = None
  if data.format == "chat" or (data.format == "auto" and has_chat_template(folder)):
    chat = load_chat_template(folder)
  return Form(data.prefix, data.separator, chat)


@dataclasses.dataclass(frozen=True)
class CausalCollate(Collate):
  """Makes batches for a decoder. Labels are token ids; -100 at what is not to be learned: prompts and padding.

  A text is learned as a whole, with the end token behind it. Of a prompt and its response, and of a conversation, only
  the responses are, each with the token that ends it.

  Attributes:
    tokenizer: cuts nothing.
    form: of prompts.
    max_length: tokens in a row; what is longer is cut at its end.
    in_pieces: `sizes` says how long texts are before cutting, for a reader that takes them piece by piece.
  """

  tokenizer: Tokenizer
  form: Form
  max_length: int
  in_pieces: bool = False

  @classmethod
  def make(cls, tokenizer: Tokenizer, form: Form, data: ConfigDict, header: Header) -> CausalCollate:
    return cls(tokenizer.cut_to(UNCUT), form, data.max_length)

  @classmethod
  def spec(cls, data: ConfigDict, header: Header, rows: int, length: int, type_ids: bool) -> Shapes:
    return token_shapes(("input_ids", "attention_mask", "labels"), rows, length)

  @classmethod
  def reads(cls, header: Header) -> tuple[str, ...]:
    """Texts without a prompt have no form, and conversations their template's."""
    of_prompts = ("format", "prefix", "separator") if "source" in header.fields else ()
    return ("packing", *of_prompts, *(("format",) if "messages" in header.fields else ()))

  def encode(self, examples: Sequence[Example]) -> list[tuple[list[int], list[int]]]:
    """(ids, labels) of each example, uncut.

    Raises:
      UserError: a conversation for a model without a chat template.
    """
    if examples and "messages" in examples[0]:
      return [self._conversation(one["messages"]) for one in examples]
    if examples and "source" in examples[0]:
      if self.form.chat is not None:
        return [self._conversation(_as_messages(one, self.form)) for one in examples]
      responses = self.tokenizer.encode_bare([one["target"] for one in examples])
      prompts = [self.form.prompt_ids(self.tokenizer, one["source"]) for one in examples]
      both = [(prompt, self._ended(response)) for prompt, response in zip(prompts, responses, strict=True)]
      return [(prompt + response, [IGNORED] * len(prompt) + response) for prompt, response in both]
    texts = [_joined(one) for one in examples]
    whole = [self._ended([int(token) for token in ids]) for ids in self.tokenizer.encode(texts).ids]
    return [(ids, ids) for ids in whole]

  def sizes(self, examples: Sequence[Example]) -> Sizes:
    """Tokens of each; how many are cut; how many have no label left, so that they teach nothing."""
    encoded = self.encode(examples)
    lengths = np.array([len(ids) for ids, _ in encoded], np.int32)
    if self.in_pieces:
      return Sizes(lengths, 0, 0)
    lost = sum(all(label == IGNORED for label in labels[1 : self.max_length]) for _, labels in encoded)
    return Sizes(np.minimum(lengths, self.max_length), int((lengths > self.max_length).sum()), lost)

  def fingerprint(self) -> str:
    """Hex digest of tokenizer, form and greatest length."""
    parts = (self.tokenizer.fingerprint(), self.tokenizer.eos_id, self.form.fingerprint(), self.max_length)
    return hashlib.sha256(repr(("causal", *parts, self.in_pieces)).encode()).hexdigest()

  def __call__(self, examples: Sequence[Example], ids: np.ndarray, length: int) -> Batch:
    """`input_ids`, `attention_mask` and `labels` [B, L] int32, `weight` [B] float32, `index` [B] int32."""
    encoded = [(one[:length], labels[:length]) for one, labels in self.encode(examples)]
    batch = {
      "input_ids": padded([one for one, _ in encoded], len(ids), length, self.tokenizer.pad_id),
      "attention_mask": padded([[1] * len(one) for one, _ in encoded], len(ids), length, 0),
      "labels": padded([labels for _, labels in encoded], len(ids), length, IGNORED),
      **weight_and_index(ids),
    }
    batch["attention_mask"][len(examples) :, 0] = 1
    return batch

  def _conversation(self, messages: Sequence[dict[str, str]]) -> tuple[list[int], list[int]]:
    if self.form.chat is None:
      raise UserError("data.format: conversations need a model with a chat template, and this one has none")
    return encode_chat(self.tokenizer, self.form.chat, messages)

  def _ended(self, ids: list[int]) -> list[int]:
    end = self.tokenizer.eos_id
    return ids if end is None or ids[-1:] == [end] else [*ids, end]


@dataclasses.dataclass(frozen=True)
class Seq2SeqCollate(Collate):
  """Makes batches for an encoder-decoder: the source is what the encoder reads, the target is `labels`.

  Attributes:
    tokenizer: cuts at `max_length`.
    form: its prefix stands before every source ("translate English to German: ").
    max_target: tokens of a target; what is longer is cut.
  """

  tokenizer: Tokenizer
  form: Form
  max_target: int

  @classmethod
  def make(cls, tokenizer: Tokenizer, form: Form, data: ConfigDict, header: Header) -> Seq2SeqCollate:
    return cls(tokenizer.cut_to(data.max_length), form, longest_target(data))

  @classmethod
  def spec(cls, data: ConfigDict, header: Header, rows: int, length: int, type_ids: bool) -> Shapes:
    targets = token_shapes(("labels",), rows, min(length, longest_target(data)))
    return token_shapes(("input_ids", "attention_mask"), rows, length) | targets

  @classmethod
  def reads(cls, header: Header) -> tuple[str, ...]:
    del header
    return "max_target_length", "prefix"

  def encode(self, examples: Sequence[Example]) -> tuple[list[list[int]], list[list[int]], int]:
    """(ids of the sources, ids of the targets, how many examples are cut), each with the end token behind it."""
    sources = self.tokenizer.encode([self.form.prefix + one["source"] for one in examples])
    targets = self.tokenizer.encode([one["target"] for one in examples])
    limit = self.tokenizer.max_length
    read = [self._ended(ids, limit) for ids in sources.ids]
    written = [self._ended(ids, self.max_target) for ids in targets.ids]
    too_long = np.array([len(ids) > self.max_target for ids in targets.ids], bool)
    return read, written, int((sources.cut | targets.cut | too_long).sum())

  def sizes(self, examples: Sequence[Example]) -> Sizes:
    """The longer of source and target; how many examples are cut."""
    sources, targets, cut = self.encode(examples)
    longer = [max(len(source), len(target)) for source, target in zip(sources, targets, strict=True)]
    return Sizes(np.array(longer, np.int32), cut, 0)

  def fingerprint(self) -> str:
    """Hex digest of tokenizer, form and both greatest lengths."""
    parts = (self.tokenizer.fingerprint(), self.tokenizer.eos_id, self.form.fingerprint(), self.tokenizer.max_length)
    return hashlib.sha256(repr(("seq2seq", *parts, self.max_target)).encode()).hexdigest()

  def __call__(self, examples: Sequence[Example], ids: np.ndarray, length: int) -> Batch:
    """`input_ids`, `attention_mask` [B, L] int32, `labels` [B, min(L, max_target)] int32, `weight`, `index` [B]."""
    sources, targets, _ = self.encode(examples)
    batch = {
      "input_ids": padded(sources, len(ids), length, self.tokenizer.pad_id),
      "attention_mask": padded([[1] * len(one) for one in sources], len(ids), length, 0),
      "labels": padded(targets, len(ids), min(length, self.max_target), IGNORED),
      **weight_and_index(ids),
    }
    batch["attention_mask"][len(examples) :, 0] = 1
    return batch

  def _ended(self, ids: np.ndarray, limit: int) -> list[int]:
    end, found = self.tokenizer.eos_id, [int(token) for token in ids]
    if end is None or (len(found) <= limit and found[-1:] == [end]):
      return found[:limit]
    return [*found[: limit - 1], end]


def longest_target(data: ConfigDict) -> int:
  """The tokens of a target that are kept, by `config.data`.

  Raises:
    UserError: more than a row has room for.
  """
  if data.max_target_length > data.max_length:
    raise UserError(
      f"data.max_target_length={data.max_target_length}: rows have room for data.max_length={data.max_length} tokens"
    )
  return int(data.max_target_length or data.max_length)


def _joined(example: Example) -> str:
  if "tokens" in example:
    return " ".join(example["tokens"])
  return "\n".join(example[name] for name in ("text", "text_pair") if name in example)


def _as_messages(example: Example, form: Form) -> list[dict[str, str]]:
  return [
    {"role": "user", "content": form.prefix + example["source"]},
    {"role": "assistant", "content": example["target"]},
  ]
