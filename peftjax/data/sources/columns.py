"""Which columns of a table hold what: by the names that a user gives, or by their usual ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from peftjax.data.sources import media
from peftjax.data.sources.text_files import Row
from peftjax.data.sources.types import (
  CAUSAL_LM,
  SEQ2SEQ_LM,
  SPEECH_RECOGNITION,
  TEXT_CLASSIFICATION,
  TOKEN_CLASSIFICATION,
  Named,
)
from peftjax.errors import UserError, nearest

TEXT_NAMES = ("text", "sentence", "content", "document")
PAIR_NAMES = ("text_pair",)
TOKENS_NAMES = ("tokens", "words")
LABEL_NAMES = ("label", "labels", "category", "class", "intent")
TAGS_NAMES = ("tags", "ner_tags", "labels")
SOURCE_NAMES = ("source", "prompt", "instruction", "question", "input")
TARGET_NAMES = ("target", "response", "output", "answer", "completion")
AUDIO_NAMES = ("audio", "file_name", "audio_path", "filename", "path", "file", "wav")
TRANSCRIPT_NAMES = ("text", "transcription", "transcript", "sentence", "normalized_text")
IMAGE_NAMES = ("image", "file_name", "image_path", "filename", "path", "file")
MESSAGES_NAMES = ("messages", "conversation", "conversations")


@dataclasses.dataclass(frozen=True)
class Columns:
  """Which columns of a row hold what; an empty name: there is none.

  One of `text`, `tokens`, `messages`, `source`, `image` and `audio` is there; `pair` beside `text`, `target` beside
  `source`, and `text` may stand beside `image` and `audio`.
  """

  text: str = ""
  pair: str = ""
  tokens: str = ""
  label: str = ""
  source: str = ""
  target: str = ""
  messages: str = ""
  image: str = ""
  audio: str = ""

  @property
  def medium(self) -> media.Medium | None:
    """What the files are that a column names."""
    return media.IMAGES if self.image else media.AUDIO if self.audio else None

  @property
  def file(self) -> str:
    """The column that names files."""
    return self.image or self.audio

  @property
  def task(self) -> str:
    """The task that the columns are data for."""
    if self.medium is not None:
      is_speech = self.medium is media.AUDIO and self.text
      return self.medium.task if self.label else SPEECH_RECOGNITION if is_speech else ""
    if self.tokens:
      return TOKEN_CLASSIFICATION
    return SEQ2SEQ_LM if self.source else TEXT_CLASSIFICATION if self.label else CAUSAL_LM

  def names(self) -> list[str]:
    return [name for name in dataclasses.astuple(self) if name]

  @property
  def fields(self) -> tuple[str, ...]:
    """What an example of these columns holds."""
    if self.messages:
      return ("messages",)
    if self.medium is not None:
      return (self.medium.field, *(("text",) if self.text else ()), *(("label",) if self.label else ()))
    if self.source:
      return ("source", "target")
    texts = ("tokens",) if self.tokens else ("text", "text_pair") if self.pair else ("text",)
    return (*texts, *(("tags",) if self.tokens else ("label",) if self.label else ()))


def choose_columns(row: Row, where: str, named: Named) -> Columns:
  """The columns to read, from the first row.

  Raises:
    UserError: a named column is not there, or no column looks like text.
  """
  texts = named.text.split(",") if named.text else []
  for name in filter(None, [*texts, named.label, named.source, named.target, named.image, named.audio]):
    if name not in row:
      raise UserError(f"{where}: no column {name!r}; {nearest(name, row)}")
  if len(texts) > 2:
    raise UserError(f"data.text_column={named.text!r}: expected one column or two")
  if audio := named.audio or _audio_column(row, named):
    text = texts[0] if texts else _first(TRANSCRIPT_NAMES, row)
    label = named.label or ("" if text else _first(LABEL_NAMES, row))
    return Columns(audio=audio, text=text, label=label)
  if (columns := _text_to_text(row, where, named)) is not None:
    return columns
  if image := named.image or _image_column(row, texts):
    text = texts[0] if texts else _first(TEXT_NAMES, row)
    return Columns(image=image, text=text, label=named.label or _first(LABEL_NAMES, row))
  lists = [name for name in row if isinstance(row[name], list)]
  odd = _first(texts[:1] or MESSAGES_NAMES, [name for name in lists if _have_roles(row[name])])
  if odd and not are_messages(row[odd]):
    raise UserError(f"{where}: column {odd!r}: {MESSAGES}")
  if messages := _first(texts[:1] or MESSAGES_NAMES, [name for name in lists if are_messages(row[name])]):
    return Columns(messages=messages)
  tokens = _first(texts[:1] or TOKENS_NAMES, lists)
  text = "" if tokens else _first(texts or TEXT_NAMES, row)
  if not tokens and not text:
    raise UserError(
      f"{where}: no column {' or '.join(map(repr, TEXT_NAMES))}; set data.text_column to {_choice(row)}, "
      "or data.source_column and data.target_column"
    )
  pair = texts[1] if len(texts) == 2 else "" if texts else _first(PAIR_NAMES, row)
  label = named.label or _first(TAGS_NAMES if tokens else LABEL_NAMES, row)
  if tokens and not label:
    raise UserError(f"{where}: no column {' or '.join(map(repr, TAGS_NAMES))}; set data.label_column to {_choice(row)}")
  return Columns(text, "" if tokens else pair, tokens, label)


def _audio_column(row: Row, named: Named) -> str:
  """The column that names a recording; a text beside it is what is said in it."""
  if named.image or named.source or named.target:
    return ""
  held = media.AUDIO.field if media.is_within(row.get(media.AUDIO.field)) else ""
  return held or _first(AUDIO_NAMES, [name for name in row if media.medium_of(str(row[name])) is media.AUDIO])


def _image_column(row: Row, texts: Iterable[str]) -> str:
  """The column that names a picture, in a table that is not one of texts."""
  if texts or _first((*TEXT_NAMES, *TOKENS_NAMES, *MESSAGES_NAMES), row):
    return ""
  return _first(IMAGE_NAMES, [name for name in row if _is_picture(row[name])])


def _is_picture(value: Any) -> bool:
  """Whether it names a picture, or holds one as Hugging Face's data sets do."""
  return media.is_within(value) or (isinstance(value, str) and media.medium_of(value) is media.IMAGES)


def _text_to_text(row: Row, where: str, named: Named) -> Columns | None:
  """The columns of a source and a target, if both are named or, with no text beside them, have usual names."""
  asked = bool(named.source or named.target)
  if not asked and (named.text or named.label or _first((*TEXT_NAMES, *TOKENS_NAMES), row)):
    return None
  source, target = named.source or _first(SOURCE_NAMES, row), named.target or _first(TARGET_NAMES, row)
  if source and target:
    for kind, column, usual in (("source", named.source, SOURCE_NAMES), ("target", named.target, TARGET_NAMES)):
      found = [] if column else [repr(name) for name in usual if name in row]
      if len(found) > 1:
        raise UserError(
          f"{where}: {' and '.join(found)} may each be the {kind}; say which by data.{kind}_column, or write them "
          "into one column"
        )
    return Columns(source=source, target=target)
  if asked:
    missing = "target" if source else "source"
    raise UserError(f"{where}: which column is the {missing}? Set data.{missing}_column to {_choice(row)}")
  return None


MESSAGES = "expected a list of objects with role and content, both texts"


def _have_roles(value: Any) -> bool:
  return bool(value) and all(isinstance(one, dict) and isinstance(one.get("role"), str) for one in value)


def are_messages(value: Any) -> bool:
  """Whether a value is a conversation: a list of messages, each with a role and a content."""
  return bool(value) and all(
    isinstance(one, dict) and isinstance(one.get("role"), str) and isinstance(one.get("content"), str) for one in value
  )


def _first(names: Iterable[str], present: Iterable[str]) -> str:
  present = set(present)
  return next((name for name in names if name in present), "")


def _choice(row: Row) -> str:
  return "one of " + ", ".join(row)


def told_read(row: Row, columns: Columns) -> tuple[str, ...]:
  """Of a source and a target, which columns they are and which are left, such as a context that belongs to both."""
  unread = [name for name in row if name not in columns.names()]
  if not columns.source or not unread:
    return ()
  return (f"read as source: {columns.source!r}, as target: {columns.target!r}; not read: {', '.join(unread)[:200]}",)
