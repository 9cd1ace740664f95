"""`python -m peftjax` is the same as the console script."""

import sys

from peftjax.cli import main

if __name__ == "__main__":
  sys.exit(main())
