"""What a pipeline's folder says of what it reads: the tokens of its texts, the size of its pictures."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from peftjax.data.inputs.tokenizing import Tokenizer, load_tokenizer
from peftjax.errors import UserError
from peftjax.files import read_json
from peftjax.kinds import value_of, whole

_LENGTH, _SIDE = whole(2, 2**16), whole(1, 2**13)


@dataclasses.dataclass(frozen=True)
class Pipeline:
  """The folder of a pipeline in diffusers' layout, with model_index.json.

  Attributes:
    folder: with a folder for each component.
  """

  folder: Path

  @functools.cached_property
  def length(self) -> int:
    """The tokens of a text, which are the text encoder's positions."""
    path = self.folder / "text_encoder" / "config.json"
    name = "max_position_embeddings"
    return int(value_of(str(path), name, read_json(path).get(name, 77), _LENGTH))

  @functools.cached_property
  def side(self) -> int:
    """Pixels of a side of the pictures that the denoiser is made for.

    Raises:
      UserError: its config.json does not say.
    """
    path, vae = (self.folder / name / "config.json" for name in ("unet", "vae"))
    sample = read_json(path).get("sample_size")
    if sample is None:
      raise UserError(f"{path}: no sample_size; name a size in pixels")
    blocks = read_json(vae).get("block_out_channels", [64]) if vae.is_file() else [64]
    return int(value_of(str(path), "sample_size", sample, _SIDE)) * 2 ** (len(blocks) - 1)

  @functools.cached_property
  def tokenizer(self) -> Tokenizer:
    """The text encoder's, cut to its positions."""
    beside = self.folder / "tokenizer"
    return load_tokenizer(beside if beside.is_dir() else self.folder, self.length)

  def ids(self, texts: Sequence[str]) -> np.ndarray:
    """int32 [N, length], cut or filled up."""
    found = np.full((len(texts), self.length), self.tokenizer.pad_id, np.int32)
    for row, ids in enumerate(self.tokenizer.encode(list(texts)).ids):
      found[row, : len(ids)] = ids
    return found
