"""Sentences read aloud; README.md beside this file describes them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

FOLDER = Path(__file__).parents[2] / "files" / "ljspeech_samples"
SPLITS = {"train": (1, 3, 4, 5), "validation": (2,), "test": (6, 7, 8)}


class Builder(tfds.core.GeneratorBasedBuilder):
  """A recording and its text, numbers as words."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First version."}

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {
          "audio": tfds.features.Tensor(shape=(None,), dtype=np.int16),
          "sampling_rate": tfds.features.Scalar(dtype=np.int32),
          "text": tfds.features.Text(),
        }
      ),
      supervised_keys=("audio", "text"),
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
    return {split: self._generate_examples(numbers) for split, numbers in SPLITS.items()}

  def _generate_examples(self, numbers: tuple[int, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    import soundfile

    lines = (FOLDER / "metadata.csv").read_text(encoding="utf-8").splitlines()
    texts = {name: text for name, _, text in (line.split("|") for line in lines if line)}
    with zipfile.ZipFile(FOLDER / "recordings.zip") as archive:
      for name in (f"LJ001-{number:04d}" for number in numbers):
        samples, rate = soundfile.read(io.BytesIO(archive.read(f"{name}.flac")), dtype="int16")
        yield name, {"audio": samples, "sampling_rate": rate, "text": texts[name]}
