"""The input `waveforms`: recordings as the samples that a model reads, and what is said in them as letters."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from ml_collections import ConfigDict

from peftjax.data.inputs.audio import RATE_FIELD, blank, shifted
from peftjax.data.inputs.base import IGNORED, Batch, Input, Random, Shapes
from peftjax.data.inputs.characters import Characters, read_characters
from peftjax.data.inputs.log_mel import check_padding
from peftjax.data.inputs.sound import LEAST_RATE, MOST_RATE, decode, resampled
from peftjax.data.sources.types import Example, Header
from peftjax.errors import UserError
from peftjax.files import read_json
from peftjax.kinds import FLAG, list_of, number, value_of, whole

if TYPE_CHECKING:
  from peftjax.model import Model
  from peftjax.tasks import Task

FILE = "preprocessor_config.json"
_SIZES = list_of(whole(1, 2**20), 64, "sizes")
_RANGES = {"seconds": (0.01, 3600), "shift": (0, 3600), "time_masks": (0, 100), "time_width": (1, 10_000)}


@dataclasses.dataclass(frozen=True)
class Samples:
  """How a recording becomes what a model reads, as transformers' `Wav2Vec2FeatureExtractor` does it.

  Attributes:
    rate: samples a second.
    scaled: to a mean of 0 and a variance of 1.
    fill: the sample that shorter recordings are filled up with.
    masked: the model is told which samples are of the recording.
  """

  rate: int = 16_000
  scaled: bool = True
  fill: float = 0.0
  masked: bool = False

  def __call__(self, samples: np.ndarray) -> np.ndarray:
    """float32 [n] of float32 samples [n]."""
    if not self.scaled:
      return samples
    return np.asarray((samples - samples.mean()) / np.sqrt(samples.var() + 1e-7), np.float32)


class Waveforms(Input):
  """`input_values` float32 [N] of an example's `audio`, as the model's preprocessor_config.json says, with
  `attention_mask` int32 [N] where it says so, and `labels` int32 [L], the letters of its `text`, below 0 behind them.

  A recording of another rate is resampled, of several channels averaged, a shorter one filled up; one longer than
  `seconds` is refused, since its text would be longer than what is heard, and so is one of fewer frames than its text
  needs, since its loss would be infinite. What is drawn is a function of seed, epoch
  and example. Settings:
    seconds: of a window.
    shift: seconds by which a training recording starts later or earlier, at most; silence takes the place.
    time_masks: how many stretches of a training recording's frames are hidden (SpecAugment), `mask_time_indices`, and
    time_width: how many frames each, at most.
  """

  settings = {"seconds": 10.0, "shift": 0.0, "time_masks": 0, "time_width": 10}

  def __init__(self, config: ConfigDict, header: Header, task: Task, folder: Path | None = None):
    super().__init__(config, header, task, folder)
    for name, (least, most) in _RANGES.items():
      value, kind = self.options[name], int if isinstance(self.settings[name], int) else int | float
      if isinstance(value, bool) or not isinstance(value, kind) or not least <= value <= most:
        raise UserError(f"input.{name}={value!r}: expected {'a whole ' if kind is int else 'a '}number "
                        f"from {least} to {most}")  # fmt: skip
    if header.fields and "text" not in header.fields:
      raise UserError(f"{header.name} holds {', '.join(header.fields)}: no text says what is spoken in its recordings")

  @property
  def reads(self) -> tuple[str, ...]:
    """How many letters a text may have."""
    return ("max_length",)

  @functools.cached_property
  def samples_of(self) -> Samples:
    """The model's."""
    assert self.folder is not None
    return read_samples(self.folder)

  @functools.cached_property
  def characters(self) -> Characters:
    """The model's."""
    assert self.folder is not None
    return read_characters(self.folder)

  @functools.cached_property
  def convolutions(self) -> tuple[tuple[int, int], ...]:
    """(window, stride) of each that makes frames of samples."""
    assert self.folder is not None
    return read_convolutions(self.folder)

  @property
  def count(self) -> int:
    """N."""
    return round(self.options.seconds * self.samples_of.rate)

  def spec(self, rows: int, length: int) -> Shapes:
    shapes = {
      "input_values": jax.ShapeDtypeStruct((rows, self.count), np.dtype(np.float32)),
      "labels": jax.ShapeDtypeStruct((rows, self.config.data.max_length), np.dtype(np.int32)),
    }
    if self.samples_of.masked:
      shapes["attention_mask"] = jax.ShapeDtypeStruct((rows, self.count), np.dtype(np.int32))
    if self.options.time_masks:
      shapes["mask_time_indices"] = jax.ShapeDtypeStruct(
        (rows, frames(self.convolutions, self.count)), np.dtype(np.int32)
      )
    return shapes

  @property
  def fills(self) -> Mapping[str, Any]:  # type: ignore[override]
    """Silence, and no letter."""
    return {"input_values": self.samples_of.fill, "labels": IGNORED}

  def encode(self, example: Example, rng: Random) -> Batch:
    where = str(example.get("where", self.header.name))
    found, rate = decode(example["audio"], where, int(example.get(RATE_FIELD, self.samples_of.rate)))
    samples = resampled(found, rate, self.samples_of.rate)
    if len(samples) > self.count:
      lasts = len(samples) / self.samples_of.rate
      raise UserError(f"{where}: it lasts {lasts:.2f} seconds, and input.seconds={self.options.seconds:g}")
    labels = self.characters.encode(example["text"])
    if len(labels) > self.config.data.max_length:
      raise UserError(f"{where}: its text has {len(labels)} letters, and data.max_length={self.config.data.max_length}")
    repeated = sum(one == other for one, other in itertools.pairwise(labels))
    if (held := self._frames(samples)) < len(labels) + repeated:
      raise UserError(f"{where}: its text has {len(labels)} letters, of which {repeated} follow their like, and its "
                      f"recording gives {held} frames; expected one for each and one before these")  # fmt: skip
    if rng is not None and self.options.shift:
      by = round(rng.uniform(-self.options.shift, self.options.shift) * self.samples_of.rate)
      moved = shifted(samples, by)[: self.count]
      samples = moved if self._frames(moved) >= len(labels) + repeated else samples
    batch = {"input_values": self.samples_of(samples), "labels": np.array(labels, np.int32)}
    if self.samples_of.masked:
      batch["attention_mask"] = np.ones(len(samples), np.int32)
    if self.options.time_masks:
      seen = np.ones((max(frames(self.convolutions, len(samples)), 0), 1), np.float32)
      if rng is not None:
        blank(seen, rng, self.options.time_masks, self.options.time_width)
      batch["mask_time_indices"] = (seen[:, 0] == 0).astype(np.int32)
    return batch

  def _frames(self, samples: np.ndarray) -> int:
    """How many frames may say a letter: those of the recording, or of the window where the model is not told it."""
    return max(frames(self.convolutions, len(samples) if self.samples_of.masked else self.count), 0)

  def collate(self, encoded: Sequence[Batch], rows: int, length: int) -> Batch:
    batch = super().collate(encoded, rows, length)
    if "attention_mask" in batch:
      batch["attention_mask"][len(encoded) :] = 1  # so that there are frames
    return batch

  def fingerprint(self) -> str:
    parts = (super().fingerprint(), self.samples_of, sorted(self.characters.ids.items()), self.config.data.max_length)
    return hashlib.sha256(repr(parts).encode()).hexdigest()

  def check(self, model: Model) -> None:
    if "input_values" not in model.example_inputs:
      raise UserError(f"input.name='waveforms': {model.architecture} reads no samples")
    size = int(model.hf_config.get("vocab_size", self.characters.size))
    if self.characters.size > size:
      raise UserError(f"vocab.json has {self.characters.size} letters but the model writes {size}")
    if frames(self.convolutions, self.count) < 1:
      raise UserError(f"input.seconds={self.options.seconds:g}: too short for a frame")


def frames(convolutions: Iterable[tuple[int, int]], samples: int) -> int:
  """How many frames the convolutions, (window, stride) each, make of so many samples."""
  for window, stride in convolutions:
    samples = (samples - window) // stride + 1
  return samples


def read_convolutions(folder: Path) -> tuple[tuple[int, int], ...]:
  """(window, stride) of each convolution that config.json describes."""
  path = folder / "config.json"
  config = read_json(path)
  windows = value_of(str(path), "conv_kernel", config.get("conv_kernel", (10, 3, 3, 3, 3, 2, 2)), _SIZES)
  strides = value_of(str(path), "conv_stride", config.get("conv_stride", (5, 2, 2, 2, 2, 2, 2)), _SIZES)
  return tuple(zip(windows, strides))


def read_samples(folder: Path) -> Samples:
  """What preprocessor_config.json says; without it the usual, by how config.json normalises.

  Raises:
    UserError: it is another kind of model's, or a value is none.
  """
  path = folder / FILE
  if not path.is_file():
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    return Samples(masked=config.get("feat_extract_norm") == "layer")
  given, where, usual = read_json(path), str(path), Samples()
  kind = given.get("feature_extractor_type", "Wav2Vec2FeatureExtractor")
  if kind != "Wav2Vec2FeatureExtractor":
    raise UserError(f"{where}: feature_extractor_type={kind!r:.60}: expected 'Wav2Vec2FeatureExtractor'")
  check_padding(given, where)
  return Samples(
    value_of(where, "sampling_rate", given.get("sampling_rate", usual.rate), whole(LEAST_RATE, MOST_RATE)),
    value_of(where, "do_normalize", given.get("do_normalize", True), FLAG),
    value_of(where, "padding_value", given.get("padding_value", 0.0), number()),
    value_of(where, "return_attention_mask", given.get("return_attention_mask", False), FLAG),
  )
