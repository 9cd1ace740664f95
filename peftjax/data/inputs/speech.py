"""The input `speech`: recordings, and what is said in them as the tokens that a decoder writes."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from ml_collections import ConfigDict

from peftjax.data.batching import bucket_lengths
from peftjax.data.inputs.audio import AUDIO_SETTINGS, RATE_FIELD, Audio
from peftjax.data.inputs.base import IGNORED, Batch, Random, Shapes, Sizes
from peftjax.data.inputs.log_mel import LogMel
from peftjax.data.inputs.sound import seconds_of
from peftjax.data.inputs.text import SETTINGS, defaults_of, with_settings
from peftjax.data.inputs.tokenizing import Tokenizer, load_tokenizer
from peftjax.data.measuring import Measured
from peftjax.data.sources.types import Example, Header
from peftjax.errors import UserError, nearest
from peftjax.files import read_json

if TYPE_CHECKING:
  from peftjax.model import Model
  from peftjax.tasks import Task

START, SILENT = "<|startoftranscript|>", "<|notimestamps|>"
MULTILINGUAL = 51_865  # tokens of the smallest vocabulary with other languages than English
_UNCUT = 2**30
_ROUNDED = 0.01  # seconds by which a recording may be longer than a window before it is said


@dataclasses.dataclass(frozen=True)
class Form:
  """What a model hears and how it begins to write.

  Attributes:
    log_mel: what becomes of samples.
    tokenizer: of what is written.
    first: the tokens before every text (`first_tokens`).
  """

  log_mel: LogMel
  tokenizer: Tokenizer
  first: tuple[int, ...]


class Speech(Audio):
  """As `Audio`, and of an example's `text` `decoder_input_ids` and `labels`, int32 [L]. Recordings that are longer than
  a window are told when a run starts, since the text of what is cut off is learned, too.

  The decoder reads the start token, of multilingual models the language's and the task's, that no times are written,
  and the text; it learns the text and its end alone, since the first tokens are given whenever it writes. Settings
  beside those of `Audio`:
    language: what is spoken, such as "en"; needed by multilingual models and known by no others.
    translate: the text is what is said, in English.
    max_length, buckets: tokens of the decoder, as `config.data` has them.
  """

  settings = {**AUDIO_SETTINGS, "language": "", "translate": False, **defaults_of(SETTINGS)}

  def __init__(self, config: ConfigDict, header: Header, task: Task, folder: Path | None = None):
    super().__init__(config, header, task, folder)
    self.data = with_settings(config, SETTINGS)
    if header.fields and "text" not in header.fields:
      raise UserError(f"{header.name} holds {', '.join(header.fields)}: no text says what is spoken in its recordings")

  @functools.cached_property
  def tokenizer(self) -> Tokenizer:
    """The tokenizer of the model's folder, uncut; raises `UserError` if there is none."""
    assert self.folder is not None
    return load_tokenizer(self.folder, _UNCUT)

  @functools.cached_property
  def first(self) -> list[int]:
    """The tokens that stand before every text."""
    assert self.folder is not None
    return first_tokens(self.folder, self.tokenizer, self.options.language, bool(self.options.translate))

  @property
  def form(self) -> Form:
    """What transcription needs of the model's folder and the settings."""
    return Form(self.log_mel, self.tokenizer, tuple(self.first))

  @property
  def buckets(self) -> tuple[int, ...]:
    return bucket_lengths(self.data.buckets, self.data.max_length)

  @property
  def length_setting(self) -> str:
    return f"data.max_length={self.data.max_length}"

  def spec(self, rows: int, length: int) -> Shapes:
    ids = jax.ShapeDtypeStruct((rows, length), np.dtype(np.int32))
    return {**super().spec(rows, length), "decoder_input_ids": ids, "labels": ids}

  def label_spec(self, rows: int) -> Shapes:
    return {}

  def tokens(self, example: Example) -> list[int]:
    """The ids of an example's text, as the model writes it: a space before, the end behind."""
    (ids,) = self.tokenizer.encode_bare([" " + example["text"].strip()])
    return [*ids, *([] if self.tokenizer.eos_id is None else [self.tokenizer.eos_id])]

  def encode(self, example: Example, rng: Random) -> Batch:
    text, most = self.tokens(example), self.data.max_length
    read = [*self.first, *text[:-1]][:most]
    labels = [*[IGNORED] * (len(self.first) - 1), *text][:most]
    ids = {"decoder_input_ids": np.array(read, np.int32), "labels": np.array(labels, np.int32)}
    return {**super().encode(example, rng), **ids}

  def sizes(self, examples: Sequence[Example]) -> Sizes:
    lengths = np.array([len(self.first) - 1 + len(self.tokens(one)) for one in examples], np.int32)
    most, window = self.data.max_length, self.log_mel.seconds
    lasting = [seconds_of(one["audio"], int(one.get(RATE_FIELD, self.log_mel.rate))) for one in examples]
    lost = sum(one > window + _ROUNDED for one in lasting)
    return Sizes(np.minimum(lengths, most), int((lengths > most).sum()), lost)

  def notes(self, measured: Measured | None) -> list[str]:
    if measured is None:
      return []
    count, said = len(measured.lengths), []
    if measured.cut:
      said.append(f"train: {measured.cut:,} of {count:,} texts are cut at {self.data.max_length} tokens")
    if measured.lost:
      said.append(f"train: {measured.lost:,} of {count:,} recordings are longer than a window of "
                  f"{self.log_mel.seconds:g} seconds: their whole text is learned from its start alone")  # fmt: skip
    return said

  def fingerprint(self) -> str:
    parts = (super().fingerprint(), self.tokenizer.fingerprint(), self.first, self.data.max_length)
    return hashlib.sha256(repr(parts).encode()).hexdigest()

  def identity(self) -> dict[str, Any]:
    return {"input": self.fingerprint(), "data.buckets": list(self.buckets)}

  def check(self, model: Model) -> None:
    super().check(model)
    self.tokenizer.check_fits(int(model.config.vocab_size))
    limit = model.config.max_target_positions
    if self.data.max_length > limit:
      raise UserError(f"data.max_length={self.data.max_length}: the model has {limit} positions for text")


def first_tokens(folder: Path, tokenizer: Tokenizer, language: str = "", translate: bool = False) -> list[int]:
  """The tokens before a text without times: start, and of multilingual models language and task.

  Raises:
    UserError: a multilingual model without a language or with one that it does not know; one of English that is told
      of another or to translate.
  """
  if not is_multilingual(folder):
    if translate or language not in ("", "en"):
      asked = "input.translate=True" if translate else f"input.language={language!r}"
      raise UserError(f"{asked}: this model knows English alone")
    return _ids(tokenizer, (START, SILENT))
  known = languages(folder)
  if language not in known:
    raise UserError(f"input.language={language!r}: which language is spoken? {nearest(language, known)}")
  return _ids(tokenizer, (START, f"<|{language}|>", "<|translate|>" if translate else "<|transcribe|>", SILENT))


def is_multilingual(folder: Path) -> bool:
  """Whether a Whisper knows other languages than English, by generation_config.json or the size of its vocabulary."""
  said = _read(folder, "generation_config.json").get("is_multilingual")
  if isinstance(said, bool):
    return said
  size = _read(folder, "config.json").get("vocab_size", MULTILINGUAL)
  return isinstance(size, int) and size >= MULTILINGUAL


def languages(folder: Path) -> list[str]:
  """The codes of the languages that a multilingual Whisper knows, such as "en"."""
  names: Iterable[str] = _read(folder, "generation_config.json").get("lang_to_id") or ()
  return [str(name).removeprefix("<|").removesuffix("|>") for name in names]


def _read(folder: Path, name: str) -> dict[str, Any]:
  return read_json(folder / name) if (folder / name).is_file() else {}


def _ids(tokenizer: Tokenizer, names: Iterable[str]) -> list[int]:
  found = [(name, tokenizer.id_of(name)) for name in names]
  missing = [name for name, index in found if index is None]
  if missing:
    raise UserError(f"the tokenizer has no {missing[0]}; that of a Whisper was expected")
  return [index for _, index in found if index is not None]
