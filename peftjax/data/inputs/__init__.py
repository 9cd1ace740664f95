"""Inputs: how examples become what a model reads, one file a kind."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from peftjax import own_digest
from peftjax.data.inputs.base import Input
from peftjax.data.sources.types import Header
from peftjax.errors import UserError, nearest
from peftjax.registry import resolve

if TYPE_CHECKING:
  from peftjax.tasks import Task

# config.input.name -> class
INPUTS: dict[str, str] = {
  "audio": "peftjax.data.inputs.audio:Audio",
  "captioned_images": "peftjax.data.inputs.captioned_images:CaptionedImages",
  "boxes": "peftjax.data.inputs.boxes:Boxes",
  "image_text": "peftjax.data.inputs.image_text:ImageText",
  "images": "peftjax.data.inputs.images:Images",
  "masked_tokens": "peftjax.data.inputs.masked_tokens:MaskedTokens",
  "speech": "peftjax.data.inputs.speech:Speech",
  "text_pairs": "peftjax.data.inputs.text_pairs:TextPairs",
  "tokens": "peftjax.data.inputs.tokens:Tokens",
  "waveforms": "peftjax.data.inputs.waveforms:Waveforms",
  "windows": "peftjax.data.inputs.windows:Windows",
}

# A field of the data's examples -> the kind that reads it where neither config nor task names one.
READS: dict[str, str] = {
  "boxes": "boxes",
  "image": "images",
  "audio": "audio",
  "text": "tokens",
  "tokens": "tokens",
  "source": "tokens",
  "messages": "tokens",
  "question": "windows",
}


def input_class(name: str) -> type[Input]:
  """The class of a kind of input, by its name in `INPUTS` or as ``module:Name``.

  Raises:
    UserError: no such kind.
  """
  found: type[Input] = resolve("input.name", name, INPUTS)
  if not (isinstance(found, type) and issubclass(found, Input)):
    raise UserError(f"input.name={name!r}: expected a class derived from peftjax.data.Input")
  if found.spec is Input.spec or (found.encode is Input.encode and found.batch is Input.batch):
    raise UserError(f"input.name={name!r}: the class lacks {'spec' if found.spec is Input.spec else 'encode'}")
  if list(buckets := found.buckets if isinstance(found.buckets, tuple | list) else ()) != sorted(set(buckets)):
    raise UserError(f"input.name={name!r} has buckets={buckets}; expected lengths that rise")
  return found


def input_name(config: ConfigDict, fields: Iterable[str], asked: str) -> str:
  """The kind of input that `config.input.name`, else a task asks for, else what the data's fields; "": none reads them.

  Args:
    fields: of the data.
    asked: `Task.input`.
  """
  if config.input.name != "auto":
    return str(config.input.name)
  return asked or next((READS[one] for one in fields if one in READS), "")


def make_input(config: ConfigDict, header: Header, task: Task, folder: Path | None) -> Input:
  """The input of a run: `config.input.name`, else the task's, else that of what the data's examples hold.

  Raises:
    UserError: nothing reads the data, or a setting does not suit the input.
  """
  name = input_name(config, header.fields, task.input)
  if not name:
    held = ", ".join(header.fields) or "nothing that is known"
    raise UserError(f"input.name: which input reads {header.name!r} (it holds {held})? {nearest('', INPUTS)}, "
                    "or module:Name for your own")  # fmt: skip
  made = input_class(name)(config, header, task, folder)
  if not own_digest.is_packaged(type(made)):
    _check_buckets(made)
  return made


def _check_buckets(made: Input) -> None:
  given = made.buckets
  if not isinstance(given, tuple | list) or list(given) != sorted(set(given)) or (given and given[0] < 1):
    setting = f" with {made.length_setting}" if made.length_setting else ""
    raise UserError(f"{type(made).__name__} has buckets={given!r:.80}{setting}; expected lengths that rise, from 1 up")
