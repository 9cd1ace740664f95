"""What is said of a failure in a user's own code, which this package only calls."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from peftjax import registry
from peftjax.errors import UserError

# What fails on arrays of other shapes, dtypes or names than it expects.
FAILURES = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError)

# What is no fault of the code: a line of its own, and what the machine does.
NOT_OF_CODE = (UserError, OSError, MemoryError)


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
  text = str(error).strip().splitlines()
  return f"{type(error).__name__}: {text[0] if text else ''}{registry.place_of(error)}"


def as_user_error(error: Exception) -> Exception:
  """A `UserError` of one line where the error came out of code that a config names, or out of a call of it with
  arguments that it does not take; any other error as it is."""
  called = re.match(r"(\w+)[\w.<>]*\(\) (takes|missing|got)", str(error)) if isinstance(error, TypeError) else None
  own = any(registry.is_own(one.filename) for one in registry.own_frames(error))
  if isinstance(error, UserError) or not (own or (called and registry.holds_own(called[1]))):
    return error
  found = UserError(f"your own code fails: {said(error)}")
  found.__cause__ = error
  return found


@contextlib.contextmanager
def failures_as_one_line() -> Iterator[None]:
  """An error of the block that came out of code that a config names becomes one line.

  Raises:
    UserError: such an error; all others are raised as they are.
  """
  try:
    yield
  except Exception as error:
    if (found := as_user_error(error)) is error:
      raise
    raise found from error
