"""From the uses of the leaves to the sites of a model, and to the table that shows them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from peftjax import masks
from peftjax.sites import Place, Site
from peftjax.wrap.flow import RAGGED, Flow, Found
from peftjax.wrap.uses import Window
from peftjax.wrap.views import Op, View

ACTED_ON = ("linear", "conv", "embedding")


@dataclasses.dataclass(frozen=True)
class Row:
  """One leaf in the table of sites.

  Attributes:
    path: its name.
    shape: as it is stored.
    kind: linear, conv, embedding, norm, bias, other, unused; of a tied table "embedding, unembedding".
    size_in, size_out: of its site; 0 where it is none.
    stack: how many layers or experts it holds.
    uses: how often the program uses it.
    note: why methods act on the weight itself, or cannot act.
  """

  path: str
  shape: tuple[int, ...]
  kind: str
  size_in: int = 0
  size_out: int = 0
  stack: tuple[int, ...] = ()
  uses: int = 0
  note: str = ""


@dataclasses.dataclass(frozen=True)
class Sites:
  """What was found.

  Attributes:
    sites: where methods may act.
    rows: one for each leaf.
    stacks: dotted path of each stack -> layers or experts.
    leaf_of: (path, method) of each site -> its leaf.
  """

  sites: tuple[Site, ...]
  rows: tuple[Row, ...]
  stacks: Mapping[str, int]
  leaf_of: Mapping[tuple[tuple[str, ...], str], str]


@dataclasses.dataclass(frozen=True)
class _Leaf:
  """A leaf with what its uses come to."""

  name: str
  kind: str
  view: View | None = None
  stack: tuple[int, ...] = ()
  in_weights: str = ""
  note: str = ""
  is_output_too: bool = False
  groups: int = 1
  bias: str = ""
  bias_view: View | None = None


def find(flow: Flow, shapes: Mapping[str, Any]) -> Sites:
  """The sites of a traced program.

  Args:
    shapes: dotted path of every leaf -> its shape and dtype.
  """
  by_leaf: dict[str, list[Found]] = {name: [] for name in shapes}
  for found in flow.uses:
    by_leaf[found.leaf].append(found)
  leaves = {name: _with_bias(_leaf(name, tuple(shapes[name].shape), uses), uses, by_leaf, flow)
            for name, uses in by_leaf.items()}  # fmt: skip
  stacks = _stacks(leaves, shapes)
  nodes = _nodes(leaves, stacks)
  sites: list[Site] = []
  leaf_of: dict[tuple[tuple[str, ...], str], str] = {}
  for leaf in leaves.values():
    for site in _sites(leaf, leaves, nodes, stacks, shapes[leaf.name].dtype):
      sites.append(site)
      leaf_of[site.path, site.method] = leaf.name
  for leaf in leaves.values():  # adapters of a leaf that is a stack by itself stand beside it
    if leaf.name in stacks and leaf.name in nodes:
      stacks.setdefault(nodes[leaf.name], stacks[leaf.name])
    elif leaf.name in nodes and leaf.stack and not masks.stack_shape(leaf.name, stacks):
      stacks.setdefault(nodes[leaf.name], leaf.stack[0])
  rows = tuple(_row(leaf, tuple(shapes[name].shape), len(by_leaf[name])) for name, leaf in leaves.items())
  return Sites(tuple(sites), rows, stacks, leaf_of)


# One leaf ---------------------------------------------------------------------------------------------------------


def _leaf(name: str, shape: tuple[int, ...], uses: Sequence[Found]) -> _Leaf:
  if not uses:
    return _Leaf(name, "unused", note="the program never reads it")
  acting = [one for one in uses if one.use is not None]
  tables = [one for one in acting if one.kind == "embedding"]
  if tables and len(acting) == len(uses):
    outputs = [one for one in acting if one.kind == "linear"]
    if _alike(tables) and all(_is_output(one, tables[0]) for one in outputs) and not any(one.why for one in uses):
      return _Leaf(name, "embedding", tables[0].view, tables[0].stack, is_output_too=bool(outputs))
  if acting and len(acting) == len(uses) and _alike(acting):
    why = next((one.why for one in uses if one.why), "")
    groups = acting[0].use.groups if isinstance(acting[0].use, Window) else 1
    return _Leaf(name, acting[0].kind, acting[0].view, acting[0].stack, in_weights=why, groups=groups)
  if acting:
    return _in_weights(name, shape, acting[0], _ways(uses))
  kinds = {one.kind for one in uses}
  if kinds == {"norm"} or kinds == {"bias"}:
    return _Leaf(name, uses[0].kind, uses[0].view, uses[0].stack)
  if "linear" in kinds:
    return _matrix(name, shape, next(one for one in uses if one.kind == "linear"))
  return _Leaf(name, "other", note=_ways(uses))


def _alike(uses: Sequence[Found]) -> bool:
  first = uses[0]
  return all((one.kind, one.view, one.stack) == (first.kind, first.view, first.stack) for one in uses)


def _is_output(one: Found, table: Found) -> bool:
  """Whether a product with a table gives a number for each of its rows."""
  if one.view is None or table.view is None or one.stack or table.stack:
    return False
  return one.view.transposed((1, 0)) == table.view


def _ways(uses: Sequence[Found]) -> str:
  whys = list(dict.fromkeys(one.why or one.kind for one in uses))
  count = f"{len(uses)} uses: " if len(uses) > 1 else "used by "
  return count + ", ".join(whys)


def _in_weights(name: str, shape: tuple[int, ...], first: Found, why: str) -> _Leaf:
  """A leaf of several uses that no one place in the program covers: methods change the weight itself."""
  view = first.view
  assert view is not None
  if any(op[0] == "slice" for op in view.ops):
    whole = View.whole(shape)
    for op in view.ops:
      if op[0] == "transpose":
        whole = whole.transposed(op[1])
      elif op[0] != "slice":
        if first.kind == "linear" and _is_one_of(view, shape):
          return _Leaf(name, "linear", View.whole(shape), shape[:-2], in_weights=why)
        return _Leaf(name, "other", note=why)
    view = whole
  return _Leaf(name, first.kind, view, first.stack, in_weights=why)


def _is_one_of(view: View, shape: tuple[int, ...]) -> bool:
  """Whether a view shows one of the matrices that a leaf holds, its last two axes."""
  (first, *_), (second, *_) = view.ops[:2]
  is_slice = first == "slice" and view.ops[0][2][-2:] == shape[-2:] and not any(view.ops[0][1][-2:])
  return len(shape) > 2 and is_slice and second == "reshape" and view.ops[1][1] == shape[-2:]


def _matrix(name: str, shape: tuple[int, ...], use: Found) -> _Leaf:
  """A leaf that is changed by the program before a product with it: as it is stored, a matrix of each layer."""
  axes = len(shape) - 2
  if axes == use.depth or (axes == 1 and use.why in ("dynamic_slice", "gather", *RAGGED)):
    return _Leaf(name, "linear", View.whole(shape), shape[:axes], in_weights=f"{use.why} comes before the product")
  return _Leaf(name, "other", note=f"{use.why} comes before the product, and the leaf is no matrix")


def _with_bias(leaf: _Leaf, uses: Sequence[Found], by_leaf: Mapping[str, list[Found]], flow: Flow) -> _Leaf:
  """The leaf with its bias, where every use of it has the same one and that is used for nothing else."""
  if leaf.kind == "norm":
    added = [one for found in by_leaf.values() for one in found if one.kind == "bias" and one.of == leaf.name]
    names = {one.leaf for one in added}
    if len(names) == 1 and all(one.of == leaf.name for one in by_leaf[added[0].leaf]):
      return dataclasses.replace(leaf, bias=added[0].leaf, bias_view=added[0].view)
    return leaf
  if leaf.kind not in ("linear", "conv") or leaf.in_weights:
    return leaf
  biases = [flow.biases.get(one.place) for one in uses]
  first = biases[0] if biases else None
  if first is None or any(one is None or (one.leaf, one.view) != (first.leaf, first.view) for one in biases):
    return leaf
  if len(by_leaf[first.leaf]) != len(uses):
    return leaf
  return dataclasses.replace(leaf, bias=first.leaf, bias_view=first.view)


# All leaves together ----------------------------------------------------------------------------------------------


def _stacks(leaves: Mapping[str, _Leaf], shapes: Mapping[str, Any]) -> dict[str, int]:
  """Dotted path -> layers: the highest node of which all leaves are layers of one scan, or the leaf itself."""
  counts = {name: _leading(leaf, tuple(shapes[name].shape)) for name, leaf in leaves.items()}
  stacks: dict[str, int] = {}
  for name, count in counts.items():
    if not count:
      continue
    parts = name.split(".")
    prefixes = [".".join(parts[:end]) for end in range(1, len(parts))]
    node = next((prefix for prefix in prefixes if _all_alike(prefix, count[0], counts)), name)
    stacks[node] = count[0]
    if len(count) > 1 and node != name:
      stacks[name] = count[1]
  return stacks


def _all_alike(prefix: str, count: int, counts: Mapping[str, tuple[int, ...]]) -> bool:
  return all(found[:1] == (count,) for name, found in counts.items() if name.startswith(f"{prefix}."))


def _leading(leaf: _Leaf, shape: tuple[int, ...]) -> tuple[int, ...]:
  """The stack, where its axes are the first of the leaf as it is stored."""
  count = len(leaf.stack)
  if not count or leaf.view is None or shape[:count] != leaf.stack:
    return ()
  return leaf.stack if all(_keeps(op, leaf.stack) for op in leaf.view.ops) else ()


def _keeps(op: Op, stack: tuple[int, ...]) -> bool:
  """Whether a step of a view leaves the stack's axes in front and whole."""
  count, (name, first, *rest) = len(stack), op
  if name == "transpose":
    return bool(first[:count] == tuple(range(count)))
  if name == "reshape":
    return bool(first[:count] == stack)
  if name == "slice":
    return bool(tuple(rest[0][:count]) == stack) and not any(first[:count])
  return bool(min(first) >= count)


def _nodes(leaves: Mapping[str, _Leaf], stacks: Mapping[str, int]) -> dict[str, str]:
  """Leaf at which methods act -> where their own leaves stand: in its module, or beside it where that has several."""
  acted_on = [name for name, leaf in leaves.items() if leaf.kind in ACTED_ON]
  modules = [name.rpartition(".")[0] for name in acted_on]
  nodes = {}
  for name, module in zip(acted_on, modules):
    is_alone = module and modules.count(module) == 1 and not any(one.startswith(f"{module}.") for one in modules)
    is_stored_so = masks.stack_shape(module, stacks) == leaves[name].stack
    nodes[name] = module if is_alone and is_stored_so else f"{name}_adapter"
  return nodes


def _sites(
  leaf: _Leaf, leaves: Mapping[str, _Leaf], nodes: Mapping[str, str], stacks: Mapping[str, int], dtype: Any
) -> Iterable[Site]:
  if leaf.view is None or leaf.kind in ("unused", "other"):
    return
  shape = leaf.view.shape[len(leaf.stack) :]
  node = nodes.get(leaf.name, leaf.name)
  role = {"embedding": "embedding", "norm": "scale", "bias": "bias"}.get(leaf.kind, "kernel")
  names = names_of(leaf.name, leaf.stack, stacks)
  places = [Place(role, leaf.name, leaf.view, names)]
  if leaf.bias:
    bias = leaves[leaf.bias]
    assert leaf.bias_view is not None
    places.append(Place("bias", leaf.bias, leaf.bias_view, names_of(leaf.bias, bias.stack, stacks)))
  path = tuple(node.split("."))
  site = Site(
    path, "__call__", leaf.kind, names, leaf.stack, shape, dtype, bool(leaf.bias), base_path=path,
    places=tuple(places), in_weights=leaf.in_weights, window=shape[:-2] if leaf.kind == "conv" else (),
    groups=leaf.groups,
  )  # fmt: skip
  yield site
  if leaf.is_output_too:
    yield dataclasses.replace(site, method="attend", kind="unembedding")


def names_of(leaf: str, stack: Sequence[int], stacks: Mapping[str, int]) -> tuple[str, ...]:
  """A leaf's names, one for each layer and expert: a number behind the node that is stacked.

  >>> names_of("layers.moe.w", (2, 2), {"layers": 2})
  ('layers.0.moe.w.0', 'layers.0.moe.w.1', 'layers.1.moe.w.0', 'layers.1.moe.w.1')
  """
  rest = stack[len(masks.stack_shape(leaf, stacks)) :]
  return tuple(".".join((name, *map(str, at))) for name in masks.layer_names(leaf, stacks) for at in np.ndindex(*rest))


def _row(leaf: _Leaf, shape: tuple[int, ...], uses: int) -> Row:
  own = leaf.view.shape[len(leaf.stack) :] if leaf.view is not None else ()
  kind = "embedding, unembedding" if leaf.is_output_too else leaf.kind
  size_in = own[-2] if len(own) > 1 else 0
  note = f"in weight space ({leaf.in_weights})" if leaf.in_weights else leaf.note
  return Row(leaf.name, shape, kind, size_in, own[-1] if own else 0, leaf.stack, uses, note)
