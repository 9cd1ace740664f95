"""What can be done with each method's adapters, and if not, why not: one answer for code, errors and documentation.

>>> from peftjax import methods
>>> can(methods.LoRA(), "merge"), can(methods.Prompt(), "merge")
(True, "prompt cannot be merged: it is not a change of the base's weights")
"""

from __future__ import annotations

from collections.abc import Sequence

from peftjax.errors import UserError, nearest
from peftjax.methods.actors import has_delta
from peftjax.methods.base import Method

ABILITIES = ("merge", "convert", "combine", "mixed_batch")


def can(method: Method, ability: str) -> bool | str:
  """True, or the reason why the ability is missing; of a combination that of its first part that lacks it.

  Args:
    method: with its settings.
    ability: merge (into the base), convert (to LoRA), combine (weighted, several into one), mixed_batch (every example
      of a batch names its adapter).
  """
  if ability not in ABILITIES:
    raise UserError(f"no ability {ability!r}; {nearest(ability, ABILITIES)}")
  return _answer(method.parts, ability)


def check(methods: Sequence[Method], ability: str) -> None:
  """Raises the reason as a `UserError` if methods together lack the ability."""
  answer = _answer(methods, ability)
  if answer is not True:
    raise UserError(str(answer))


def _answer(parts: Sequence[Method], ability: str) -> bool | str:
  adding = [part for part in parts if part.leaf_names]
  if ability in ("convert", "combine"):
    parts = adding or parts  # what a mask trains is in the base, and stays there
  return next((reason for part in parts if (reason := _reason(part, ability))), True)


def _reason(method: Method, ability: str) -> str:
  adds = bool(method.leaf_names)
  if ability == "merge":
    return "" if has_delta(method) or not adds else _NOT_WEIGHTS.format(method.name)
  if ability == "mixed_batch":
    return "" if method.name != "full" else _FULL
  if not adds:
    return _IN_PLACE.format(method.name)
  if not has_delta(method):
    return _NO_DELTA.format(method.name)
  return ""


_NOT_WEIGHTS = "{} cannot be merged: it is not a change of the base's weights"
_IN_PLACE = "{} adds no leaves: it trains the base's own in place, so that nothing tells the change apart from the base"
_NO_DELTA = "{} has no low-rank form: it is not a change of the base's weights"
_FULL = "full trains every leaf of the base: a batch of several such models shares nothing"
