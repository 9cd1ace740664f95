"""What is said of a failure in a user's own code, which this package only calls."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# What fails on arrays of other shapes, dtypes or names than it expects.
FAILURES = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError)

_OTHERS = (str(Path(__file__).parent), *(sysconfig.get_paths()[one] for one in ("stdlib", "purelib", "platlib")))


def shown(tree: Any) -> str:
  """Shapes and dtypes as an error shows them.

  >>> import numpy as np
  >>> shown({"logits": np.zeros((4, 3), np.float32)}), shown(None)
  ("{'logits': float32[4, 3]}", 'None')
  """
  if isinstance(tree, Mapping):
    return "{" + ", ".join(f"{name!r}: {shown(one)}" for name, one in tree.items()) + "}"
  if isinstance(tree, tuple | list):
    return f"({', '.join(map(shown, tree))})"
  return f"{tree.dtype}{list(tree.shape)}" if hasattr(tree, "dtype") else repr(tree)


def said(error: Exception) -> str:
  """The kind of an error, its first line, and where in the user's own files it came from."""
  frames = traceback.extract_tb(error.__traceback__)
  own = [one for one in frames if Path(one.filename).is_file() and not one.filename.startswith(_OTHERS)]
  where = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
  text = str(error).strip().splitlines()
  return f"{type(error).__name__}: {text[0] if text else ''}{where}"
