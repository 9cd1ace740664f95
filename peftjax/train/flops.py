"""Floating-point operations of a traced function's matrix products and convolutions.

XLA's own `cost_analysis` counts the body of a loop once, however often it runs, so it is right only for models that do
not scan over their layers. Here a scan's body counts as often as it runs, and equations whose results nobody reads are
left out first, as the compiler leaves them out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval


def count_flops(function: Callable[..., Any], *args: Any) -> int:
  """2 · (multiply-adds) of all matrix products and convolutions in one call; `args` may be shapes."""
  return flops_of(jax.make_jaxpr(function)(*args))


def flops_of(closed: Any) -> int:
  """`count_flops` of a function that is traced already."""
  jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
  return _of_jaxpr(jaxpr)


def _of_jaxpr(jaxpr: Any) -> int:
  return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> int:
  name = equation.primitive.name
  if name == "dot_general":
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
  if name == "conv_general_dilated":
    numbers, kernel = equation.params["dimension_numbers"], equation.invars[1].aval.shape
    per_output = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
    return 2 * math.prod(equation.outvars[0].aval.shape) * per_output
  if name == "cond":
    return max(_of_jaxpr(branch.jaxpr) for branch in equation.params["branches"])
  inner = sum(_of_jaxpr(jaxpr) for jaxpr in core.jaxprs_in_params(equation.params))
  return inner * equation.params["length"] if name == "scan" else inner
