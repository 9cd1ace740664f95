"""Hybrid tuning: several methods at once, the union of their masks.

    Hybrid(methods=(LoRA(rank=4, layers=(0, 1)), LastK(k=1)))        adapters below, full fine-tuning on top

A leaf that two methods train belongs to the group of the first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from peftjax.errors import UserError
from peftjax.methods.base import Method


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hybrid(Method):
  """A union of methods.

  Attributes:
    methods: the parts, in the order in which they act.
  """

  name: ClassVar[str] = "hybrid"

  methods: tuple[Method, ...] = ()

  def __post_init__(self) -> None:
    if not self.methods:
      raise UserError("hybrid.methods is empty; give at least two, such as ({'name': 'lora'}, {'name': 'bitfit'})")

  @property
  def parts(self) -> tuple[Method, ...]:
    return self.methods


def expand(methods: Method | Sequence[Method]) -> tuple[Method, ...]:
  """The parts of one or several methods, combinations taken apart."""
  if isinstance(methods, Method):
    parts = methods.parts
    return (methods,) if parts == (methods,) else expand(parts)
  return tuple(part for method in methods for part in expand(method))
