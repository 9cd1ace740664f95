"""Mistakes a user can make, said in one line: what was wrong, what was expected, the nearest right value."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
  """A mistake in a config, a file or an argument. The command line prints it as one line and exits with 2."""

  def __init__(self, message: str):
    super().__init__(" ".join(message.split()).removesuffix(";"))  # after which `nearest` had nothing to name


class NotHere(UserError):
  """Something that a config names and this machine has not."""


def nearest(wrong: str, known: Iterable[str], count: int = 3) -> str:
  """A clause that names the closest of `known` to `wrong`, or lists what there is; empty if nothing is known.

  >>> nearest("qury", ["query", "key", "value"])
  "did you mean 'query'?"
  >>> nearest("LoRA", ["lora", "dora"])
  "did you mean 'lora'?"
  >>> nearest("lola", ["lora", "loha", "full"])
  "did you mean 'lora' or 'loha'?"
  >>> nearest("zzz", ["query", "key"])
  'known: key, query'
  """
  known = sorted(set(known))
  spelled: dict[str, list[str]] = {}  # case and dashes are no difference
  for name in known:
    spelled.setdefault(_plain(name), []).append(name)
  plain = _plain(wrong[:200])
  found = [plain] if plain in spelled else difflib.get_close_matches(plain, spelled, n=count, cutoff=0.6)
  close = [name for one in found for name in spelled[one]][:count]
  if close:
    return "did you mean " + " or ".join(repr(name) for name in close) + "?"
  if not known:
    return ""
  shown = ", ".join(known[:12])
  return f"known: {shown}" + (", ..." if len(known) > 12 else "")


def _plain(name: str) -> str:
  return name.lower().replace("-", "_")
