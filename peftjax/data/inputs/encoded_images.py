"""Training batches of a diffusion model that hold what its frozen encoders gave of each example, once.

What is encoded stands in tables in host memory, one row for each picture or caption that differs, and examples name
their rows; so a subject's five pictures beside two hundred of its class are encoded as 205.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from peftjax.data.inputs.base import Batch, Input, Random, Shapes
from peftjax.data.reading import Share
from peftjax.data.sources.types import Example
from peftjax.diffusion.latents import Latents
from peftjax.diffusion.texts import Texts
from peftjax.errors import UserError

if TYPE_CHECKING:
  from peftjax.data.inputs.captioned_images import CaptionedImages

MEAN, LOGVAR = "latent_mean", "latent_logvar"
RAW = {"latents": "pixel_values", "text": "input_ids"}  # what each is encoded from
Encode = Callable[[str, np.ndarray], dict[str, np.ndarray]]


@dataclasses.dataclass
class _Table:
  """Arrays [n, ...] of what differs, by its digest."""

  rows: dict[bytes, int] = dataclasses.field(default_factory=dict)
  arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


class EncodedImages(Input):
  """Arrays of a batch: of the input `captioned_images` what is not kept, and in place of `pixel_values` `latent_mean`
  and `latent_logvar` float32 [B, C, h, w], as the autoencoder gives them, in place of `input_ids` `text_states` float32
  [B, L, D], and of SDXL `text_pooled` [B, P]; each again behind "prior_".
  """

  def __init__(self, images: CaptionedImages):
    self.images, self.kept = images, tuple(images.options.cache)
    self.options, self.config, self.header = images.options, images.config, images.header
    self.task, self.folder = images.task, images.folder
    self.latents, self.texts = Latents.of(images.pipeline.folder), Texts.of(images.pipeline.folder)
    if "latents" in self.kept and not self.latents.encoded:
      raise UserError("input.cache: there is no component 'vae' whose latents could be kept")
    self._tables = {name: _Table() for name in self.kept}

  def spec(self, rows: int, length: int) -> Shapes:
    shapes = self.images.spec(rows, length)
    side = self.images.side // self.latents.factor
    latents, length = (self.latents.channels, side, side), self.images.pipeline.length
    fields: dict[str, dict[str, tuple[int, ...]]] = {
      "latents": {MEAN: latents, LOGVAR: latents},
      "text": self.texts.shapes(length),
    }
    for kind in self.images.kinds:
      for name in self.kept:
        del shapes[f"{kind}{RAW[name]}"]
        for field, shape in fields[name].items():
          shapes[f"{kind}{field}"] = jax.ShapeDtypeStruct((rows, *shape), np.dtype(np.float32))
    return shapes

  def encode(self, example: Example, rng: Random) -> Batch:
    batch: Batch = {}
    for kind in self.images.kinds:
      for name in RAW:
        if name in self._tables:
          table = self._tables[name]
          row = table.rows[self._digest(name, kind, example)]
          found = {field: array[row] for field, array in table.arrays.items()}
        else:
          found = self.images.raw(example, kind, name, rng)
        batch |= {f"{kind}{field}": array for field, array in found.items()}
    return batch

  def order(self, ids: np.ndarray, lengths: np.ndarray, batch_size: int, seed: int) -> Any:
    self._ids = ids
    return super().order(ids, lengths, batch_size, seed)

  def reader(self, source: Any, share: Share, seed: int, order: Any) -> Any:
    self._source = source
    return super().reader(source, share, seed, order)

  def fill(self, encode: Encode, rows: int) -> dict[str, int]:
    """Encodes what the training examples hold, of which a loader has told by `order` and `reader`.

    Args:
      encode: (what is kept, its raw array [rows, ...]) -> its fields [rows, ...].
      rows: encoded at once.

    Returns:
      What is kept -> how many that differ.
    """
    wanted: dict[str, dict[bytes, tuple[str, int]]] = {name: {} for name in self.kept}
    for index in self._ids:
      example = self._source[int(index)]
      for kind in self.images.kinds:
        for name, one in wanted.items():
          one.setdefault(self._digest(name, kind, example), (kind, int(index)))
    for name, table in self._tables.items():
      places = list(wanted[name].values())
      parts: list[dict[str, np.ndarray]] = []
      for start in range(0, len(places), rows):
        some = places[start : start + rows]
        raw = [self.images.raw(self._source[index], kind, name, None) for kind, index in some]
        read = [one.pop(RAW[name]) for one in raw]
        given = encode(name, np.stack(read + read[-1:] * (rows - len(read))))
        beside = {field: np.stack([one[field] for one in raw]) for field in raw[0]}
        parts.append({**{field: array[: len(some)] for field, array in given.items()}, **beside})
      table.rows = {digest: row for row, digest in enumerate(wanted[name])}
      table.arrays = {field: np.concatenate([part[field] for part in parts]) for field in parts[0]} if parts else {}
    return {name: len(table.rows) for name, table in self._tables.items()}

  def _digest(self, name: str, kind: str, example: Example) -> bytes:
    content: Any = example[f"{kind}image"] if name == "latents" else self.images.caption_of(example, kind)
    if isinstance(content, str):
      content = content.encode()
    return hashlib.blake2b(content if isinstance(content, bytes) else np.asarray(content).tobytes()).digest()

  def fingerprint(self) -> str:
    return self.images.fingerprint()
