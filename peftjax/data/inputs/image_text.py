"""The input `image_text`: pictures, and beside each the token ids of what is said of it."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import numpy as np
from ml_collections import ConfigDict

from peftjax.data.inputs.base import Batch, Random, Shapes
from peftjax.data.inputs.captions import captioned, check_caption
from peftjax.data.inputs.images import Images
from peftjax.data.inputs.tokenizing import Tokenizer, load_tokenizer
from peftjax.data.sources.types import Example, Header
from peftjax.errors import UserError
from peftjax.files import read_json
from peftjax.kinds import Kind, value_of, whole

if TYPE_CHECKING:
  from peftjax.model import Model
  from peftjax.tasks import Task

_POSITIONS = whole(2, 2**20)


class ImageText(Images):
  """`pixel_values` float32 [3, H, W] of an example's `image`, as `Images` gives them, and `input_ids` and
  `attention_mask` int32 [L] of its `text`, cut at `data.max_length` tokens or at the model's positions.

  Settings beside those of `Images`, without mixing:
    caption: of pictures without a text of their own; "{label}" stands for the name of the picture's class.
  """

  settings = {name: value for name, value in Images.settings.items() if name not in ("mixup", "cutmix")} | {
    "caption": ""
  }
  fills: ClassVar[Any] = {}

  def __init__(self, config: ConfigDict, header: Header, task: Task, folder: Path | None = None):
    super().__init__(config, header, task, folder)
    if "text" not in header.fields:
      check_caption("input.caption", self.options.caption, header)

  @property
  def reads(self) -> tuple[str, ...]:
    """Where texts are cut."""
    return ("max_length",)

  @property
  def mixes(self) -> bool:
    """Pictures are not mixed: what is said of two is no sentence."""
    return False

  @functools.cached_property
  def tokens(self) -> int:
    """L."""
    assert self.folder is not None
    return min(int(self.config.data.max_length), text_positions(self.folder))

  @functools.cached_property
  def tokenizer(self) -> Tokenizer:
    """The model's, cut to L."""
    assert self.folder is not None
    return load_tokenizer(self.folder, self.tokens)

  def spec(self, rows: int, length: int) -> Shapes:
    ids = jax.ShapeDtypeStruct((rows, self.tokens), np.dtype(np.int32))
    return {**super().spec(rows, length), "input_ids": ids, "attention_mask": ids}

  def label_spec(self, rows: int) -> Shapes:
    return {}

  def encode(self, example: Example, rng: Random) -> Batch:
    text = example["text"] if "text" in example else captioned(self.options.caption, example, self.header)
    ids, mask = token_rows(self.tokenizer, [text], self.tokens)
    return {**super().encode(example, rng), "input_ids": ids[0], "attention_mask": mask[0]}

  def collate(self, encoded: Sequence[Batch], rows: int, length: int) -> Batch:
    batch = super().collate(encoded, rows, length)
    batch["attention_mask"][len(encoded) :, 0] = 1  # so that no softmax runs over nothing
    return batch

  def fingerprint(self) -> str:
    how = (super().fingerprint(), self.tokens, self.tokenizer.fingerprint())
    return hashlib.sha256(repr(how).encode()).hexdigest()

  def check(self, model: Model) -> None:
    super().check(model)
    if "input_ids" not in model.example_inputs:
      raise UserError(f"input.name='image_text': {model.architecture} reads no texts")
    self.tokenizer.check_fits(int(model.config.vocab_size))


def text_positions(folder: Path) -> int:
  """The tokens that the text tower of a model of pictures and texts has positions for."""
  return _of_text(folder, "max_position_embeddings", 77, _POSITIONS)


def text_vocabulary(folder: Path) -> int:
  """The tokens that it has rows for."""
  return _of_text(folder, "vocab_size", 49408, whole(1, 2**31 - 1))


def _of_text(folder: Path, name: str, default: int, kind: Kind) -> int:
  path = folder / "config.json"
  stated = (read_json(path).get("text_config") or {}).get(name, default)
  return int(value_of(str(path), f"text_config.{name}", stated, kind))


def token_rows(tokenizer: Tokenizer, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
  """(ids, 1 where there is one), int32 [N, length] each, filled up with the padding token."""
  ids = np.full((len(texts), length), tokenizer.pad_id, np.int32)
  mask = np.zeros((len(texts), length), np.int32)
  for row, found in enumerate(tokenizer.encode(list(texts)).ids):
    ids[row, : len(found)], mask[row, : len(found)] = found, 1
  return ids, mask
