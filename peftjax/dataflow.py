"""Which inputs of a traced program its outputs depend on: a slice backwards through its equations.

Only what the program says counts, never a value: a leaf behind a gate that starts at zero is used, and one that is
multiplied by a zero written in the program is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

_KEEPS_ZERO = (
  "broadcast_in_dim", "convert_element_type", "copy", "expand_dims", "neg", "reduce_precision", "reduce_sum",
  "reshape", "rev", "slice", "squeeze", "stop_gradient", "transpose",
)  # fmt: skip
_ZERO_BY_ONE = ("conv_general_dilated", "dot_general", "mul")


def used_inputs(function: Callable[..., Any], *arguments: Any) -> list[bool]:
  """Whether any output depends on each leaf of the arguments, in the order of `jax.tree.leaves`.

  Args:
    arguments: pytrees of arrays or of shapes; nothing is computed.

  >>> used_inputs(lambda a, b, c: a + 0.0 * b + (c - c), 1.0, 2.0, 3.0)
  [True, False, False]
  """
  program = jax.make_jaxpr(function)(*arguments).jaxpr
  return _needed(program, [True] * len(program.outvars), [False] * len(program.invars))


def _needed(program: Any, wanted: Sequence[bool], zeros: Sequence[bool]) -> list[bool]:
  """Which inputs the wanted outputs depend on; `zeros`: which inputs are zero throughout."""
  zero = _zeros(program, zeros)
  live = {one for one, is_wanted in zip(program.outvars, wanted) if is_wanted and _is_variable(one) and one not in zero}
  for equation in reversed(program.eqns):
    outputs = [one in live for one in equation.outvars]
    if any(outputs):
      inside = [_is_zero(one, zero) for one in equation.invars]
      needed = _RULES.get(equation.primitive.name, _through_call)(equation, outputs, inside)
      for one, is_needed, is_zero in zip(equation.invars, needed, inside):
        if is_needed and _is_variable(one) and not is_zero:
          live.add(one)
  return [one in live for one in program.invars]


def _is_variable(one: Any) -> bool:
  return not hasattr(one, "val")


def _is_zero(one: Any, zero: set[Any]) -> bool:
  return one in zero if _is_variable(one) else not np.any(np.asarray(one.val))


def _zeros(program: Any, zeros: Sequence[bool]) -> set[Any]:
  """The variables that are zero whatever the others hold, as far as is plain; NaN and infinity aside."""
  zero = {one for one, is_zero in zip(program.invars, zeros) if is_zero}
  for equation in program.eqns:
    name, inside = equation.primitive.name, [_is_zero(one, zero) for one in equation.invars]
    if name == "sub" and _is_variable(equation.invars[0]) and equation.invars[0] is equation.invars[1]:
      found = [True]
    elif name in _ZERO_BY_ONE:
      found = [any(inside)]
    elif name in _KEEPS_ZERO or name in ("add", "sub", "add_any"):
      found = [all(inside)]
    elif name == "div":
      found = inside[:1]
    elif name not in _RULES and any(inside) and (body := _body(equation)) is not None:
      within = _zeros(body, inside)
      found = [_is_zero(one, within) for one in body.outvars]
    else:
      continue
    zero.update(one for one, is_zero in zip(equation.outvars, found) if is_zero)
  return zero


def _body(equation: Any) -> Any:
  """The program that an equation calls on its operands as they are (jit, remat, custom derivatives); None if none."""
  for value in equation.params.values():
    body = getattr(value, "jaxpr", value)
    if hasattr(body, "eqns") and (len(body.invars), len(body.outvars)) == (
      len(equation.invars),
      len(equation.outvars),
    ):
      return body
  return None


def _through_call(equation: Any, wanted: Sequence[bool], zeros: Sequence[bool]) -> list[bool]:
  body = _body(equation)
  return [True] * len(equation.invars) if body is None else _needed(body, wanted, zeros)


def scan_counts(params: Mapping[str, Any]) -> tuple[int, int]:
  """How many of the inputs of a `scan` equation are constants, and how many are carried, by its params.

  JAX counted them up to 0.10; newer ones hold the two and what is scanned over as trees.
  """
  if "num_consts" in params:
    return params["num_consts"], params["num_carry"]
  consts, carried, _ = params["ft_in"].unpack()
  return len(consts), len(carried)


def _through_scan(equation: Any, wanted: Sequence[bool], zeros: Sequence[bool]) -> list[bool]:
  consts, carries = scan_counts(equation.params)
  inside = [is_zero and not consts <= place < consts + carries for place, is_zero in enumerate(zeros)]
  carried = list(wanted[:carries])
  while True:
    needed = _needed(equation.params["jaxpr"].jaxpr, [*carried, *wanted[carries:]], inside)
    again = [one or other for one, other in zip(carried, needed[consts : consts + carries])]
    if again == carried:
      return [*needed[:consts], *carried, *needed[consts + carries :]]
    carried = again


def _through_while(equation: Any, wanted: Sequence[bool], zeros: Sequence[bool]) -> list[bool]:
  test, body = equation.params["cond_jaxpr"].jaxpr, equation.params["body_jaxpr"].jaxpr
  tests, consts = equation.params["cond_nconsts"], equation.params["body_nconsts"]
  carries = len(body.outvars)
  asked = _needed(test, [True], [False] * len(test.invars))
  carried = [one or other for one, other in zip(wanted, asked[tests:])]
  inside = [*zeros[tests : tests + consts], *[False] * carries]
  while True:
    needed = _needed(body, carried, inside)
    again = [one or other for one, other in zip(carried, needed[consts:])]
    if again == carried:
      return [*asked[:tests], *needed[:consts], *carried]
    carried = again


def _through_cond(equation: Any, wanted: Sequence[bool], zeros: Sequence[bool]) -> list[bool]:
  branches = [_needed(branch.jaxpr, wanted, zeros[1:]) for branch in equation.params["branches"]]
  return [True, *(any(one) for one in zip(*branches))]


_RULES: dict[str, Callable[[Any, Sequence[bool], Sequence[bool]], list[bool]]] = {
  "scan": _through_scan,
  "while": _through_while,
  "cond": _through_cond,
}
