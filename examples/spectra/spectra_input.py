"""An input: each band's intensity as one of some levels, which an encoder reads as it reads words."""

from __future__ import annotations

import jax
import numpy as np
from spectra_source import BANDS

from peftjax.data import Input
from peftjax.errors import UserError


class Levels(Input):
  """All spectra have one length, so that nothing is measured; in training, noise is added to every band."""

  settings = {"levels": 16, "noise": 0.0}

  def spec(self, rows, length):
    levels = jax.ShapeDtypeStruct((rows, BANDS), np.dtype(np.int32))
    return {"input_ids": levels, "attention_mask": levels}

  def encode(self, example, rng):
    spectrum = example["spectrum"]
    if rng is not None:
      spectrum = spectrum + self.options.noise * rng.normal(size=BANDS)
    levels = np.clip(spectrum * self.options.levels, 0, self.options.levels - 1).astype(np.int32)
    return {"input_ids": levels, "attention_mask": np.ones_like(levels)}

  def check(self, model):
    if self.options.levels > model.hf_config["vocab_size"]:
      raise UserError(f"input.levels={self.options.levels}: the model knows {model.hf_config['vocab_size']}")
