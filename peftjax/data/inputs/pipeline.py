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
from peftjax.diffusion.folder import factor_of, runs_as_stable_diffusion
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
  def length(self) -> int:
    """The tokens of a text: the text encoder's positions, or the tokenizer's `model_max_length` where that is less."""
    path = self.folder / "text_encoder" / "config.json"
    name = "max_position_embeddings"
    positions = int(value_of(str(path), name, read_json(path).get(name, 77), _LENGTH))
    beside = self._texts / "tokenizer_config.json"
    stated = Settings(self._texts).number("model_max_length") if beside.is_file() else None
    return min(positions, stated or positions)

  @property
  def _texts(self) -> Path:
    """Where the tokenizer's files are."""
    beside = self.folder / "tokenizer"
    return beside if beside.is_dir() else self.folder

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

  @functools.cached_property
  def tokenizer(self) -> Tokenizer:
    """The text encoder's, cut to `length`.

    Raises:
      UserError: as `load_tokenizer`, or it fills up in front.
    """
    made = read_tokenizer(self._texts)
    if made.padding_side != "right":
      raise UserError(f"{self._texts}: padding_side={made.padding_side!r}: texts are filled up behind here; expected "
                      "'right'")  # fmt: skip
    return Tokenizer(made, self.length)

  def ids(self, texts: Sequence[str]) -> np.ndarray:
    """int32 [N, length], cut or filled up; the log says of the first text that is cut."""
    found = np.full((len(texts), self.length), self.tokenizer.pad_id, np.int32)
    encoded = self.tokenizer.encode(list(texts))
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
