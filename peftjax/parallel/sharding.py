"""Where every leaf lies on the mesh: logical names of its axes, and rules from names to mesh axes.

  q_proj.kernel  [layers, hidden, heads · size]    (None, "embed", "heads")   -> PartitionSpec(None, "fsdp", "tensor")
  q_proj.lora_a  [layers, hidden, rank]            (None, "embed", None)      -> PartitionSpec(None, "fsdp", None)
  q_proj.lora_b  [layers, rank, heads · size]      (None, None, "heads")      -> PartitionSpec(None, None, "tensor")

An adapter's leaf takes the names of those axes of the adapted leaf that its own match, and a statistic of the optimizer
those of its parameter. Axes of layers are whole on every device, and so are those of experts that are picked one at a
time; where one map holds a matrix for each expert, experts lie apart. What does not divide is replicated.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from peftjax import masks
from peftjax.model import Model
from peftjax.sites import Folding, Site

Axes = tuple[str | None, ...]

EMBED, HEADS, MLP, VOCAB, EXPERT = "embed", "heads", "mlp", "vocab", "expert"
RULES: Mapping[str, str] = {EXPERT: "tensor", EMBED: "fsdp", HEADS: "tensor", MLP: "tensor", VOCAB: "tensor"}
SMALLEST = 2**14  # elements; smaller leaves cost more to gather than to hold

# Modules that lead back to the hidden states, by the end of their Hugging Face name; other linears lead away from them.
_BACK = re.compile(
  r"(^|\.)(o_proj|out_proj|c_proj|down_proj|fc2|fc_out|wo|o|w2|weights_out|dense_4h_to_h|(output|attention)\.dense"
  r"|to_out\.0|ff\.net\.2)$"
)
_ATTENTION = re.compile(r"(^|\.)(\w*attn\d?|\w*attention|SelfAttention|EncDecAttention)(\.|$)")
_OUTPUT_LAYER = re.compile(r"(^|\.)(lm_head|embed_out)$|^proj_out$")


@dataclasses.dataclass(frozen=True)
class Layout:
  """How a model's leaves lie on a mesh.

  Attributes:
    mesh: the devices.
    axes: dotted path -> the logical names of the leaf's axes, for those that have names.
    stacks: dotted path of each stack -> layers or experts.
  """

  mesh: Mesh
  axes: Mapping[str, Axes]
  stacks: Mapping[str, int]

  def spec(self, name: str, leaf: Any) -> PartitionSpec:
    """How the leaf at a dotted path, a parameter's or one that ends in a parameter's, is split."""
    owner = self._owner(name)
    leading = len(masks.stack_shape(owner, self.stacks)) if owner else 0
    axes = self.axes.get(owner)
    if axes is None or len(axes) != len(leaf.shape):
      axes = (None,) * len(leaf.shape)
    return by_rules(self.mesh, axes, leaf, leading)

  def shardings(self, tree: Any) -> Any:
    """The tree of shardings for a tree of arrays or shapes: parameters, or a whole training state."""

    def one(path: Any, leaf: Any) -> NamedSharding:
      return NamedSharding(self.mesh, self.spec(jax.tree_util.keystr(path, simple=True, separator="."), leaf))

    return jax.tree_util.tree_map_with_path(one, tree)

  def notes(self, tree: Any, least: int = 2**26) -> list[str]:
    """A line for every leaf of at least `least` bytes that is whole on every device of a mesh that splits leaves."""
    ways = self.mesh.shape["fsdp"] * self.mesh.shape["tensor"]
    lines = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
      name = jax.tree_util.keystr(path, simple=True, separator=".")
      if ways > 1 and math.prod(leaf.shape) * leaf.dtype.itemsize >= least and not any(self.spec(name, leaf)):
        lines.append(f"{name} {list(leaf.shape)} is replicated: no axis divides by mesh.fsdp or mesh.tensor")
    return lines

  def _owner(self, name: str) -> str:
    """The parameter whose path the name contains: a statistic's, or that of a quantised leaf's codes and scales."""
    if name in self.axes:
      return name
    parts = name.split(".")
    for start in range(len(parts)):
      for end in range(len(parts), start, -1):
        found = ".".join(parts[start:end])
        if found in self.axes:
          return found
    return ""


def layout_of(model: Model, mesh: Mesh) -> Layout:
  """The layout of a model with its methods, from its sites alone."""
  hidden = hidden_size(model)
  flat = masks.flatten(model.params)
  axes: dict[str, Axes] = {}
  for site in sorted(model.sites, key=lambda site: len(site.path)):
    prefix = ".".join(site.path) + "."
    ends = ends_of(site, hidden)
    for path in [path for path in flat if path.startswith(prefix)]:
      stack = masks.stack_shape(path, model.stacks)
      own = flat[path].shape[len(stack) :]
      lead: Axes = (None,) * len(stack)
      if site.experts and own[:1] == (site.experts,):
        lead, own = (*lead, EXPERT), own[1:]
      axes[path] = (*lead, *_names(path.rpartition(".")[2], own, site, ends))
  for path, leaf in flat.items():
    axes.setdefault(path, _unnamed(path, leaf, model.stacks, hidden))
  return Layout(mesh, axes, dict(model.stacks))


def hidden_size(model: Model) -> int:
  """The size of the hidden states: the commonest end of the linear sites."""
  ends = collections.Counter(
    end for site in model.sites if site.kind == "linear" for end in site.shape for _ in site.names
  )
  return ends.most_common(1)[0][0] if ends else 0


def ends_of(site: Site, hidden: int) -> tuple[str | None, str | None]:
  """The logical names of a site's input and output.

  Args:
    hidden: the size of the hidden states, where the site does not know that of those around it.
  """
  name = site.names[0]
  hidden = site.hidden or hidden
  if site.kind in ("embedding", "unembedding"):
    return VOCAB, EMBED
  if site.kind not in ("linear", "conv"):
    return EMBED, EMBED
  if _OUTPUT_LAYER.search(name):
    return EMBED, VOCAB
  if site.kind == "conv":  # a model of images has many widths, and each may be the next one's input
    return EMBED, MLP
  inside = HEADS if _ATTENTION.search(name) else MLP
  source, target = site.shape[-2:]
  if _BACK.search(name) and target == hidden:
    return inside, EMBED
  leads_away = source == hidden or (inside == HEADS and target == hidden)  # keys and values of another's states too
  return EMBED if source == hidden else None, inside if leads_away else None


def _names(leaf: str, shape: tuple[int, ...], site: Site, ends: tuple[str | None, str | None]) -> Axes:
  """The names of a leaf's axes at a site: the axis that is as long as the input or output has its name.

  Where input and output are of one size, a matrix's first axis is the input's and its last the output's.
  """
  if site.folding is not None and site.folding.x and leaf in ("kernel", "bias"):
    return _folded_names(leaf, shape, site.folding, ends)
  source, target = site.shape[-2:] if len(site.shape) > 1 and site.kind != "attention" else (site.shape[-1],) * 2
  if len(shape) == 1:
    is_target = shape[0] == target and leaf != "lora_a"
    name = ends[1] if is_target else ends[0] if shape[0] == source else None
    return (name if name != EMBED else None,)  # vectors along the hidden states are held whole, as norms are
  names: list[str | None] = [None] * len(shape)
  if len(shape) >= 2 and site.kind != "attention":
    if shape[-2] == source:
      names[-2] = ends[0]
    if shape[-1] == target and (names[-2] is None or names[-2] != ends[1]):
      names[-1] = ends[1]
  return tuple(names)


def _folded_names(leaf: str, shape: tuple[int, ...], folding: Folding, ends: tuple[str | None, str | None]) -> Axes:
  """Of a kernel of several axes the first of the input's and the first of the output's have these ends' names."""
  names: list[str | None] = [None] * len(shape)
  if leaf == "kernel":
    names[folding.kernel[0]] = ends[0]
    if ends[1] != ends[0]:
      names[folding.kernel[len(folding.x)]] = ends[1]
  elif ends[1] != EMBED:
    names[0] = ends[1]
  return tuple(names)


def _unnamed(path: str, leaf: Any, stacks: Mapping[str, int], hidden: int) -> Axes:
  """The names of a leaf that stands at no site, such as one that all sites share: axes of the hidden size alone."""
  leading = len(masks.stack_shape(path, stacks))
  names: list[str | None] = [None] * len(leaf.shape)
  for axis in range(leading, len(leaf.shape)):
    if leaf.shape[axis] == hidden and len(leaf.shape) - leading > 1 and EMBED not in names:
      names[axis] = EMBED
  return tuple(names)


def by_rules(mesh: Mesh, axes: Axes, leaf: Any, leading: int) -> PartitionSpec:
  """The rules' mesh axes where they divide; where none of them is `fsdp`, that too, on the longest axis it divides.

  An axis without a name, such as a rank, is split only where no axis has one.
  """
  if math.prod(leaf.shape) < SMALLEST:
    return PartitionSpec()
  chosen: list[Any] = [None] * len(axes)
  for index, (name, size) in enumerate(zip(axes, leaf.shape)):
    axis = RULES.get(name or "")
    if axis is not None and mesh.shape[axis] > 1 and size % mesh.shape[axis] == 0 and axis not in chosen:
      chosen[index] = axis
  ways = mesh.shape["fsdp"]
  if ways > 1 and "fsdp" not in chosen:
    held = [size // (mesh.shape[axis] if axis else 1) for axis, size in zip(chosen, leaf.shape)]
    named = [index for index, name in enumerate(axes) if name] or range(leading, len(held))
    free = [index for index in named if held[index] % ways == 0]
    if free:
      longest = max(free, key=lambda index: held[index])
      chosen[longest] = (chosen[longest], "fsdp") if chosen[longest] else "fsdp"
  return PartitionSpec(*chosen) if any(chosen) else PartitionSpec()
