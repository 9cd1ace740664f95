"""Running a traced program again, with methods acting where it uses its parameters."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

from peftjax.dataflow import scan_counts
from peftjax.errors import UserError
from peftjax.methods.base import Call, Leaves
from peftjax.methods.calls import dropping
from peftjax.methods.inject import Acting, Entry, change_of, enter, leave
from peftjax.sites import BASE_LEAVES, Site
from peftjax.wrap.flow import JIT, REMAT, Bias, Found, Place
from peftjax.wrap.uses import Lookup, Product, Use, Window, bind
from peftjax.wrap.views import inverse

Key = tuple[tuple[str, ...], str]
"""(path, method) of a site."""


@dataclasses.dataclass(frozen=True)
class Scope:
  """What is at hand at one place of the program.

  Attributes:
    leaves: of each site, what its methods have there: one dict for each method, without the axes of the scans around.
    key: for dropout; None: there is none.
  """

  leaves: Mapping[Key, list[Leaves]]
  key: jax.Array | None


@dataclasses.dataclass(frozen=True)
class Acted:
  """A use at which methods act.

  Attributes:
    found: the use.
    site: the site, `method` "attend" where a table is the output layer.
    entries: what acts.
    bias: what is added to the product before methods see it; None if nothing is.
    batch: which axis of x counts the examples; None if it is not known.
  """

  found: Found
  site: Site
  entries: Sequence[Entry]
  bias: Bias | None = None
  batch: int | None = None

  @property
  def key(self) -> Key:
    """(path, method) of the site, as `Table` has it."""
    return self.site.path, self.site.method

  @property
  def experts(self) -> int:
    """How many axes of experts its arrays have."""
    return len(self.found.stack) - self.found.depth


@dataclasses.dataclass
class _Pending:
  """A product whose bias has yet to be added."""

  acted: Acted
  equation: Any
  inputs: Sequence[Any]
  x: Any
  scope: Scope
  key: Any


class Replay:
  """One run of a program.

  Args:
    acted: place of each equation at which methods act -> what acts.
    beside: reads a leaf of another site of the same module by its dotted path; None if there is none.
  """

  def __init__(self, acted: Mapping[Place, Acted], beside: Callable[[str], Any]) -> None:
    self.acted = acted
    self.beside = beside
    self.around = {place[:end] for place in acted for end in range(1, len(place))}
    self.scanned: dict[Place, list[Key]] = {}
    for one in acted.values():
      for place in one.found.scans:
        self.scanned.setdefault(place, []).append(one.key)

  def run(self, jaxpr: core.Jaxpr, consts: Sequence[Any], inputs: Sequence[Any], place: Place, scope: Scope) -> Any:
    """The program's outputs, in order."""
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts)) | dict(zip(jaxpr.invars, inputs))
    pending: dict[Place, _Pending] = {}

    def read(atom: Any) -> Any:
      return atom.val if isinstance(atom, core.Literal) else values[atom]

    for number, equation in enumerate(jaxpr.eqns):
      here, given = (*place, number), [read(atom) for atom in equation.invars]
      with equation.ctx.manager:
        if here in self.acted:
          found = [self._act(equation, given, here, scope, pending)]
        elif here in self.around:
          found = self._inner(equation, given, here, scope)
        else:
          found = bind(equation, given)
          if here in pending:
            found = [self._finish(pending.pop(here), given, found[0])]
      values.update(zip(equation.outvars, found))
    return [read(atom) for atom in jaxpr.outvars]

  # One equation ---------------------------------------------------------------------------------------------------

  def _act(
    self, equation: Any, inputs: Sequence[Any], here: Place, scope: Scope, pending: dict[Place, _Pending]
  ) -> Any:
    acted = self.acted[here]
    use, leaves = acted.found.use, scope.leaves[acted.key]
    assert use is not None
    key = None if scope.key is None else jax.random.fold_in(scope.key, zlib.crc32(repr(here).encode()) & 0x7FFFFFFF)
    x, held = self._front(acted, use.x_of(inputs)), _held(acted, use.kernel_of(inputs))

    def calls(own: list[Leaves], base: Leaves, draw: Any) -> list[Acting]:
      return self._calls(acted, own, base, draw, equation, inputs)

    keys = _keys(key, acted)
    entered = acted_on(acted, lambda own, base, draw, x: enter(calls(own, base, draw), x), leaves, held, keys, x)
    change = None
    if any(actor.acts_by_delta(acted.site) for actor, *_ in acted.entries):
      change = acted_on(acted, lambda own, base, draw: change_of(calls(own, base, draw)), leaves, held, keys)
    y = self._product(equation, acted, use, inputs, entered, change)
    if acted.bias is not None:
      pending[acted.bias.place] = _Pending(acted, equation, inputs, x, scope, key)
      return y
    folded = self._front(acted, use.fold_y(y))
    folded = acted_on(acted, lambda own, base, draw, x, y: leave(calls(own, base, draw), x, y), leaves, held, keys,
                      x, folded)  # fmt: skip
    return use.unfold_y(self._back(acted, folded)).astype(y.dtype)

  def _product(self, equation: Any, acted: Acted, use: Use, inputs: Sequence[Any], x: Any, change: Any) -> Any:
    given = use.with_x(inputs, self._back(acted, x))
    if change is None:
      return bind(equation, given)[0]
    dtypes = {one.dtype for one in given}
    if dtypes == {jnp.dtype(jnp.float32)}:
      return bind(equation, use.with_kernel(given, use.kernel_of(given) + change))[0]
    y = bind(equation, given)[0]
    if isinstance(use, Window):
      return y + bind(equation, use.with_kernel(given, change))[0]
    update = jnp.matmul(self._back(acted, x).astype(y.dtype), _spread(change, acted, x).astype(y.dtype))
    return y + use.unfold_y(update)

  def _finish(self, one: _Pending, inputs: Sequence[Any], y: Any) -> Any:
    """The sum of product and bias, as methods have it."""
    acted, bias = one.acted, one.acted.bias
    use = acted.found.use
    assert bias is not None and use is not None
    back = inverse(bias.order)
    held = {"kernel": use.kernel_of(one.inputs), "bias": _bias_of(use, jnp.transpose(inputs[bias.operand], back))}
    folded = self._front(acted, use.fold_y(jnp.transpose(y, back)))

    def step(own: list[Leaves], base: Leaves, draw: Any, x: Any, y: Any) -> Any:
      calls = self._calls(acted, own, base, draw, one.equation, one.inputs)
      y, change = leave(calls, x, y), change_of(calls, "bias")
      return y if change is None else y + change.astype(y.dtype)

    folded = acted_on(acted, step, one.scope.leaves[acted.key], held, _keys(one.key, acted), one.x, folded)
    return jnp.transpose(use.unfold_y(self._back(acted, folded)), bias.order).astype(y.dtype)

  def _calls(
    self, acted: Acted, own: list[Leaves], held: Leaves, key: Any, equation: Any, inputs: Sequence[Any]
  ) -> list[Acting]:
    """What acts, with its call, of one expert's arrays."""
    draws, use = itertools.count(), acted.found.use
    assert use is not None

    def base(site: Site, name: str) -> Any:
      if name in held:
        return site.fold({name: held[name]})[name]
      return None if name in BASE_LEAVES else self.beside(".".join((*acted.site.path, name)))

    def again(site: Site, x: Any, kernel: Any) -> Any:
      changed = use.with_kernel(inputs, site.unfold({"kernel": kernel})["kernel"])
      return self._front(acted, use.fold_y(bind(equation, use.with_x(changed, self._back(acted, x)))[0]))

    def rerun(site: Site, own: Leaves, x: Any) -> Any:
      y = again(site, x, own["embedding"].T if site.kind == "unembedding" else own.get("kernel", own.get("embedding")))
      return y + own["bias"].astype(y.dtype) if "bias" in own else y

    def draw() -> Any:
      return None if key is None else jax.random.fold_in(key, next(draws))

    return [
      (actor, site, leaves, Call(
        base=functools.partial(base, site), shared=shared, dropout=dropping(draw), key=draw,
        rerun=None if acted.experts else functools.partial(rerun, site),
        product=functools.partial(again, site) if site.kind == "conv" else jnp.dot, notes=notes,
      ))
      for (actor, site, shared, notes), leaves in zip(acted.entries, own)
    ]  # fmt: skip

  def _front(self, acted: Acted, value: Any) -> Any:
    """With the axis of the examples in front, where each has its own adapter."""
    if not _is_mixed(acted):
      return value
    if acted.batch is None or acted.experts:
      raise UserError(
        f"{acted.site.name}: which axis of {list(value.shape)} counts the examples is not known; a batch can have one "
        f"adapter there, not one for each example"
      )
    return jnp.moveaxis(value, acted.batch, 0)

  def _back(self, acted: Acted, value: Any) -> Any:
    return jnp.moveaxis(value, 0, acted.batch or 0) if _is_mixed(acted) else value

  # Programs within the program ------------------------------------------------------------------------------------

  def _inner(self, equation: Any, inputs: list[Any], here: Place, scope: Scope) -> list[Any]:
    name, params = equation.primitive.name, equation.params
    if name == "scan":
      return self._scan(params, inputs, here, scope)
    if name == "while":
      return self._while(params, inputs, here, scope)
    if name == "cond":
      branches = [self._branch(closed, (*here, number), scope) for number, closed in enumerate(params["branches"])]
      return list(lax.switch(inputs[0], branches, *inputs[1:]))
    found = next(params[one] for one in ("jaxpr", "call_jaxpr", "fun_jaxpr") if one in params)
    closed = found if isinstance(found, core.ClosedJaxpr) else core.ClosedJaxpr(found, ())
    if name in JIT:
      return list(self.run(closed.jaxpr, closed.consts, inputs, here, scope))
    assert name in REMAT, name
    run = self._branch(closed, here, scope)
    return list(jax.checkpoint(run, prevent_cse=params["prevent_cse"], policy=params["policy"])(*inputs))

  def _branch(self, closed: core.ClosedJaxpr, here: Place, scope: Scope) -> Callable[..., Any]:
    return lambda *inputs: self.run(closed.jaxpr, closed.consts, inputs, here, scope)

  def _scan(self, params: Mapping[str, Any], inputs: list[Any], here: Place, scope: Scope) -> list[Any]:
    closed, (first, count) = params["jaxpr"], scan_counts(params)
    consts, carry, layers = inputs[:first], inputs[first : first + count], inputs[first + count :]
    own = {key: scope.leaves[key] for key in dict.fromkeys(self.scanned.get(here, ()))}
    keys = None if scope.key is None else jax.random.split(scope.key, params["length"])

    def step(carry: Any, layer: Any) -> Any:
      rows, leaves, key = layer
      inner = Scope({**scope.leaves, **leaves}, key)
      found = self.run(closed.jaxpr, closed.consts, [*consts, *carry, *rows], here, inner)
      return found[:count], found[count:]

    options = {"_split_transpose": True} if params.get("_split_transpose") else {}
    carry, rows = lax.scan(step, carry, (layers, own, keys), length=params["length"], reverse=params["reverse"],
                           unroll=params["unroll"], **options)  # fmt: skip
    return [*carry, *rows]

  def _while(self, params: Mapping[str, Any], inputs: list[Any], here: Place, scope: Scope) -> list[Any]:
    first, second = params["cond_nconsts"], params["body_nconsts"]
    ask, own, carry = inputs[:first], inputs[first : first + second], inputs[first + second :]
    cond, body = params["cond_jaxpr"], params["body_jaxpr"]

    def goes_on(carry: Any) -> Any:
      return self.run(cond.jaxpr, cond.consts, [*ask, *carry], (*here, "cond"), scope)[0]

    def step(carry: Any) -> Any:
      return self.run(body.jaxpr, body.consts, [*own, *carry], (*here, "body"), scope)

    return list(lax.while_loop(goes_on, step, carry))


def acted_on(acted: Acted, function: Callable[..., Any], *arguments: Any) -> Any:
  """The function of one expert's arrays, of those of all."""
  for _ in range(acted.experts):
    function = jax.vmap(function)
  return function(*arguments)


def _keys(key: Any, acted: Acted) -> Any:
  """A key for each expert."""
  return key if key is None or not acted.experts else jax.random.split(key, acted.found.stack[acted.found.depth :])


def _held(acted: Acted, kernel: Any) -> Leaves:
  """The weight as methods know it."""
  if acted.site.kind == "unembedding":
    return {"embedding": kernel.T}
  return {"embedding" if isinstance(acted.found.use, Lookup) else "kernel": kernel}


def _is_mixed(acted: Acted) -> bool:
  return any(hasattr(actor, "ids") for actor, *_ in acted.entries)


def _spread(change: Any, acted: Acted, x: Any) -> Any:
  """[*experts, 1 ..., in, out], to be multiplied with [*experts, ..., in]."""
  missing = max(x.ndim - 1 - acted.experts - 1, 0)
  lead = change.shape[: acted.experts]
  return change.reshape(*lead, *(1,) * missing, *change.shape[acted.experts :])


def _bias_of(use: Use, bias: Any) -> Any:
  """[*experts, out] of a bias that is added to a product, laid out as that is."""
  if isinstance(use, Window):
    kept: tuple[int, ...] = (use.y_order[-1],)
  else:
    assert isinstance(use, Product)
    kept = (*range(len(use.experts[0])), *use.out_axes)
  rows = bias[tuple(slice(None) if axis in kept else 0 for axis in range(bias.ndim))]
  return rows.reshape(*(use.stack if isinstance(use, Product) else ()), -1)
