"""`check_method`: everything that docs/methods.md says of a method, computed for one's own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from peftjax.errors import UserError, nearest
from peftjax.methods import Method
from peftjax.model import Model
from peftjax.testing import bases
from peftjax.testing.claims import COLUMNS
from peftjax.testing.columns import FalseClaim, Subject, starts_as_base


def check_method(
  method: Method | type[Method],
  base: Model | None = None,
  inputs: Callable[[int], Mapping[str, Any]] | None = None,
  *,
  starts_differently: str = "",
  skip: Sequence[str] = (),
  show: bool = True,
) -> dict[str, str]:
  """Runs the columns of docs/methods.md on a method; prints and returns what each gave.

      from peftjax.testing import check_method
      check_method(MyMethod(rank=2))

  Args:
    method: with its settings, or a class whose settings all have defaults.
    base: the model to try it on, of real leaves; a tiny BERT classifier of two layers by default.
    inputs: seed -> the base's inputs of one batch, by name; needed where `base` is given.
    starts_differently: why outputs with fresh leaves are not the base's; empty: the method claims that they are.
    skip: columns to leave out, by name; see `peftjax.testing.COLUMNS`.
    show: print the table.

  Returns:
    Column -> cell: "yes", a figure, the names of leaves, or "no: " and the reason why the method cannot do it.

  Raises:
    FalseClaim: a column found something else than the method says of itself, with all that were found.
    UserError: the method cannot be added to the base, or `skip` names no column.
  """
  for name in skip:
    if name not in COLUMNS:
      raise UserError(f"skip: no column {name!r}; {nearest(name, COLUMNS)}")
  if base is not None and inputs is None:
    raise UserError("check_method: give the inputs of the base too, as a function of a seed")
  one = Subject(method() if isinstance(method, type) else method, base or bases.encoder(), inputs or bases.batch)
  one.fresh  # noqa: B018 (what keeps it from being added is said at once)
  found: dict[str, str] = {}
  false: dict[str, str] = {}
  for name, column in COLUMNS.items():
    if name in skip:
      continue
    try:
      found[name] = starts_as_base(one, starts_differently) if column is starts_as_base else column(one)
    except (FalseClaim, UserError) as error:
      found[name] = false[name] = f"FALSE: {error}"
  if show:
    width = max(len(name) for name in found)
    print(*(f"{name:{width}}  {cell}" for name, cell in found.items()), sep="\n", file=sys.stdout)
  if false:
    raise FalseClaim("; ".join(f"{one.name}: {name}: {said.removeprefix('FALSE: ')}" for name, said in false.items()))
  return found
