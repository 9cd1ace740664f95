"""peftjax: full fine-tuning and parameter-efficient fine-tuning through one code path, in JAX and Flax.

What stands here is imported when it is first asked for, so that `import peftjax` and the command line's help do not
wait for JAX.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from peftjax import adapters, masks, methods
  from peftjax.errors import UserError
  from peftjax.loading import load
  from peftjax.model import Model
  from peftjax.wrap.making import wrap

__version__ = "0.1.0"
__all__ = ["Model", "UserError", "adapters", "load", "masks", "methods", "wrap"]

_MODULES = {"Model": "model", "UserError": "errors", "load": "loading", "wrap": "wrap.making"}


def __getattr__(name: str) -> Any:
  if name not in __all__:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  module = importlib.import_module(f"{__name__}.{_MODULES.get(name, name)}")
  return getattr(module, name) if name in _MODULES else module


class _Package(types.ModuleType):
  """The package, in which `wrap` is the function, though a room of that name sets itself in its place."""

  @property
  def wrap(self) -> Any:
    return __getattr__("wrap")

  @wrap.setter
  def wrap(self, module: types.ModuleType) -> None:
    del module


sys.modules[__name__].__class__ = _Package
