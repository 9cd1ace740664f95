"""What one can do with an adapter once there is one, written once for all methods.

Merge it into the base and take it out, scale and disable it, hold several by name, combine some into one, convert one
to LoRA, and run batches in which every example names its own.
"""

from peftjax.adapters.abilities import ABILITIES, can
from peftjax.adapters.adapter import Adapter, disabled, put, scaled, take
from peftjax.adapters.combining import combine
from peftjax.adapters.converting import Converted, to_lora
from peftjax.adapters.merging import deltas, merge, unmerge
from peftjax.adapters.named import Bank
from peftjax.adapters.stacking import mixed, split, summed

__all__ = [
  "ABILITIES",
  "Adapter",
  "Bank",
  "Converted",
  "can",
  "combine",
  "deltas",
  "disabled",
  "merge",
  "mixed",
  "put",
  "scaled",
  "split",
  "summed",
  "take",
  "to_lora",
  "unmerge",
]
