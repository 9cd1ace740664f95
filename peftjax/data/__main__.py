"""``python -m peftjax.data [NAME ...]``: prepares packaged data sets (all, if none is named) and lists their sizes."""

from __future__ import annotations

import sys

from peftjax.data.sources.packaged import PACKAGED, prepared_builder
from peftjax.errors import UserError


def main(names: list[str]) -> int:
  """Prints ``name split=count ...`` of each data set; 2 if a name is unknown or a package cannot be had."""
  try:
    for name in names or PACKAGED:
      splits = prepared_builder(name).info.splits
      print(name, *(f"{split}={info.num_examples}" for split, info in splits.items()))
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
