"""How ``--config=FILE[:arg]`` and ``--config.a.b=value`` become one `ConfigDict`, and what a config may hold.

A config file is a Python file with ``get_config()`` or ``get_config(arg)`` that returns a `ConfigDict`; it usually
starts from `default()`. The sections in `OPEN` take any field that the chosen method or task (or the section's reader)
knows; every other field must be in `FIELDS`, the table in ``table.py``.
"""

from ml_collections import ConfigDict

from peftjax.config.checking import check
from peftjax.config.field import Field
from peftjax.config.making import default, fill, load, of_json
from peftjax.config.overriding import apply
from peftjax.config.table import ALIASES, DEFAULT_DATA, EMPTY, FIELDS, OPEN

__all__ = [
  "ALIASES",
  "DEFAULT_DATA",
  "EMPTY",
  "FIELDS",
  "OPEN",
  "ConfigDict",
  "Field",
  "apply",
  "check",
  "default",
  "fill",
  "load",
  "of_json",
]
