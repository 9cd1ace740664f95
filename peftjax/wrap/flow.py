"""Which parameter every array of a traced program reads, and where each parameter is used.

One pass over the program (a jaxpr) from its inputs on, into jit, remat, scan, while, cond and custom derivatives. An
array is one of four things: it reads one leaf exactly (`Tracked`), it is computed from leaves alone (`Derived`), it
depends on the inputs (`Plain`), or on nothing.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from jax.extend import core

from peftjax.dataflow import scan_counts
from peftjax.wrap.structure import rearranged
from peftjax.wrap.uses import Product, Use, Window, conv_is_plain, lookup_of
from peftjax.wrap.views import Tracked, View, folded

Place = tuple[Any, ...]
"""Where an equation stands: the numbers of the equations around it and its own; of `cond` the branch too."""

JIT = ("jit", "pjit", "closed_call", "core_call")
REMAT = ("remat2", "remat", "checkpoint")
RAGGED = ("ragged_dot", "ragged_dot_general")
CUSTOM = ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")


@dataclasses.dataclass(frozen=True)
class Derived:
  """An array computed from leaves alone.

  Attributes:
    leaves: their dotted paths.
    why: the first primitive that does more than to rearrange.
    source: the leaf, as it was read, where one alone is changed by numbers, as 1 + scale is.
    depth: how many scans run over it.
  """

  leaves: frozenset[str]
  why: str
  source: Tracked | None = None
  depth: int = 0


@dataclasses.dataclass(frozen=True)
class Plain:
  """Any other array.

  Attributes:
    constant: it depends on no input.
    normed: it was divided by a root, and nothing but scaled since.
    norm: the leaf that scaled it.
    product: the place of the product that it is, and how its axes were reordered since.
  """

  constant: bool = False
  normed: bool = False
  norm: str = ""
  product: tuple[Place, tuple[int, ...]] | None = None


Value = Tracked | Derived | Plain


@dataclasses.dataclass(frozen=True)
class Bias:
  """A bias that is added to a product.

  Attributes:
    place: of the addition.
    operand: which of its inputs the bias is.
    leaf: its dotted path.
    view: [*stack, *experts, out].
    order: how the product's axes were reordered before the addition.
  """

  place: Place
  operand: int
  leaf: str
  view: View
  order: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Found:
  """One use of a leaf.

  Attributes:
    place: of the equation.
    leaf: dotted path.
    kind: linear, conv, embedding, norm, bias, other.
    view: [*stack, *shape of the site]; None where it is not read exactly.
    depth: how many of the stack's axes scans run over.
    stack: the sizes of all of them, experts' included.
    use: how the equation's arrays read; None where methods cannot act there.
    scans: the place of each scan that runs over the leaf.
    why: what stands against acting there; "".
    of: of a bias, the leaf of the kernel or of the norm's scale.
    rows: the sizes of x's axes, but for experts and the one that is summed over.
  """

  place: Place
  leaf: str
  kind: str
  view: View | None = None
  depth: int = 0
  stack: tuple[int, ...] = ()
  use: Use | None = None
  scans: tuple[Place, ...] = ()
  why: str = ""
  of: str = ""
  rows: tuple[int, ...] = ()

  @property
  def shape(self) -> tuple[int, ...]:
    """The leaf's shape in one layer or expert, as its use sees it; () where no view of it is used."""
    return () if self.view is None else self.view.shape[len(self.stack) :]


@dataclasses.dataclass
class Flow:
  """What one pass found.

  Attributes:
    uses: in the program's order.
    biases: place of a product -> the bias that is added to it.
  """

  uses: list[Found] = dataclasses.field(default_factory=list)
  biases: dict[Place, Bias] = dataclasses.field(default_factory=dict)

  def run(self, jaxpr: core.Jaxpr, inputs: Sequence[Value], place: Place = (), inside: str = "") -> list[Value]:
    """The values that a program gives.

    Args:
      place: of the equation that it is the program of.
      inside: why methods cannot act in it; "" if they can.
    """
    values: dict[Any, Value] = dict.fromkeys(jaxpr.constvars, Plain(constant=True))
    values |= zip(jaxpr.invars, inputs)
    read = Counter(one for equation in jaxpr.eqns for one in equation.invars if not isinstance(one, core.Literal))
    read.update(one for one in jaxpr.outvars if not isinstance(one, core.Literal))

    def value(atom: Any) -> Value:
      return Plain(constant=True) if isinstance(atom, core.Literal) else values[atom]

    for number, equation in enumerate(jaxpr.eqns):
      given = [_once(value(atom), read.get(atom, 0) if not isinstance(atom, core.Literal) else 0)
               for atom in equation.invars]  # fmt: skip
      found = self._equation(equation, given, (*place, number), inside)
      values.update(zip(equation.outvars, found))
    return [value(atom) for atom in jaxpr.outvars]

  def _equation(self, equation: Any, given: list[Value], place: Place, inside: str) -> list[Value]:
    name = equation.primitive.name
    if not any(isinstance(one, Tracked | Derived) for one in given):
      return _plain(equation, given)
    if name in (*JIT, *REMAT, *CUSTOM, "scan", "while", "cond"):
      return self._inner(name, equation, given, place, inside)
    out = equation.outvars[0].aval.shape if equation.outvars else ()
    first = given[0]
    if isinstance(first, Tracked) and len(given) == 1:
      moved = rearranged(name, first, equation.params, equation.invars[0].aval.shape, out)
      if moved is not None:
        return [moved]
    if isinstance(first, Derived) and len(given) == 1 and name in ("convert_element_type", "reshape", "transpose",
                                                                    "broadcast_in_dim", "squeeze", "copy"):  # fmt: skip
      return self._derived_moved(name, first, equation, out)
    used = self._used(name, equation, given, place, inside)
    if used is not None:
      return [used]
    if all(isinstance(one, Tracked | Derived) or (isinstance(one, Plain) and one.constant) for one in given):
      return [_derived(name, given)] * len(equation.outvars)
    for one in given:
      for leaf in _leaves(one):
        why = one.why if isinstance(one, Derived) else name
        kind = "linear" if name in ("dot_general", "conv_general_dilated", *RAGGED) else "other"
        depth = one.depth if isinstance(one, Tracked | Derived) else 0
        self.uses.append(Found(place, leaf, kind, depth=depth, why=why))
    return [Plain()] * len(equation.outvars)

  def _derived_moved(self, name: str, one: Derived, equation: Any, out: Sequence[int]) -> list[Value]:
    source = one.source
    if source is not None:
      source = rearranged(name, source, equation.params, equation.invars[0].aval.shape, out)
    return [dataclasses.replace(one, source=source)]

  # Equations that use a leaf --------------------------------------------------------------------------------------

  def _used(self, name: str, equation: Any, given: list[Value], place: Place, inside: str) -> Value | None:
    shapes = [atom.aval.shape for atom in equation.invars]
    if name == "dot_general":
      return self._product(equation, given, shapes, place, inside)
    if name == "conv_general_dilated" and isinstance(given[1], Tracked) and isinstance(given[0], Plain):
      return self._window(equation, given[1], shapes[1], place, inside)
    if name in ("gather", "dynamic_slice") and isinstance(given[0], Tracked):
      if all(isinstance(one, Plain) for one in given[1:]) and not all(_constant(one) for one in given[1:]):
        return self._lookup(name, equation, given[0], shapes[0], place, inside)
    if name in ("mul", "add", "sub", "div") and len(given) == 2:
      return self._elementwise(name, given, shapes, place, inside)
    return None

  def _product(
    self, equation: Any, given: list[Value], shapes: list[Sequence[int]], place: Place, inside: str
  ) -> Value | None:
    for operand in (1, 0):
      weight, x = given[operand], given[1 - operand]
      if not isinstance(weight, Tracked) or isinstance(x, Tracked):
        continue
      made = weight.made(shapes[operand])
      if made is None:
        continue
      use = Product.of(operand, equation.params["dimension_numbers"], shapes[operand], shapes[1 - operand])
      if not use.summed[0] or not use.w_free:
        return None
      view = folded(made, use.experts[0], use.summed[0], use.w_free, keep=1)
      stack = (*view.shape[: made.depth], *use.stack)
      rows = tuple(use.x_sizes[axis] for axis in use.x_free)
      self.uses.append(Found(place, made.leaf, "linear", view, made.depth, stack, use, made.scans, inside, rows=rows))
      for leaf in _leaves(x):
        self.uses.append(Found(place, leaf, "other", why=x.why if isinstance(x, Derived) else "dot_general"))
      total = len(equation.outvars[0].aval.shape)
      return Plain(product=None if inside else (place, tuple(range(total))))
    return None

  def _window(self, equation: Any, weight: Tracked, shape: Sequence[int], place: Place, inside: str) -> Value | None:
    made = weight.made(shape)
    if made is None:
      return None
    use = Window.of(equation.params["dimension_numbers"], equation.params["feature_group_count"])
    view = made.moved(use.w_order)
    stack = view.shape[: made.depth]
    groups = "" if conv_is_plain(equation.params) else "a convolution of several groups"
    sizes = equation.invars[0].aval.shape
    rows = tuple(sizes[axis] for axis in use.x_order[:-1])
    why = inside or groups
    self.uses.append(Found(place, made.leaf, "conv", view, made.depth, stack, use, made.scans, why, rows=rows))
    return Plain(product=None if inside or groups else (place, tuple(range(len(shape)))))

  def _lookup(
    self, name: str, equation: Any, table: Tracked, shape: Sequence[int], place: Place, inside: str
  ) -> Value | None:
    made = table.made(shape)
    use = lookup_of(name, equation.params, shape) if made is not None else None
    if made is None or use is None:
      return Derived(frozenset({table.leaf}), name, depth=table.depth)
    view = made.moved((use.axis, 1 - use.axis))
    stack = view.shape[: made.depth]
    rows = tuple(equation.invars[1].aval.shape[:-1])
    self.uses.append(Found(place, made.leaf, "embedding", view, made.depth, stack, use, made.scans, inside, rows=rows))
    return Plain()

  def _elementwise(
    self, name: str, given: list[Value], shapes: list[Sequence[int]], place: Place, inside: str
  ) -> Value | None:
    for operand in (1, 0):
      one, other = given[operand], given[1 - operand]
      source = one if isinstance(one, Tracked) else one.source if isinstance(one, Derived) else None
      if source is None or not isinstance(other, Plain) or other.constant:
        continue
      if name == "mul" and other.normed and _is_vector(source):
        why = "" if isinstance(one, Tracked) else "offset"
        self._vector(place, source, "norm", why)
        return Plain(normed=True, norm=source.leaf)
      if name == "add" and isinstance(one, Tracked):
        return self._added(one, other, operand, shapes, place, inside)
    return None

  def _added(
    self, one: Tracked, other: Plain, operand: int, shapes: list[Sequence[int]], place: Place, inside: str
  ) -> Value | None:
    if other.product is not None and place[:-1] == other.product[0][:-1]:
      at, order = other.product
      use = next(found for found in reversed(self.uses) if found.place == at)
      view = _bias_view(one, use, order, shapes[operand])
      if view is not None and not inside:
        self.biases[at] = Bias(place, operand, one.leaf, view, order)
        stack = view.shape[:-1]
        self.uses.append(Found(place, one.leaf, "bias", view, one.depth, stack, None, one.scans, of=use.leaf))
        return Plain()
    if other.norm and _is_vector(one):
      self._vector(place, one, "bias", of=other.norm)
      return Plain()
    if _is_vector(one):
      self._vector(place, one, "bias")
      return Plain()
    return None

  def _vector(self, place: Place, one: Tracked, kind: str, why: str = "", of: str = "") -> None:
    view = one.view.reshaped((*one.view.shape[: one.depth], max(one.inner, default=1)))
    stack = view.shape[: one.depth]
    self.uses.append(Found(place, one.leaf, kind, view, one.depth, stack, None, one.scans, why=why, of=of))

  # Programs within the program -----------------------------------------------------------------------------------

  def _inner(self, name: str, equation: Any, given: list[Value], place: Place, inside: str) -> list[Value]:
    params = equation.params
    given = [dataclasses.replace(one, product=None) if isinstance(one, Plain) else one for one in given]
    if name == "scan":
      return self._scan(params, given, place, inside)
    if name == "while":
      return self._while(params, given, place, inside)
    if name == "cond":
      each = [self.run(branch.jaxpr, given[1:], (*place, number), inside) for number, branch in
              enumerate(params["branches"])]  # fmt: skip
      return [_either(list(row)) for row in zip(*each)]
    inner = inner_jaxpr(params)
    if name in CUSTOM:
      inside = inside or "it is used in a function with derivatives of its own"
      found = Flow()
      found.run(inner, given, place, inside)
      self.uses += [dataclasses.replace(one, why=one.why or inside) for one in found.uses]
      return [Plain()] * len(equation.outvars)
    return [_without_product(one) for one in self.run(inner, given, place, inside)]

  def _scan(self, params: Mapping[str, Any], given: list[Value], place: Place, inside: str) -> list[Value]:
    body, (consts, carries) = params["jaxpr"].jaxpr, scan_counts(params)
    carry = [self._carried(one, body.outvars[at], body.invars[consts + at], place, "scan")
             for at, one in enumerate(given[consts : consts + carries])]  # fmt: skip
    layers = [self._layer(one, place) for one in given[consts + carries :]]
    found = self.run(body, [*given[:consts], *carry, *layers], place, inside)
    kept = [one if isinstance(one, Tracked) else Plain() for one in carry]
    for one in found[carries:]:
      for leaf in _leaves(one):
        self.uses.append(Found(place, leaf, "other", why="scan"))
    return [*kept, *(Plain() for _ in found[carries:])]

  def _layer(self, one: Value, place: Place) -> Value:
    if isinstance(one, Tracked):
      return one.popped(place)
    if isinstance(one, Derived):
      return dataclasses.replace(one, source=None, depth=one.depth + 1)
    return Plain(constant=one.constant)

  def _while(self, params: Mapping[str, Any], given: list[Value], place: Place, inside: str) -> list[Value]:
    cond, body = params["cond_jaxpr"].jaxpr, params["body_jaxpr"].jaxpr
    first, second = params["cond_nconsts"], params["body_nconsts"]
    carry = [self._carried(one, body.outvars[at], body.invars[second + at], place, "while")
             for at, one in enumerate(given[first + second :])]  # fmt: skip
    self.run(cond, [*given[:first], *carry], (*place, "cond"), inside or "it is used in the condition of a loop")
    self.run(body, [*given[first : first + second], *carry], (*place, "body"), inside)
    return [one if isinstance(one, Tracked) else Plain() for one in carry]

  def _carried(self, one: Value, out: Any, into: Any, place: Place, name: str) -> Value:
    """What a loop carries: a parameter, if it comes out as it goes in."""
    if isinstance(one, Plain):
      return Plain()
    if isinstance(one, Tracked) and out is into:
      return one
    for leaf in _leaves(one):
      self.uses.append(Found(place, leaf, "other", why=name))
    return Plain()


def inner_jaxpr(params: Mapping[str, Any]) -> core.Jaxpr:
  """The program that an equation calls."""
  found = next(params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in params)
  return found.jaxpr if isinstance(found, core.ClosedJaxpr) else found


def _plain(equation: Any, given: Sequence[Value]) -> list[Value]:
  """What an equation without parameters gives."""
  name, plain = equation.primitive.name, [one for one in given if isinstance(one, Plain)]
  constant = all(one.constant for one in plain) and name not in ("rng_bit_generator",)
  is_root = name in ("rsqrt", "sqrt") and not constant
  normed = is_root or (name in _KEEPS and any(one.normed for one in plain))
  norm = next((one.norm for one in plain if one.norm), "") if normed and not is_root else ""
  product = None
  if len(plain) == 1 and plain[0].product is not None:
    place, order = plain[0].product
    if name == "convert_element_type":
      product = plain[0].product
    elif name == "transpose":
      product = (place, tuple(order[axis] for axis in equation.params["permutation"]))
  return [Plain(constant, normed, norm, product)] * len(equation.outvars)


_KEEPS = ("mul", "div", "sub", "convert_element_type", "reshape", "broadcast_in_dim", "transpose", "squeeze", "jit",
          "pjit", "copy")  # fmt: skip


def _once(value: Value, reads: int) -> Value:
  """The value; of a product that more than one equation reads, not as one that a bias is added to."""
  if isinstance(value, Plain) and value.product is not None and reads != 1:
    return dataclasses.replace(value, product=None)
  return value


def _without_product(value: Value) -> Value:
  return dataclasses.replace(value, product=None) if isinstance(value, Plain) else value


def _constant(value: Value) -> bool:
  return isinstance(value, Plain) and value.constant


def _leaves(value: Value) -> frozenset[str]:
  if isinstance(value, Tracked):
    return frozenset({value.leaf})
  return value.leaves if isinstance(value, Derived) else frozenset()


def _derived(name: str, given: Sequence[Value]) -> Derived:
  """What an equation of parameters and numbers alone gives."""
  parts = [one for one in given if isinstance(one, Tracked | Derived)]
  leaves = frozenset().union(*map(_leaves, parts))
  why = next((one.why for one in parts if isinstance(one, Derived)), name)
  source = None
  if len(parts) == 1 and name in ("add", "mul", "sub"):
    source = parts[0] if isinstance(parts[0], Tracked) else parts[0].source
  return Derived(leaves, why, source, max((one.depth for one in parts), default=0))


def _either(values: list[Value]) -> Value:
  """What one of several branches gives."""
  if all(one == values[0] for one in values):
    return _without_product(values[0])
  if not any(isinstance(one, Tracked | Derived) for one in values):
    return Plain()
  if all(isinstance(one, Tracked | Derived) or _constant(one) for one in values):
    return Derived(frozenset().union(*map(_leaves, values)), "cond")
  return Plain()


def _is_vector(one: Tracked) -> bool:
  """Whether it has one axis of more than one element, and reads all of it."""
  return sum(size != 1 for size in one.inner) <= 1 and one.inner != ()


def _bias_view(one: Tracked, found: Found, order: Sequence[int], shape: Sequence[int]) -> View | None:
  """[*stack, *experts, out] of an array added to a product; None if it is no bias of that product."""
  use = found.use
  if len(shape) != len(order) or one.depth != found.depth:
    return None
  if isinstance(use, Product):
    experts, outs = tuple(range(len(use.experts[0]))), use.out_axes
  elif isinstance(use, Window):
    experts, outs = (), (use.y_order[-1],)
  else:
    return None
  where = {axis: place for place, axis in enumerate(order)}  # of the product's axis in the sum
  wanted = [where[axis] for axis in (*experts, *outs)]
  axes = [one.axes[place] for place in wanted]
  rest = [axis for place, axis in enumerate(one.axes) if place not in wanted and axis is not None]
  sizes = [one.inner[axis] for axis in axes if axis is not None]
  if None in axes or any(one.inner[axis] != 1 for axis in rest) or len(sizes) + len(rest) != len(one.inner):
    return None
  view = folded(one, [axis for axis in axes[: len(experts)] if axis is not None],
                [axis for axis in axes[len(experts) :] if axis is not None] + rest, keep=1)  # fmt: skip
  return view if view.shape[-1] == found.shape[-1] else None
