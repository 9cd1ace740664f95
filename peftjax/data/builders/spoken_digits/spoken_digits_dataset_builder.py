"""Spoken digits by speakers; README.md beside this file describes them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

ARCHIVE = Path(__file__).parents[2] / "files" / "spoken_digits" / "recordings.zip"
SPEAKERS = {"heard": ("george", "jackson", "nicolas", "theo"), "unheard": ("lucas", "yweweler")}
TAKES = {"test": range(5), "validation": range(5, 7), "train": range(7, 15)}
RATE = 8000


class Builder(tfds.core.GeneratorBasedBuilder):
  """A recording and its digit."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First version."}
  BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in SPEAKERS]

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {
          "audio": tfds.features.Tensor(shape=(None,), dtype=np.int16),
          "sampling_rate": tfds.features.Scalar(dtype=np.int32),
          "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
          "speaker": tfds.features.Text(),
        }
      ),
      supervised_keys=("audio", "label"),
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
    return {split: self._generate_examples(split) for split in TAKES}

  def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    import soundfile

    with zipfile.ZipFile(ARCHIVE) as archive:
      for name in sorted(archive.namelist()):
        digit, speaker, take = Path(name).stem.split("_")
        if speaker in SPEAKERS[self.builder_config.name] and int(take) in TAKES[split]:
          samples, rate = soundfile.read(io.BytesIO(archive.read(name)), dtype="int16")
          assert rate == RATE
          yield name, {"audio": samples, "sampling_rate": rate, "label": digit, "speaker": speaker}
