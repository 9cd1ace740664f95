"""`python -m peftjax.compare D ...` writes the conclusions and reports of kept studies again; nothing is trained."""

from __future__ import annotations

import sys
from pathlib import Path

from peftjax.compare import study
from peftjax.errors import UserError


def main(folders: list[str]) -> int:
  """Exit code 2 if a folder keeps no study."""
  try:
    for folder in folders:
      study.again(folder)
      print(Path(folder) / "report.html")
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
