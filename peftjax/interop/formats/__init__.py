"""The registry: one `Format` a method. A new one is an entry in a file here and, for a new file, a name below."""

from __future__ import annotations

from peftjax.interop.formats import lora, prompts, scaling, shared
from peftjax.interop.formats.base import Format

FORMATS: tuple[Format, ...] = (*lora.FORMATS, *scaling.FORMATS, *shared.FORMATS, *prompts.FORMATS)
