"""A recording as a picture that people read: time to the right, pitch upwards, louder is brighter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from peftjax.data.inputs.log_mel import LogMel
from peftjax.data.inputs.sound import decode, resampled

BINS = 64


def spectrogram(example: Mapping[str, Any], side: int) -> Image.Image:
  """[side, side] in RGB: the whole recording of an example, however long it is."""
  from matplotlib import colormaps  # slow to import

  samples, rate = decode(example["audio"], str(example.get("where", "recording")), int(example.get("sampling_rate", 0)))
  samples = resampled(samples, rate, LogMel.rate)
  log_mel = LogMel(bins=BINS, seconds=max(len(samples), LogMel.window) / LogMel.rate)
  features = log_mel(log_mel.windowed(samples))
  scaled = (features - features.min()) / max(float(np.ptp(features)), 1e-6)
  colours = colormaps["magma"](scaled[::-1], bytes=True)[..., :3]
  return Image.fromarray(colours).resize((side, side), Image.Resampling.BILINEAR)
