"""Captions that stand for every picture of a data set; "{label}" in one stands for the name of the picture's class."""

from __future__ import annotations

from typing import Any

from peftjax.data.sources.types import Example, Header
from peftjax.errors import UserError


def check_caption(field: str, caption: Any, header: Header) -> None:
  """Raises a `UserError` unless it is a text that stands for every picture of the data."""
  if not isinstance(caption, str) or not caption:
    raise UserError(
      f"{field}={caption!r:.60}: pictures of {header.name} have no texts; set it, such as 'a photo of a {{label}}'"
    )
  check_label(field, caption, header)


def check_label(field: str, caption: str, header: Header) -> None:
  """Raises a `UserError` if it names the picture's class, and the pictures have none."""
  if "{label}" in caption and not header.label_names:
    raise UserError(f"{field}={caption!r:.60}: the pictures of {header.name} have no classes")


def captioned(caption: str, example: Example, header: Header) -> str:
  """What a template says of an example."""
  return with_label(caption, header.label_names[int(example["label"])]) if "{label}" in caption else caption


def with_label(caption: str, name: str) -> str:
  """A template with a class's name.

  >>> with_label("a photo of a {label}", "polar_bear")
  'a photo of a polar bear'
  """
  return caption.replace("{label}", name.replace("_", " "))
