"""``python -m peftjax.data [NAME ...]``: prepares packaged data sets (all, if none is named) and lists their sizes."""

from __future__ import annotations

import sys

from peftjax.data.sources.packaged import PACKAGED, prepared_builder
from peftjax.errors import UserError


def main(names: list[str]) -> int:
  """Prints ``name split=count ...`` of each data set; 2 if one cannot be had, after all others."""
  failed = False
  for name in names or PACKAGED:
    try:
      splits = prepared_builder(name).info.splits
    except UserError as error:
      print(f"error: {error}", file=sys.stderr)
      failed = True
    else:
      print(name, *(f"{split}={info.num_examples}" for split, info in splits.items()))
  return 2 if failed else 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
