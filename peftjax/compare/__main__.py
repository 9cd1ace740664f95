"""`python -m peftjax.compare D ...` writes the conclusions and reports of kept studies again; nothing is trained.

``--trust=module:NAME`` names an own dimension that a study's config.json may name.
"""

from __future__ import annotations

import sys
from pathlib import Path

from peftjax.compare.study import conclude_again
from peftjax.errors import UserError


def main(arguments: list[str]) -> int:
  """Exit code 2 if a folder keeps no study."""
  trusted = [one.removeprefix("--trust=") for one in arguments if one.startswith("--trust=")]
  try:
    for folder in (one for one in arguments if not one.startswith("--trust=")):
      conclude_again(folder, trusted)
      print(Path(folder) / "report.html")
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
