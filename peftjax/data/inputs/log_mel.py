"""Log-mel features as Whisper reads them, from samples; what preprocessor_config.json says of them.

For frames of a recording x, reflected at its ends, with a Hann window h and triangular filters M on the mel scale:

  s = log10 max(M |DFT(h ⊙ x)|², 1e-10)        features = (max(s, max s - 8) + 4) / 4

The numbers are those of transformers' `WhisperFeatureExtractor` (Radford et al. 2022, arXiv 2212.04356).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from peftjax.data.inputs.sound import LEAST_RATE, MOST_RATE
from peftjax.errors import UserError, nearest
from peftjax.files import read_json
from peftjax.kinds import Kind, number, value_of, whole

FILE = "preprocessor_config.json"
CLASSES = ("WhisperFeatureExtractor", "WhisperProcessor")
HIGHEST = 8000.0  # Hz, of the filters, whatever the rate is
_MOST_FEATURES = 2**24  # of one window
_FIELDS: dict[str, tuple[Kind, Any]] = {
  "feature_size": (whole(1, 2**12), 80),
  "sampling_rate": (whole(LEAST_RATE, MOST_RATE), 16_000),
  "hop_length": (whole(1, 2**16), 160),
  "chunk_length": (whole(1, 3600), 30),
  "n_fft": (whole(4, 2**16), 400),
  "padding_value": (number(), 0.0),
}


@dataclasses.dataclass(frozen=True)
class LogMel:
  """How samples become features.

  Attributes:
    bins: filters on the mel scale.
    rate: samples a second.
    hop: samples from one frame to the next.
    seconds: of a window: recordings are cut or filled up to it.
    window: samples of a frame.
    fill: the sample that shorter recordings are filled up with.
  """

  bins: int = 80
  rate: int = 16_000
  hop: int = 160
  seconds: float = 30
  window: int = 400
  fill: float = 0.0

  @property
  def samples(self) -> int:
    """Samples in a window of `seconds`."""
    return round(self.seconds * self.rate)

  @property
  def frames(self) -> int:
    """Frames in a window, one every `hop` samples."""
    return self.samples // self.hop

  def windowed(self, samples: np.ndarray) -> np.ndarray:
    """float32 [`samples`]: a recording, cut or filled up."""
    found = np.full(self.samples, self.fill, np.float32)
    found[: len(samples)] = samples[: self.samples]
    return found

  def __call__(self, samples: np.ndarray) -> np.ndarray:
    """float32 [bins, frames] of float32 samples, a window of them or more."""
    half = self.window // 2
    padded = np.pad(samples.astype(np.float64), half, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, self.window)[:: self.hop][: len(samples) // self.hop]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.window) / self.window)
    power = np.abs(np.fft.rfft(frames * hann, axis=1)) ** 2
    logs = np.log10(np.maximum(filters(self.bins, self.window, self.rate) @ power.T, 1e-10))
    return ((np.maximum(logs, logs.max() - 8.0) + 4.0) / 4.0).astype(np.float32)


@functools.lru_cache(maxsize=8)
def filters(bins: int, window: int, rate: int) -> np.ndarray:
  """float64 [bins, window // 2 + 1]: triangles between neighbours on Slaney's mel scale, each of area 1 over Hz."""
  frequencies = np.linspace(0, rate // 2, window // 2 + 1)
  corners = _hertz(np.linspace(_mel(0.0), _mel(HIGHEST), bins + 2))
  rising = (frequencies - corners[:-2, None]) / np.diff(corners)[:-1, None]
  falling = (corners[2:, None] - frequencies) / np.diff(corners)[1:, None]
  areas = 2.0 / (corners[2:] - corners[:-2])
  return np.asarray(np.maximum(0, np.minimum(rising, falling)) * areas[:, None])


_LINEAR, _LOG_STEP = 200 / 3, np.log(6.4) / 27  # Hz a mel up to 1 kHz, and the ratio of neighbours above


def _mel(hertz: float) -> float:
  return hertz / _LINEAR if hertz < 1000 else float(15 + np.log(hertz / 1000) / _LOG_STEP)


def _hertz(mels: np.ndarray) -> np.ndarray:
  return np.where(mels < 15, mels * _LINEAR, 1000 * np.exp(_LOG_STEP * (mels - 15)))


def read_log_mel(folder: Path) -> LogMel:
  """The features of a model's folder; without a preprocessor_config.json those of Whisper with config.json's bins.

  Raises:
    UserError: the file is another kind of model's, or a value is none.
  """
  path = folder / FILE
  if path.is_file():
    return log_mel_of(read_json(path), str(path))
  config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
  if config.get("model_type") != "whisper":
    raise UserError(f"{folder} has no {FILE}, and {config.get('model_type')!r} models read no sound here")
  positions = value_of("config.json", "max_source_positions", config.get("max_source_positions", 1500), whole(1, 2**20))
  bins = value_of("config.json", "num_mel_bins", config.get("num_mel_bins", 80), whole(1, 2**12))
  return LogMel(bins=bins, seconds=2 * positions * LogMel.hop / LogMel.rate)


def check_padding(given: Mapping[str, Any], where: str) -> None:
  """Raises `UserError` where a preprocessor_config.json fills recordings up before their start."""
  if (side := given.get("padding_side", "right")) != "right":
    raise UserError(f"{where}: padding_side={side!r:.40} is not computed here; expected 'right'")


def log_mel_of(given: Mapping[str, Any], where: str) -> LogMel:
  """The features that a preprocessor_config.json describes; raises as `read_log_mel`."""
  name = given.get("feature_extractor_type") or CLASSES[0]
  if name not in CLASSES:
    raise UserError(f"{where}: feature_extractor_type={name!r:.60} is not supported; {nearest(str(name), CLASSES)}")
  if given.get("dither"):
    raise UserError(f"{where}: dither={given['dither']!r:.40} is not computed here; expected 0")
  check_padding(given, where)
  found = {
    field: value_of(where, field, given[field], kind) if given.get(field) is not None else default
    for field, (kind, default) in _FIELDS.items()
  }
  made = LogMel(*(found[field] for field in _FIELDS))
  if made.bins * made.frames > _MOST_FEATURES or made.samples < made.window:
    raise UserError(
      f"{where}: windows of chunk_length={made.seconds} seconds give {made.bins} x {made.frames} features of "
      f"{made.window} samples each; expected at least one frame and at most {_MOST_FEATURES:,} features"
    )
  return made
