"""Packages that only some of what there is needs: the extras of ``pip install 'peftjax[EXTRA]'``."""

from __future__ import annotations

import importlib.util

from peftjax.errors import UserError


def require(what: str, package: str, extra: str) -> None:
  """Raises `UserError` unless a package can be imported.

  Args:
    what: what needs it, for the error.
    package: as it is imported, with dots where it is part of another. A folder of its name is none, such as services
      leave beside a run.
    extra: that installs it.
  """
  try:
    found = importlib.util.find_spec(package)
  except ModuleNotFoundError:  # what it is part of is not there either
    found = None
  if found is None or found.origin is None:
    raise UserError(f"{what} needs {package}: pip install 'peftjax[{extra}]'")
