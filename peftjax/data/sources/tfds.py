"""Data sets prepared by TFDS, the packaged ones among them, read through `as_data_source`: no TensorFlow."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from peftjax.data.sources.columns import PAIR_NAMES, SOURCE_NAMES, TARGET_NAMES, TEXT_NAMES
from peftjax.data.sources.media import AUDIO, IMAGES, MEDIA
from peftjax.data.sources.packaged import builder_of, prepared_builder
from peftjax.data.sources.tfds_folder import check_below, check_folder
from peftjax.data.sources.types import (
  CAUSAL_LM,
  QUESTION_ANSWERING,
  SEQ2SEQ_LM,
  SPEECH_RECOGNITION,
  TEXT_CLASSIFICATION,
  TOKEN_CLASSIFICATION,
  Dataset,
  Example,
  Header,
  HiddenLabel,
  Named,
  Source,
)
from peftjax.errors import NotHere, UserError, nearest

if TYPE_CHECKING:
  import tensorflow_datasets as tfds


QUESTION_COLUMNS = ("id", "question", "context", "answers", "is_impossible")  # as TFDS names SQuAD's


RATE = "sampling_rate"  # of a recording, a feature beside it or said by it
_MEDIA = {one.field for one in MEDIA}


@dataclasses.dataclass(frozen=True)
class TfdsSource:
  """A `Source`: examples of one split, their features under our names."""

  name: str  # for errors
  records: Any  # a TFDS data source
  features: tuple[tuple[str, str], ...]  # (our name, feature)
  rate: int = 0  # samples a second of its recordings, where they do not say

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, index: int) -> Example:
    try:
      record = self.records[index]
      example = {
        ours: record[feature] if ours in _MEDIA else _plain(record[feature]) for ours, feature in self.features
      }
      if "answers" in example:
        example["answers"] = [dict(zip(example["answers"], each)) for each in zip(*example["answers"].values())]
    except Exception as error:  # a damaged record, or text that is not UTF-8
      raise UserError(f"{self.name}: example {index} cannot be read: {error}") from None
    if example.get("label") == -1:  # how TFDS marks a hidden label
      raise HiddenLabel(f"{self.name}: example {index} has no label (-1); this split was published without")
    if _MEDIA & example.keys():
      example["where"] = f"{self.name}: example {index}"
    if AUDIO.field in example and self.rate:
      example[RATE] = self.rate
    return example


def _plain(value: Any) -> Any:
  if isinstance(value, bytes):
    return value.decode("utf-8")
  if isinstance(value, dict):
    return {key: _plain(one) for key, one in value.items()}
  if isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim):
    return [_plain(one) for one in value]
  return value.item() if hasattr(value, "item") else value


def open_packaged(name: str, named: Named) -> Dataset:
  """A data set of `peftjax.data.sources.packaged`, prepared if need be."""
  return _open(f"packaged:{name}", prepared_builder(name), named)


def packaged_header(name: str, named: Named) -> Header:
  """The header of a packaged data set, whether or not it is prepared: what its builder says of itself."""
  builder = builder_of(name)
  chosen = _choose(name, dict(builder.info.features or {}), named)
  return _header(f"packaged:{name}", builder, chosen, named)


def open_tfds(name: str, named: Named) -> Dataset:
  """A prepared TFDS data set, by name (under ``$TFDS_DATA_DIR`` or ``~/tensorflow_datasets``) or by its folder.

  Raises:
    UserError: unknown, not prepared, or not prepared as array_record.
  """
  import tensorflow_datasets as tfds

  root = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
  try:
    if (Path(name) / "dataset_info.json").is_file():
      check_folder(Path(name))
      builder = tfds.builder_from_directory(name)
    else:
      check_below(root, name)
      builder = tfds.builder(name, data_dir=str(root))
  except UserError:
    raise
  except Exception as error:  # whatever its parsers raise of a damaged folder
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise UserError(f"data.name=tfds:{name}: {first_line}") from None
  if not builder.is_prepared():
    raise NotHere(
      f'data.name=tfds:{name} is not prepared in {root}; run python -c "import tensorflow_datasets as tfds; '
      f"tfds.builder({name!r}, file_format='array_record').download_and_prepare()\""
    )
  if "array_record" not in str(builder.info.file_format.value):
    raise UserError(
      f"data.name=tfds:{name} is prepared as {builder.info.file_format.value}, which has no random access; "
      "prepare it with file_format='array_record'"
    )
  return _open(f"tfds:{name}", builder, named)


def _open(name: str, builder: tfds.core.DatasetBuilder, named: Named) -> Dataset:
  chosen = _choose(name, dict(builder.info.features or {}), named)

  def read(split: str) -> Source:
    import tensorflow_datasets as tfds

    kept = {chosen[IMAGES.field]: tfds.decode.SkipDecoding()} if IMAGES.field in chosen else None  # as files
    rate = (
      int(getattr(builder.info.features[chosen[AUDIO.field]], "sample_rate", 0) or 0) if AUDIO.field in chosen else 0
    )
    return TfdsSource(f"{name} {split}", builder.as_data_source(split, decoders=kept), tuple(chosen.items()), rate)

  header = _header(name, builder, chosen, named)
  identity = {"files": _file_hashes(Path(builder.data_path)), "columns": sorted(chosen.items())}
  return Dataset(**vars(header), identity=identity, read=read)


def _header(name: str, builder: tfds.core.DatasetBuilder, chosen: dict[str, str], named: Named) -> Header:
  """The header of a builder's data, through the columns `chosen`; no splits where it is not prepared.

  Raises:
    UserError: more is named than `chosen` reads.
  """
  features = dict(builder.info.features or {})
  target = features.get(chosen.get("label") or chosen.get("tags", ""))
  medium = next((one for one in MEDIA if one.field in chosen), None)
  labelled = TEXT_CLASSIFICATION if medium is None else medium.task
  unlabelled = CAUSAL_LM if medium is None else SPEECH_RECOGNITION if medium is AUDIO and "text" in chosen else ""
  kinds = {
    "question": QUESTION_ANSWERING,
    "tokens": TOKEN_CLASSIFICATION,
    "source": SEQ2SEQ_LM,
    "label": labelled,
  }
  label_names = tuple(getattr(getattr(target, "feature", target), "names", None) or ())
  kind = "class" if label_names else "number" if "label" in chosen else ""
  named.check_read(name, chosen.values(), labels="" if "tags" in chosen else kind)
  return Header(
    name=name,
    task=next((kind for column, kind in kinds.items() if column in chosen), unlabelled),
    label_names=label_names,
    splits={split: info.num_examples for split, info in builder.info.splits.items() if info.num_examples},
    columns=tuple(features),
    fields=tuple(chosen),
    label_kind="tags" if "tags" in chosen else kind,
  )


def _choose(name: str, features: dict[str, Any], named: Named) -> dict[str, str]:
  """Our name -> the feature that holds it."""
  import tensorflow_datasets as tfds

  def of(kind: type, sequence: bool = False) -> list[str]:
    inner = {key: getattr(one, "feature", None) if sequence else one for key, one in features.items()}
    return [key for key, one in inner.items() if isinstance(one, kind)]

  asked = named.text.split(",") if named.text else []
  for column in filter(None, [*asked, named.label, named.source, named.target, named.image, named.audio]):
    if column not in features:
      raise UserError(f"{name} has no column {column!r}; {nearest(column, features)}")
  if {"question", "context", "answers"} <= features.keys() and not asked and not named.source:
    return {column: column for column in QUESTION_COLUMNS if column in features}
  words, texts = of(tfds.features.Text, sequence=True), of(tfds.features.Text)
  tags, classes = of(tfds.features.ClassLabel, sequence=True), of(tfds.features.ClassLabel)
  has_pair = set(SOURCE_NAMES) & set(texts) and set(TARGET_NAMES) & set(texts)
  if named.source or named.target or (has_pair and not asked and not named.label):
    usual = {"source": SOURCE_NAMES, "target": TARGET_NAMES}
    return {ours: _one(name, ours, getattr(named, ours), texts, names) for ours, names in usual.items()}
  if words and tags and (not asked or asked[0] in words):
    tokens = asked[0] if asked else words[0]
    return {"tokens": tokens, "tags": _one(name, "label", named.label, tags, ("tags", "ner"))}
  numbers = [key for key, one in features.items() if one.shape == () and np.issubdtype(one.np_dtype, np.floating)]
  fitting = classes + (numbers if named.label else [])
  pictures = of(tfds.features.Image)
  if named.image or (pictures and not asked and not texts):
    chosen = {IMAGES.field: _one(name, "image", named.image, pictures, ("image",))}
    chosen |= {"text": asked[0]} if asked else {}
    return chosen | ({"label": _one(name, "label", named.label, fitting, ("label",))} if named.label or classes else {})
  sounds = [key for key, one in features.items() if _is_sound(key, one)]
  if named.audio or (sounds and not named.source):
    chosen = {AUDIO.field: _one(name, "audio", named.audio, sounds, ("audio", "speech"))}
    chosen |= {RATE: RATE} if RATE in features else {}
    if named.label or (classes and not asked):
      return chosen | {"label": _one(name, "label", named.label, fitting, ("label",))}
    return chosen | (
      {"text": asked[0] if asked else _one(name, "text", "", texts, TEXT_NAMES)} if asked or texts else {}
    )
  chosen = {"text": asked[0] if asked else _one(name, "text", "", texts, TEXT_NAMES)}
  pair = asked[1:] or ([] if asked else [column for column in PAIR_NAMES if column in texts])
  chosen |= {"text_pair": pair[0]} if pair else {}
  if named.label or classes:
    chosen["label"] = _one(name, "label", named.label, fitting, ("label",))
  return chosen


def _is_sound(key: str, feature: Any) -> bool:
  import tensorflow_datasets as tfds

  if isinstance(feature, tfds.features.Audio):
    return True
  return key in ("audio", "speech") and type(feature) is tfds.features.Tensor and len(feature.shape) in (1, 2)


def _one(name: str, what: str, column: str, fitting: list[str], usual: Iterable[str]) -> str:
  """The column asked for, the one with a usual name, or the only one that fits."""
  if column:
    if column not in fitting:
      raise UserError(f"{name}: column {column!r} cannot be the {what}; {nearest(column, fitting)}")
    return column
  found = [one for one in usual if one in fitting] or fitting
  if len(found) != 1 and not set(usual) & set(found):
    raise UserError(f"{name}: which column is the {what}? Set data.{what}_column to one of {', '.join(fitting)}")
  return found[0]


def _file_hashes(folder: Path) -> dict[str, str]:
  """What TFDS writes about the data. Two preparations of the same data differ in their record files' bytes."""
  described = [path for path in sorted(folder.iterdir()) if path.suffix in (".json", ".txt")]
  return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in described}
