"""The protocol of an input: how one example becomes arrays, and several a batch.

An input of your own is a class derived from `Input` that has `spec` and `encode`; `examples/spectra` has one.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from peftjax import own_digest
from peftjax.config.checking import own_settings
from peftjax.config.table import FIELDS
from peftjax.data.batching import TrainingOrder
from peftjax.data.inputs.labels import labels_of
from peftjax.data.reading import Reader, Share
from peftjax.data.sources.types import Example, Header, WrongExample, WrongRow
from peftjax.errors import UserError
from peftjax.own_code import NOT_OF_CODE, said

if TYPE_CHECKING:
  from peftjax.data.measuring import Measured
  from peftjax.model import Model
  from peftjax.tasks import Task

Batch = dict[str, np.ndarray]
Shapes = dict[str, jax.ShapeDtypeStruct]
Random = np.random.Generator | None

# Fields of `config.data`, some of `config.input` too, that say how texts become arrays
HOW = ("max_length", "buckets", "max_target_length", "format", "prefix", "separator", "packing")
IGNORED = -100  # the label of what carries none


@dataclasses.dataclass(frozen=True)
class Sizes:
  """What encoding some examples shows.

  Attributes:
    lengths: [r] int32, the places (tokens, frames) that each row needs room for.
    cut: examples that did not fit.
    lost: what training was to learn and nothing carries any more: words with a tag; responses that are cut off whole.
    counts: [n] int32, the rows that each example gives, such as the windows of a long document; None: one each.
  """

  lengths: np.ndarray
  cut: int = 0
  lost: int = 0
  counts: np.ndarray | None = None


class Input:
  """How examples become arrays: what a kind of input overrides is `spec` and `encode`, and what else it needs.

  Objects pickle, for the processes that read ahead, and open what they need from the model's folder when they first
  need it: `spec` works where there is a config.json alone.

  Attributes:
    settings: fields of `config.input` -> their defaults.
    fills: array -> what its places are filled with where an example is shorter than its row; 0 without.
    unit: what one place of a row holds, such as "token" or "frame"; "" for inputs of one size.
    measures_all: whether the rows of an epoch follow from the lengths of all examples together; without, those of large
      splits are measured as they come.
    config: the run's.
    header: of the data.
    task: what the batches are for.
    options: the settings with what `config.input` says.
    folder: the model's.
  """

  settings: ClassVar[Mapping[str, Any]] = {}
  fills: ClassVar[Mapping[str, Any]] = {"labels": IGNORED}
  unit: ClassVar[str] = ""
  measures_all: ClassVar[bool] = False

  def __init__(self, config: ConfigDict, header: Header, task: Task, folder: Path | None = None):
    given = {name: value for name, value in config.input.items() if name != "name"}
    self.options = own_settings("input", given, self.settings, type(self))
    self.config, self.header, self.task, self.folder = config, header.header, task, folder

  @property
  def reads(self) -> Collection[str]:
    """Those of `HOW` that mean something to it and these data."""
    return tuple(name for name in HOW if name in self.settings)

  def check_read(self) -> None:
    """Holds the config against what this input reads of these data.

    Raises:
      UserError: a field of `HOW` that it does not read has another value than its default.
    """
    sections = {"input": {**self.settings, **self.options.to_dict()}, "data": self.config.data}
    for section, name in itertools.product(sections, HOW):
      value, default = sections[section].get(name, None), FIELDS[f"data.{name}"].default
      if value not in (None, default) and name not in self.reads:
        given, read = f"{section}.{name}={value!r:.60}", ", ".join(self.reads) or "none of its kind"
        where = f"where {self.task.name} is trained on {self.header.name}"
        raise UserError(f"{given}: {type(self).__name__} does not read it {where}; it reads {read}")

  # What a kind says -----------------------------------------------------------------------------------------------

  def spec(self, rows: int, length: int) -> Shapes:
    """The arrays that `encode` gives, as they stand in a batch of `rows` examples; `length` is 0 for inputs of one
    size."""
    raise NotImplementedError

  def encode(self, example: Example, rng: Random) -> Batch:
    """One example's arrays, shaped as a row of `spec`, or shorter along the axes that its `length` changes.

    Args:
      example: where `sizes` counts several rows of each example, its "part" says which of them is wanted.
      rng: for augmentation: a function of (seed, epoch, example) in training, None in evaluations.
    """
    raise NotImplementedError

  @property
  def buckets(self) -> tuple[int, ...]:
    """The lengths that rows are filled up to, ascending, one compilation each; () for inputs of one size, whose
    examples are never measured."""
    return ()

  def length(self, example: Example) -> int | None:
    """The places that an example needs, also where it has more than the last bucket and `encode` cuts it; None for
    inputs of one size."""
    del example
    return None

  def places(self, batch: Mapping[str, np.ndarray]) -> int:
    """How many of a batch's places hold something (`unit`s), for the log's rate; not asked of inputs without a unit."""
    del batch
    return 0

  @property
  def length_setting(self) -> str:
    """The setting that says the greatest length, with its value, for messages; "" for inputs of one size."""
    return ""

  def fingerprint(self) -> str:
    """Hex digest, equal where equal examples (and random numbers) give equal batches."""
    return hashlib.sha256(repr((type(self).__qualname__, sorted(self.options.items()))).encode()).hexdigest()

  def check(self, model: Model) -> None:
    """Raises `UserError` if the model cannot read what this gives."""

  @classmethod
  def exported(cls, folder: Path) -> dict[str, Any]:
    """Fields of an exported config.json that others read such inputs by, from what else the model's folder holds."""
    del folder
    return {}

  # What loaders ask -----------------------------------------------------------------------------------------------

  def label_spec(self, rows: int) -> Shapes:
    """`labels` of examples whose `label` is a class [rows] int32, several classes [rows, C] float32 or a number."""
    header = self.header
    kind = header.label_kind or ("class" if header.label_names else "number" if "label" in header.fields else "")
    if ("label" not in header.fields and header.fields) or kind not in ("class", "classes", "number"):
      return {}
    shape = (rows, len(header.label_names)) if kind == "classes" else (rows,)
    return {"labels": jax.ShapeDtypeStruct(shape, np.dtype(np.int32 if kind == "class" else np.float32))}

  def batch_spec(self, rows: int, length: int = 0) -> Shapes:
    """All arrays of a batch, as shapes; `length` 0 is the greatest."""
    whole = {"index": jax.ShapeDtypeStruct((rows,), np.dtype(np.int32))}
    whole["weight"] = jax.ShapeDtypeStruct((rows,), np.dtype(np.float32))
    own = self.spec(rows, length or max(self.buckets, default=0))
    for name, one in own.items() if isinstance(own, Mapping) else {"": own}.items():
      if not isinstance(one, jax.ShapeDtypeStruct) or one.shape[:1] != (rows,):
        what = f"{name} {one!r:.80}" if name else f"{one!r:.80}"
        raise UserError(f"{type(self).__name__}.spec gave {what}; expected a dict from the name of each array to a "
                        f"jax.ShapeDtypeStruct, whose shape begins with the number of rows, here {rows}")  # fmt: skip
    return whole | self.label_spec(rows) | own

  def batch(self, examples: Sequence[Example], ids: np.ndarray, length: int, rngs: Iterable[Random]) -> Batch:
    """The batch of some examples, with `index` [B] int32 and `weight` [B] float32.

    Args:
      examples: those of the rows whose id is not negative; where examples give several rows, each with its "part" and
        its "example", the id that is the row's `index`.
      ids: [B] ids of examples, or of rows; negative at the end, for rows that fill up and have weight 0.
      length: of the rows; 0 for inputs of one size.
      rngs: of the examples.
    """
    own = example_ids(examples, ids)
    try:
      batch = self.collate(self._encoded_each(examples, rngs), len(ids), length)
    except WrongRow as error:
      raise WrongExample(own[error.row], self.header.name, f": {error}") from error.__cause__
    return self.labelled(batch, examples, own) | weight_and_index(own)

  def _encoded_each(self, examples: Sequence[Example], rngs: Iterable[Random]) -> list[Batch]:
    if own_digest.is_packaged(type(self)):
      return [self.encode(one, rng) for one, rng in zip(examples, rngs)]
    return _each(self.encode, zip(examples, rngs))

  def labelled(self, batch: Batch, examples: Sequence[Example], ids: np.ndarray) -> Batch:
    """The batch with the `labels` of `label_spec`, unless it has its own.

    Raises:
      WrongExample: an example without a label, or with one that is none of the header's.
    """
    if "labels" in batch:
      return batch
    labels = {name: np.zeros(one.shape, one.dtype) for name, one in self.label_spec(len(ids)).items()}
    for array in labels.values():
      array[: len(examples)] = labels_of(self.header, examples, ids, array.shape[1:], array.dtype.kind)
    return batch | labels

  def collate(self, encoded: Sequence[Batch], rows: int, length: int) -> Batch:
    """`rows` rows: the encoded examples, filled up where they are shorter than `spec`, then rows of nothing else."""
    shapes = self.spec(rows, length)
    batch = {name: np.full(one.shape, self.fills.get(name, 0), one.dtype) for name, one in shapes.items()}
    whole, shorter = self._is_own, self._may_be_shorter
    for row, example in enumerate(encoded):
      is_dict = isinstance(example, Mapping)
      if not is_dict or example.keys() - shapes.keys() or (whole and len(example) < len(shapes)):
        given = ", ".join(map(str, example)) or "{}" if is_dict else type(example).__name__
        raise WrongRow(row, f"{type(self).__name__}.encode gave {given}; its spec has {', '.join(shapes)}")
      for name, array in example.items():
        if not _fits(array, shapes[name], shorter.get(name)):
          given, wanted = _differing(array, shapes[name])
          what = f"{type(self).__name__}.encode gave {name} {given}; a row of its spec has {name} {wanted}"
          raise WrongRow(row, what)
        place: tuple[Any, ...] = (row, *(slice(size) for size in np.shape(array)))
        batch[name][place] = array
    return batch

  @functools.cached_property
  def _is_own(self) -> bool:
    """Whether all arrays are made by the user's own code: what an input of this package leaves out, `batch` adds, or
    there is none of it in an evaluation."""
    return not any(own_digest.is_packaged(one) for one in (type(self).spec, type(self).encode))

  @functools.cached_property
  def _may_be_shorter(self) -> dict[str, tuple[bool, ...]]:
    """Of each array of the user's own: along which axes of its row an example may be shorter."""
    if not self._is_own:
      return {}
    last = max(self.buckets, default=0)
    one, other = (self.spec(1, length) for length in (last, min(self.buckets) if len(self.buckets) > 1 else 2 * last))
    return {name: tuple(map(operator.ne, one[name].shape[1:], other[name].shape[1:])) for name in one if name in other}

  def sizes(self, examples: Sequence[Example]) -> Sizes:
    """What examples need; asked only where there are `buckets`."""
    try:
      lengths = np.array(_each(self.length, ((one,) for one in examples)))
    except ValueError:
      lengths = np.array([None])
    if examples and (lengths.dtype.kind not in "iu" or lengths.ndim != 1 or (lengths < 0).any()):
      wrong = next((one for one in map(self.length, examples) if not _is_count(one)), None)
      what = f"{type(self).__name__} has buckets, and its length gave {wrong!r:.40}"
      raise UserError(f"{what}; expected the places of an example, a whole number")
    last = self.buckets[-1]
    return Sizes(np.minimum(lengths, last).astype(np.int32), int((lengths > last).sum()))

  def training(self) -> Input:
    """What makes training batches; evaluations are made by the input itself."""
    return self

  def order(self, ids: np.ndarray, lengths: np.ndarray, batch_size: int, seed: int) -> Any:
    """The batches of every epoch (`peftjax.data.batching.TrainingOrder`) over the training examples `ids`."""
    return TrainingOrder(ids, lengths, batch_size, self.buckets or (0,), seed)

  def reader(self, source: Any, share: Share, seed: int, order: Any) -> Any:
    """What reads the batches in their order."""
    del order
    return Reader(source, self, share, seed)

  def identity(self) -> dict[str, Any]:
    """What must be equal for a saved position in the data to fit, ready for JSON."""
    return {"input": self.fingerprint()}

  def notes(self, measured: Measured | None) -> list[str]:
    """Lines for the log about what of the training data does not reach the model.

    Raises:
      UserError: nothing does.
    """
    if measured is None or not measured.cut:
      return []
    count = len(measured.lengths if measured.counts is None else measured.counts)
    at = f"{self.buckets[-1]} {self.unit or 'place'}s" + (f" ({self.length_setting})" if self.length_setting else "")
    return [f"train: {measured.cut:,} of {count:,} examples ({measured.cut / count:.1%}) are cut at {at}"]


def _each(function: Callable[..., Any], examples: Iterable[tuple[Any, ...]]) -> list[Any]:
  """What a function of the user's own gives for each example.

  Raises:
    WrongRow: it fails on one.
  """
  found: list[Any] = []
  try:
    found.extend(function(*one) for one in examples)  # what came before a failure stays
  except NOT_OF_CODE:
    raise
  except Exception as error:
    raise WrongRow(len(found), said(error)) from error
  return found


def _is_count(given: Any) -> bool:
  return np.asarray(given).dtype.kind in "iu" and np.ndim(given) == 0 and given >= 0


def _fits(array: Any, spec: jax.ShapeDtypeStruct, shorter: Sequence[bool] | None) -> bool:
  """Whether an example's array is a row of the spec, or shorter along some axes; None: along any."""
  try:
    shape, row = np.shape(array), spec.shape[1:]
  except ValueError:  # lists of several lengths
    return False
  fits = len(shape) == len(row) and all(map(operator.le, shape, row))
  if fits and shorter is not None and shape != row:
    fits = all(may or size == full for may, size, full in zip(shorter, shape, row, strict=True))
  return fits and _holds(spec.dtype, array)


def _differing(array: Any, spec: jax.ShapeDtypeStruct) -> tuple[str, str]:
  """(an array, a row of its spec) as an error shows them: shapes, and dtypes where those do not fit."""
  row = list(spec.shape[1:])
  try:
    held, shape = _holds(spec.dtype, array), list(np.shape(array))
  except ValueError:
    return "as lists of several lengths", f"{row}"
  return (f"{shape}", f"{row}") if held else (f"{np.asarray(array).dtype}{shape}", f"{spec.dtype}{row}")


def _holds(dtype: Any, array: Any) -> bool:
  """Whether a dtype keeps what an array has: fractions are lost in whole numbers, and texts are no numbers."""
  given = np.asarray(array).dtype
  return given.kind in "biu" or (jnp.issubdtype(given, np.inexact) and jnp.issubdtype(dtype, np.inexact))


def example_ids(examples: Sequence[Example], ids: np.ndarray) -> np.ndarray:
  """[B]: the examples' own ids where `ids` are those of rows."""
  own = np.array([one.get("example", index) for one, index in zip(examples, ids)], ids.dtype)
  return np.concatenate([own, ids[len(own) :]])


def weight_and_index(ids: np.ndarray) -> Batch:
  """`weight`, 0 in rows that only fill up, and `index`, the example's id, of a batch's rows."""
  return {"weight": (ids >= 0).astype(np.float32), "index": ids.astype(np.int32)}
