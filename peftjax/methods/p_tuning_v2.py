"""P-tuning v2 (Liu et al. 2021, arXiv 2110.07602): deep prompts, a prefix without a network in every layer."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from peftjax.errors import UserError
from peftjax.methods.prefix import Prefix


@dataclasses.dataclass(frozen=True, kw_only=True)
class PTuningV2(Prefix):
  """A prefix of each layer's own keys and values, without a network.

  The paper trains it with a classification head and finds short prompts enough for simple tasks.
  """

  name: ClassVar[str] = "p_tuning_v2"

  num_virtual_tokens: int = 16

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.reparametrize:
      raise UserError("p_tuning_v2 has no network; use prefix with reparametrize=True")
