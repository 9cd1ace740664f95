"""The registry: one `Format` a method. A new one is an entry in a file here and, for a new file, a name below."""

from __future__ import annotations

from peftjax.interop.formats import adalora, lora, lowrank, prompts, rotations, scaling, shared, tokens
from peftjax.interop.formats.base import Format

FORMATS: tuple[Format, ...] = (
  *lora.FORMATS,
  *adalora.FORMATS,
  *lowrank.FORMATS,
  *rotations.FORMATS,
  *scaling.FORMATS,
  *shared.FORMATS,
  *prompts.FORMATS,
  *tokens.FORMATS,
)
