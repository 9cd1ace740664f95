"""The input `audio`: recordings as the log-mel features that a model reads, windows of one length."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from ml_collections import ConfigDict

from peftjax.data.inputs.base import Batch, Input, Random, Shapes
from peftjax.data.inputs.log_mel import LogMel, read_log_mel
from peftjax.data.inputs.sound import decode, resampled
from peftjax.data.sources.types import Example, Header
from peftjax.errors import UserError

if TYPE_CHECKING:
  from peftjax.model import Model
  from peftjax.tasks import Task

RATE_FIELD = "sampling_rate"  # of examples whose `audio` is an array
AUDIO_SETTINGS: dict[str, Any] = {
  "seconds": 0.0,
  "shift": 0.0,
  "time_masks": 0,
  "time_width": 10,
  "mel_masks": 0,
  "mel_width": 10,
}
_RANGES = {"seconds": (0, 3600), "shift": (0, 3600), "time_masks": (0, 100), "time_width": (1, 10_000),
           "mel_masks": (0, 100), "mel_width": (1, 4096)}  # fmt: skip


class Audio(Input):
  """`input_features` float32 [bins, frames] of an example's `audio`, as the model's preprocessor_config.json says.

  A recording of another rate is resampled, of several channels averaged, a longer one than the window cut, a shorter
  one filled up. Settings, all off where nothing is said; what is drawn is a function of seed, epoch and example:
    seconds: of a window, in place of the processor's: short recordings in less time.
    shift: seconds by which a training recording starts later or earlier, at most; silence takes the place.
    time_masks: how many stretches of a training recording's frames are blanked (SpecAugment, arXiv 1904.08779), and
    time_width: how many frames each, at most.
    mel_masks, mel_width: the same of neighbouring filters.
  """

  settings = AUDIO_SETTINGS

  def __init__(self, config: ConfigDict, header: Header, task: Task, folder: Path | None = None):
    super().__init__(config, header, task, folder)
    for name, (least, most) in _RANGES.items():
      value, kind = self.options[name], int if isinstance(AUDIO_SETTINGS[name], int) else int | float
      if isinstance(value, bool) or not isinstance(value, kind) or not least <= value <= most:
        what = "a whole number" if kind is int else "a number"
        raise UserError(f"input.{name}={value!r}: expected {what} from {least} to {most}")

  @functools.cached_property
  def log_mel(self) -> LogMel:
    """The model's, for `input.seconds`."""
    assert self.folder is not None
    found = read_log_mel(self.folder)
    if not self.options.seconds:
      return found
    cut = dataclasses.replace(found, seconds=self.options.seconds)
    if self.options.seconds > found.seconds or cut.frames < 2:
      raise UserError(f"input.seconds={self.options.seconds:g}: the model reads {found.seconds:g} seconds at most")
    even = cut.frames // 2 * 2 * cut.hop / cut.rate  # of two frames the model makes one
    return dataclasses.replace(found, seconds=even)

  def spec(self, rows: int, length: int) -> Shapes:
    shape = (rows, self.log_mel.bins, self.log_mel.frames)
    return {"input_features": jax.ShapeDtypeStruct(shape, np.dtype(np.float32))}

  def samples(self, example: Example) -> np.ndarray:
    """float32 [n]: the whole recording at the model's rate."""
    where = str(example.get("where", self.header.name))
    found, rate = decode(example["audio"], where, int(example.get(RATE_FIELD, self.log_mel.rate)))
    return resampled(found, rate, self.log_mel.rate)

  def encode(self, example: Example, rng: Random) -> Batch:
    return {"input_features": self.features(self.samples(example), rng)}

  def features(self, samples: np.ndarray, rng: Random = None) -> np.ndarray:
    """float32 [bins, frames] of a recording, cut to the window; `rng` for augmentation."""
    if rng is None:
      return self.log_mel(self.log_mel.windowed(samples))
    options, log_mel = self.options, self.log_mel
    if options.shift:
      samples = shifted(samples, round(rng.uniform(-options.shift, options.shift) * log_mel.rate))
    features = log_mel(log_mel.windowed(samples))
    held = min(log_mel.frames, -(-len(samples) // log_mel.hop))
    blank(features[:, :held].T, rng, options.time_masks, options.time_width)
    blank(features, rng, options.mel_masks, options.mel_width)
    return features

  def fingerprint(self) -> str:
    return hashlib.sha256(f"{super().fingerprint()} {self.log_mel}".encode()).hexdigest()

  def check(self, model: Model) -> None:
    shape = model.example_inputs.get("input_features")
    if shape is None:
      raise UserError(f"input.name: {model.architecture} reads no sound")
    bins, frames = shape.shape[1:]
    if self.log_mel.bins != bins or self.log_mel.frames > frames:
      raise UserError(
        f"preprocessor_config.json: {self.log_mel.bins} x {self.log_mel.frames} features; the model reads {bins} "
        f"bins and at most {frames} frames"
      )


def shifted(samples: np.ndarray, by: int) -> np.ndarray:
  """The samples, `by` of silence before them; below 0 so many are left out, but not all."""
  if by >= 0:
    return np.concatenate([np.zeros(by, samples.dtype), samples])
  return samples[min(-by, len(samples) - 1) :]


def blank(rows: np.ndarray, rng: np.random.Generator, count: int, width: int) -> None:
  """Sets `count` stretches of up to `width` neighbouring rows to 0 in place, the mean of what Whisper's features are
  scaled to and what transformers masks with."""
  for _ in range(count):
    size = int(rng.integers(0, min(width, len(rows)) + 1))
    start = int(rng.integers(0, len(rows) - size + 1))
    rows[start : start + size] = 0.0
