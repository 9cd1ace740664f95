"""What a pipeline's folder says of what it reads: the tokens of its texts, the size of its pictures."""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from peftjax.data.inputs.tokenizer_folder import Settings, read_tokenizer
from peftjax.data.inputs.tokenizing import Tokenizer
from peftjax.diffusion.folder import encoders_of, factor_of, runs_as_stable_diffusion, zeroes_empty
from peftjax.diffusion.texts import NO_TEXT
from peftjax.errors import UserError
from peftjax.files import read_json
from peftjax.kinds import value_of, whole

log = logging.getLogger(__name__)

_LENGTH, _SIDE = whole(2, 2**16), whole(1, 2**13)
_OLD_SIDE = 64  # at least, as diffusers' pipelines take a denoiser's sample_size from before its version 0.9


@dataclasses.dataclass(frozen=True)
class Pipeline:
  """The folder of a pipeline in diffusers' layout, with model_index.json.

  Attributes:
    folder: with a folder for each component.
  """

  folder: Path

  @functools.cached_property
  def encoders(self) -> tuple[str, ...]:
    """The components that read texts, each by a tokenizer of its own."""
    return encoders_of(self.folder)

  @functools.cached_property
  def length(self) -> int:
    """The tokens of a text: a text encoder's positions, or its tokenizer's `model_max_length` where that is less.

    Raises:
      UserError: two text encoders differ in it.
    """
    lengths = {name: self._length(name) for name in self.encoders}
    if len(set(lengths.values())) > 1:
      told = " and ".join(f"{name} reads {count} tokens" for name, count in lengths.items())
      raise UserError(f"{self.folder}: {told}; expected as many, since their states stand beside each other")
    return lengths[self.encoders[0]]

  def _length(self, encoder: str) -> int:
    path, name = self.folder / encoder / "config.json", "max_position_embeddings"
    positions = int(value_of(str(path), name, read_json(path).get(name, 77), _LENGTH))
    texts = self._texts(encoder)
    stated = Settings(texts).number("model_max_length") if (texts / "tokenizer_config.json").is_file() else None
    return min(positions, stated or positions)

  def _texts(self, encoder: str) -> Path:
    """Where the files of a text encoder's tokenizer are."""
    beside = self.folder / encoder.replace("text_encoder", "tokenizer")
    return beside if beside.is_dir() or encoder != self.encoders[0] else self.folder

  @functools.cached_property
  def side(self) -> int:
    """Pixels of a side of the pictures that the denoiser is made for.

    Raises:
      UserError: its config.json does not say.
    """
    path, vae = (self.folder / name / "config.json" for name in ("unet", "vae"))
    unet = read_json(path)
    sample = unet.get("sample_size")
    if sample is None:
      raise UserError(f"{path}: no sample_size; name a size in pixels")
    side = int(value_of(str(path), "sample_size", sample, _SIDE))
    if _is_old(unet.get("_diffusers_version")) and runs_as_stable_diffusion(self.folder):
      side = max(side, _OLD_SIDE)
    return side * factor_of(vae)

  @property
  def tokenizer(self) -> Tokenizer:
    """That of the first text encoder."""
    return self.tokenizers[0]

  @functools.cached_property
  def tokenizers(self) -> tuple[Tokenizer, ...]:
    """Each text encoder's, cut to `length`.

    Raises:
      UserError: as `load_tokenizer`, or one fills up in front.
    """
    return tuple(self._tokenizer(self._texts(name)) for name in self.encoders)

  def _tokenizer(self, folder: Path) -> Tokenizer:
    made = read_tokenizer(folder)
    if made.padding_side != "right":
      raise UserError(f"{folder}: padding_side={made.padding_side!r}: texts are filled up behind here; expected "
                      "'right'")  # fmt: skip
    return Tokenizer(made, self.length)

  def ids(self, texts: Sequence[str]) -> np.ndarray:
    """int32 [N, encoders x length], cut or filled up, those of one text encoder behind those of another; the log says
    of the first text that is cut."""
    return np.concatenate([self._ids(one, texts) for one in self.tokenizers], axis=1)

  def negative_ids(self, text: str) -> np.ndarray:
    """int32 [1, encoders x length] of a negative prompt; `NO_TEXT` where an empty one is no text at all."""
    found = self.ids([text])
    return np.full_like(found, NO_TEXT) if not text and zeroes_empty(self.folder) else found

  def _ids(self, tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    found = np.full((len(texts), self.length), tokenizer.pad_id, np.int32)
    encoded = tokenizer.encode(list(texts))
    for row, ids in enumerate(encoded.ids):
      found[row, : len(ids)] = ids
    if encoded.cut.any() and not self._told:
      self._told.append(texts[int(encoded.cut.argmax())])
      log.warning("%s: cut at %d tokens, which is all that the text encoder reads: %.200r", self.folder, self.length,
                  self._told[0])  # fmt: skip
    return found

  @functools.cached_property
  def _told(self) -> list[str]:
    """The text of which the log said that it is cut."""
    return []


def _is_old(version: Any) -> bool:
  """Whether config.json is from before diffusers 0.9, whose pipelines knew their sizes themselves."""
  found = re.match(r"(\d+)\.(\d+)", str(version))
  return found is not None and (int(found[1]), int(found[2])) < (0, 9)
