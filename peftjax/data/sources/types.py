"""The protocol of a source: a header, and examples by number."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from peftjax.errors import UserError, nearest

TEXT_CLASSIFICATION = "text_classification"
IMAGE_CLASSIFICATION = "image_classification"
AUDIO_CLASSIFICATION = "audio_classification"
SPEECH_RECOGNITION = "speech_recognition"
TOKEN_CLASSIFICATION = "token_classification"
CAUSAL_LM = "causal_lm"
SEQ2SEQ_LM = "seq2seq_lm"
QUESTION_ANSWERING = "question_answering"
CONTRASTIVE = "contrastive"
DENOISING = "denoising"
OBJECT_DETECTION = "object_detection"


class HiddenLabel(UserError):
  """An example of a split that was published without labels."""


class WrongExample(UserError):
  """An example that cannot be read.

  Attributes:
    number: of the example.
    what: what is wrong with it, as it stands behind its name.
  """

  def __init__(self, number: int, name: str, what: str):
    super().__init__(f"example {number} of {name}{what}")
    self.number, self.what, self._given = int(number), what, (number, name, what)

  def __reduce__(self) -> tuple[Any, ...]:  # from a process that reads ahead
    return type(self), self._given


class WrongRow(UserError):
  """One of several examples that cannot be read; whoever has their numbers makes a `WrongExample` of it.

  Attributes:
    row: its place among them.
  """

  def __init__(self, row: int, what: str):
    super().__init__(what)
    self.row = row


# Of examples that an input has mixed two by two: the other one's labels, and float32 [B], how much is its own.
OTHER_LABELS, OWN_SHARE = "other_labels", "own_share"

# What an example of objects in an image holds; see `Source`.
BOX_FIELDS = ("boxes", "image", "labels", "crowd", "size")

# What an example may hold beside its fields: its name in errors, and the rate of its `audio`.
BESIDE = ("where", "sampling_rate")

# What an example's label is: one of the names, any of them, a number, one of the names for each token, or unknown.
LABEL_KINDS = ("class", "classes", "number", "tags", "")

Example = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Named:
  """The columns that a user names; an empty one is found by its usual names.

  Attributes:
    image: of a picture's path.
    image_root: the folder that such paths start from; empty: the table's.
    audio, audio_root: the same of recordings.
    label_kind: what the user says that the labels are: "auto", "class", "number", "classes" or "multi_hot".
  """

  text: str = ""
  label: str = ""
  source: str = ""
  target: str = ""
  label_kind: str = "auto"
  image: str = ""
  image_root: str = ""
  audio: str = ""
  audio_root: str = ""

  def check_read(self, where: str, columns: Iterable[str] = (), roots: Iterable[str] = (), labels: str = "") -> None:
    """Holds what a user names against what a source reads.

    Args:
      where: opens the line of an error: the data set, or its first row.
      columns: those that are read.
      roots: of `image_root` and `audio_root`, those that paths start from.
      labels: what the labels are; empty: a user may not say.

    Raises:
      UserError: something is named that is not read.
    """
    read = [one for one in columns if one]
    for kind in ("text", "label", "source", "target", "image", "audio"):
      for column in filter(None, getattr(self, kind).split(",") if kind == "text" else (getattr(self, kind),)):
        if column not in read:
          which = f"what is read is {', '.join(read)}" if read else "it is read without naming columns"
          raise UserError(f"{where}: data.{kind}_column={column!r} is not read; {which}")
    for root in ("image_root", "audio_root"):
      if getattr(self, root) and root not in roots:
        raise UserError(f"{where}: data.{root}={getattr(self, root)!r} is not read: no path starts from it")
    if self.label_kind not in ("auto", labels):
      has = f"its labels are of the kind {labels!r}" if labels else "its labels are of no kind that could be named"
      raise UserError(f"{where}: data.label_kind={self.label_kind!r} is not read: {has}")


class Source(Protocol):
  """Examples by number, as grain reads them.

  An example is a dict of what was stored; which names, `Header.fields` says. Of text it has `text` str and perhaps
  `text_pair` str, or `tokens` list of str; and `label` (int, float, or [C] float32 of zeros and ones), or `tags`, an
  int for each token; or neither. Of a picture it has `image`, the bytes of its file or a uint8 array [H, W, channels],
  and `where`, which names it in errors; of the objects in it, `boxes` float32 [n, 4] (x0, y0, x1, y1) in its pixels,
  `labels` int32 [n], `crowd` bool [n], of boxes around several objects, and `size` (height, width); perhaps `text`, its
  caption, and the same three of a second picture behind "prior_". Of sound it has `audio`, the bytes of its file or an
  array [samples] or [samples, channels] with its `sampling_rate`, `where`, and perhaps `text`, what is said in it. Or
  it has `source` and `target`, str, or `messages`, a list of {"role", "content"}; or `id`, `question` and `context`,
  str, and `answers`, a list of {"text", "answer_start"}, empty if the context has none.
  """

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Example: ...


@dataclasses.dataclass(frozen=True)
class Header:
  """What is known of a data set before an example is read.

  Attributes:
    name: the string it was opened by.
    task: "text_classification", "token_classification", "image_classification", "audio_classification";
      "speech_recognition" of recordings and what is said in them; "seq2seq_lm" of a source and a target,
      on which a causal language model can be trained, too; "causal_lm" of conversations and of texts without labels;
      "question_answering"; "contrastive" of pairs that belong together; "object_detection"; "denoising" of pictures to
      be learned as they are; empty: the data does not say.
    label_names: the label with number i at place i; empty where numbers are predicted or nothing is.
    splits: split name -> number of examples.
    columns: all columns that the data has.
    fields: what its examples hold, under our names, such as ("text", "label").
    label_kind: one of `LABEL_KINDS`.
    most_boxes: of objects in images, the most that one has.
  """

  name: str
  task: str = ""
  label_names: tuple[str, ...] = ()
  splits: Mapping[str, int] = dataclasses.field(default_factory=dict)
  columns: tuple[str, ...] = ()
  fields: tuple[str, ...] = ()
  label_kind: str = ""
  most_boxes: int = 0

  def __post_init__(self) -> None:
    if self.label_kind not in LABEL_KINDS:
      known = nearest(self.label_kind, [one for one in LABEL_KINDS if one])
      raise UserError(f"{self.name!r} has label_kind={self.label_kind!r}; {known}")
    if not isinstance(self.splits, Mapping):
      raise UserError(
        f"{self.name!r} has splits={self.splits!r:.60}; expected a dict from each to its number of examples"
      )
    for field in ("fields", "label_names", "columns"):
      if isinstance(given := getattr(self, field), str):
        raise UserError(f"{self.name!r} has {field}={given!r}; expected a tuple of texts, such as ({given!r},)")

  @property
  def header(self) -> Header:
    """The header alone, which pickles."""
    return Header(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Header)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset(Header):
  """What `open_data` gives: a header, and the examples.

  Attributes:
    identity: what `fingerprint` hashes; {}: nothing is known of what the data holds, and nothing measured is kept.
    read: split name -> source.
    notes: lines for the log: what was decided that the data does not say.
    own: of a source of the user's own what `open_data` sets: how it is named, ``module:Name[:REST]``.
  """

  identity: Mapping[str, Any]
  read: Callable[[str], Source]
  notes: tuple[str, ...] = ()
  own: str = ""

  def split(self, name: str) -> Source:
    """The examples of one split.

    Raises:
      UserError: no such split.
    """
    if name not in self.splits:
      raise UserError(f"{self.name} has no split {name!r}; {nearest(name, self.splits)}")
    return self.read(name)

  def fingerprint(self) -> str:
    """Hex sha256: equal for equal data read through the same columns, wherever it lies."""
    return self._fingerprint

  @functools.cached_property
  def _fingerprint(self) -> str:
    return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()
