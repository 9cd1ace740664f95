"""How alike pictures are to a model of pictures: cosines of its class tokens (Ruiz et al. 2023, section 4.2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from peftjax.data.inputs.image_processing import Processor, read_processor
from peftjax.errors import UserError
from peftjax.loading import folder_of, load
from peftjax.model import Model

_ROWS = 16  # pictures at once


@dataclasses.dataclass(frozen=True)
class Features:
  """A model of pictures and what prepares them for it."""

  model: Model
  processor: Processor

  @staticmethod
  def of(path: str, side: int = 0) -> Features:
    """That of a folder, or "packaged:NAME".

    Args:
      side: pixels that pictures are resized to; 0: as the model's preprocessor_config.json says.

    Raises:
      UserError: it is no model of pictures that gives hidden states.
    """
    model, processor = load(path), read_processor(folder_of(path))
    if "pixel_values" not in model.example_inputs:
      raise UserError(f"features={path!r}: {model.architecture} reads no pictures")
    return Features(model, processor.sized(side) if side else processor)

  def __call__(self, pictures: Sequence[Any] | np.ndarray) -> np.ndarray:
    """Unit vectors float64 [N, E] of PIL pictures or uint8 arrays [H, W, 3].

    Raises:
      UserError: the model gives neither a pooled output nor hidden states.
    """
    found = []
    for start in range(0, len(pictures), _ROWS):
      part = [one if isinstance(one, Image.Image) else Image.fromarray(one) for one in pictures[start : start + _ROWS]]
      pixels = np.stack([self.processor(one) for one in part])
      filled = np.concatenate([pixels, np.zeros((_ROWS - len(part), *pixels.shape[1:]), np.float32)])
      outputs = self.model(pixel_values=filled)
      vectors = _vectors(outputs)
      found.append(np.asarray(vectors, np.float64)[: len(part)])
    vectors = np.concatenate(found)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _vectors(outputs: Any) -> Any:
  for name in ("image_embeds", "pooler_output"):
    if name in outputs:
      return outputs[name]
  if "last_hidden_state" not in outputs:
    raise UserError(f"features: expected hidden states of the model, got {', '.join(outputs)}")
  return outputs["last_hidden_state"][:, 0]
