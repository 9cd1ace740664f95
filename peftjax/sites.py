"""Places in a model where methods act, and what runs through a model, as models declare it and methods see it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np

ARRAY_KINDS = ("linear", "conv", "embedding", "unembedding", "norm")
"""Kinds of site whose input and output are one array each."""

BASE_LEAVES = ("kernel", "bias", "embedding", "scale")
"""What methods call the leaves of a base's module."""


class HasSites:
  """Modules declare with `sites` which of their methods adapters may act on: method name -> kind of site.

  The module whose method is a "model" site declares `streams` too, and `embedding_path` if a prompt may start from a
  table of its. It may have `position_limit`, how many vectors a sequence may have, and
  `default_positions(inputs)`, int[B, L], what it counts where no positions are given.
  """

  sites: ClassVar[Mapping[str, str]] = {}
  streams: ClassVar[tuple[Stream, ...]] = ()

  @property
  def embedding_path(self) -> tuple[str, ...]:
    """Below the module whose method is a "model" site, where the table of its embeddings stands; () without one."""
    return ()


@dataclasses.dataclass(frozen=True)
class Stream:
  """A sequence of vectors that runs through a model: tokens, patches, frames. The model site's names for it.

  An encoder-decoder has two. Attributes:
    embeds: the argument that holds it, [B, L, hidden]; a prompt is put into the first stream.
    ids: the model's own input int[B, L] by which `embeds` is looked up; "" where it comes another way.
    mask: the argument [B, L] that is 1 where there is something and 0 at padding; "" if all of it is there.
    positions: the argument int[B, L] that says where each vector stands; "" if the model has no use for it.
    packed: the argument int[B, L] by which several sequences share a row; "" if they cannot.
    along: other arguments [B, L] with an entry for each vector -> a virtual one's.
    outputs: outputs with an entry for each vector -> the axis of length; that of the batch is the one before.
    within: the part of the path that tells this stream's layers from another's.
    start: how many vectors stay in front of a prompt, such as a class token.
  """

  embeds: str = "embeds"
  ids: str = ""
  mask: str = ""
  positions: str = ""
  packed: str = ""
  along: Mapping[str, int] = dataclasses.field(default_factory=dict, hash=False)
  outputs: Mapping[str, int] = dataclasses.field(default_factory=dict, hash=False)
  within: str = ""
  start: int = 0


@dataclasses.dataclass(frozen=True)
class Folding:
  """How a linear map over several axes reads as a matrix: x [..., in], W [in, out], y [..., out].

  Methods see the matrix; the module sees its own axes. Of a convolution the kernel alone is turned.

  Attributes:
    x: axes of the input that are summed over; counted from the last, but for those before an ellipsis.
    y: axes of the output that the kernel makes.
    kernel: the permutation that puts the kernel's summed axes first and those of the output last; without the axis of
      experts, which leads.
    shape: of the kernel's axes in that order.
    experts: (axis of the input, axis of the output) that the kernel's first axis goes along, one matrix for each place
      on it; x [..., E, in], W [E, in, out], y [..., E, out] then. None: one matrix.
  """

  x: tuple[int, ...]
  y: tuple[int, ...]
  kernel: tuple[int, ...]
  shape: tuple[int, ...]
  experts: tuple[int, int] | None = None

  def fold_x(self, x: jax.Array) -> jax.Array:
    """[..., in] of an input."""
    return _gathered(x, self.x, self.experts and self.experts[0])

  def unfold_x(self, x: jax.Array) -> jax.Array:
    """The input that [..., in] stands for."""
    return _spread(x, self.x, self.shape[: len(self.x)], self.experts and self.experts[0])

  def fold_y(self, y: jax.Array) -> jax.Array:
    """[..., out] of an output."""
    return _gathered(y, self.y, self.experts and self.experts[1])

  def unfold_y(self, y: jax.Array) -> jax.Array:
    """The output that [..., out] stands for."""
    return _spread(y, self.y, self.shape[len(self.shape) - len(self.y) :], self.experts and self.experts[1])


def _gathered(x: jax.Array, axes: tuple[int, ...], experts: int | None) -> jax.Array:
  if not axes:
    return x
  first = () if experts is None else (experts,)
  moved = jnp.moveaxis(x, (*first, *axes), range(-len(axes) - len(first), 0))
  return moved.reshape(*moved.shape[: -len(axes)], math.prod(moved.shape[-len(axes) :]))


def _spread(x: jax.Array, axes: tuple[int, ...], sizes: tuple[int, ...], experts: int | None) -> jax.Array:
  if not axes:
    return x
  first = () if experts is None else (experts,)
  return jnp.moveaxis(x.reshape(*x.shape[:-1], *sizes), range(-len(axes) - len(first), 0), (*first, *axes))


class View(Protocol):
  """How a leaf of a user's own function reads as methods see it, all layers at once."""

  def of(self, leaf: jax.Array) -> jax.Array:
    """[*stack, *shape] of the leaf as it is stored."""

  def back(self, change: jax.Array) -> jax.Array:
    """The leaf's change that one of [*stack, *shape] stands for; zero where the view does not reach."""

  def transposed(self, permutation: Sequence[int]) -> View:
    """With its axes in another order."""

  def reshaped(self, shape: Sequence[int]) -> View:
    """What it shows, read in another shape with the same number of values."""


@dataclasses.dataclass(frozen=True)
class Place:
  """A leaf that a site in a user's own function has.

  Attributes:
    role: what methods call it: kernel, bias, embedding, scale.
    leaf: its dotted path in the tree.
    view: how methods see it.
    names: its names, one for each layer.
  """

  role: str
  leaf: str
  view: View
  names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Example:
  """One call of a site as the model was traced, by which the site runs without the model.

  Attributes:
    module: a copy of the module that belongs to no model; of one layer.
    arguments: of the call by name, the input first, arrays as shapes.
  """

  module: Any
  arguments: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Site:
  """A place in a model where a method may act.

  Attributes:
    path: the module's path in the parameter tree; no layer index where layers are stacked.
    method: the module's method that is acted on; "__call__" for leaf modules.
    kind: linear, embedding, unembedding (an output layer tied to an embedding), norm, conv, attention, sublayer, block,
      model.
    names: Hugging Face's dotted module name, one for each layer of the stack (one alone if not stacked).
    stack: leading axes of the stored leaves: (), (layers,) or, for experts, (layers, experts); `names` runs over them
      in row-major order.
    shape: of one layer and one expert: linear (in, out); conv (*window, in of a group, out), or (in · window, out)
      where methods see a matrix; embedding and unembedding (vocabulary, features); norm (features,); attention (query
      heads, key heads, head size); sublayer, block and model (hidden,).
    dtype: of the base's leaves.
    has_bias: whether the base module has a bias.
    base_path: the module whose leaves `create` sees as the base's: its own, and the word embeddings' for a model.
    streams: of a model site: what runs through it; of another: which of these runs through it, if that is known.
    folding: how the module's arrays read as a matrix's, where they have more axes; None: as they are.
    hidden: the size of the hidden states around it, as the block or the model that it is in declares it; 0: unknown.
    example: a call of it, of sites whose input and output are one array each; None where none was traced.
    places: of a site in a user's own function, where its leaves stand; () where they are the module's.
    in_weights: why methods act on the weight itself and not on what goes in and comes out; "" if they do not.
    window: of a convolution: the sizes of its kernel along space or time.
    groups: of a convolution: the parts of its channels that are convolved apart.
    transposed: of a convolution: whether it is one from outputs to inputs.
    experts: matrices that one call uses, each for its share of the input; leaves have them as first axis behind the
      stack's. 0: one matrix, without that axis.
  """

  path: tuple[str, ...]
  method: str
  kind: str
  names: tuple[str, ...]
  stack: tuple[int, ...]
  shape: tuple[int, ...]
  dtype: Any = jnp.float32
  has_bias: bool = False
  base_path: tuple[str, ...] = ()
  streams: tuple[Stream, ...] = ()
  hidden: int = 0
  folding: Folding | None = None
  example: Example | None = dataclasses.field(default=None, compare=False, repr=False)
  places: tuple[Place, ...] = ()
  in_weights: str = ""
  window: tuple[int, ...] = ()
  groups: int = 1
  transposed: bool = False
  experts: int = 0

  @property
  def leaf_path(self) -> tuple[str, ...]:
    """Where the site's own leaves are in the tree: in the module, or under the method's name in it."""
    return self.path if self.method == "__call__" else (*self.path, self.method)

  @property
  def biases(self) -> tuple[str, ...]:
    """The names of its biases, where it says where its leaves stand."""
    return tuple(name for one in self.places if one.role == "bias" for name in one.names)

  def leaf(self, role: str) -> str:
    """Dotted path of one of the base's leaves; "" where the site has none of this role, if it says where they stand."""
    own = ".".join((*self.path, role)) if not self.places else ""
    return next((one.leaf for one in self.places if one.role == role), own)

  def base_leaves(self, flat: Mapping[str, Any], roles: Sequence[str] = BASE_LEAVES) -> dict[str, Any]:
    """The base's leaves at the site as they are stored, by role."""
    return {role: flat[path] for role in roles if (path := self.leaf(role)) in flat}

  def folded(self, leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The base's leaves of all layers as methods see them; what is none of these stays as it is."""
    if not self.places:
      return dict(leaves) if self.folding is None else dict(self.mapped(self.fold)(dict(leaves)))
    views = {one.role: one.view for one in self.places}
    return {role: views[role].of(leaf) if role in views else leaf for role, leaf in leaves.items()}

  def unfolded(self, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `folded`, of changes."""
    if not self.places:
      return dict(changes) if self.folding is None else dict(self.mapped(self.unfold)(dict(changes)))
    views = {one.role: one.view for one in self.places}
    return {role: views[role].back(leaf) for role, leaf in changes.items()}

  def one(self, index: int) -> Site:
    """The site of one layer of the stack."""
    return dataclasses.replace(self, names=(self.names[index],), stack=())

  def mapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of one layer's arrays as a function of arrays with the stack's axes."""
    for _ in self.stack:
      function = jax.vmap(function)
    return function

  @property
  def lead(self) -> tuple[int, ...]:
    """The axes of the site's own leaves before those of one matrix: the stack's and the experts'."""
    return (*self.stack, *((self.experts,) if self.experts else ()))

  def as_matrix(self) -> Site:
    """The site of a convolution, its kernel a matrix [in · window, out] ordered as torch's [out, in, *window]."""
    *window, source, target = self.shape
    order = (len(window), *range(len(window)), len(window) + 1)
    shape, stack = (math.prod(self.shape[:-1]), target), len(self.stack)
    axes = (*range(stack), *(stack + axis for axis in order))
    return dataclasses.replace(
      self,
      shape=shape,
      folding=Folding((), (), order, (source, *window, target)),
      places=tuple(
        dataclasses.replace(one, view=one.view.transposed(axes).reshaped((*self.stack, *shape)))
        if one.role == "kernel"
        else one
        for one in self.places
      ),
    )

  def as_changed(self, why: str) -> Site:
    """The site of a convolution or a table in a user's own function as that of a matrix that a method changes.

    Args:
      why: the method does not act on what goes in and comes out.
    """
    site = self.as_matrix() if self.kind == "conv" else self
    places = tuple(dataclasses.replace(one, role="kernel") if one.role == "embedding" else one for one in site.places)
    return dataclasses.replace(site, kind="linear", places=places, groups=1, in_weights=self.in_weights or why)

  def fold(self, leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The module's leaves of one layer as methods see them: a kernel of `shape`, a bias [out]; of experts one each."""
    if self.folding is None:
      return dict(leaves)
    found, lead = dict(leaves), (self.experts,) if self.experts else ()
    if "kernel" in found:
      found["kernel"] = found["kernel"].transpose(self._order(self.folding.kernel)).reshape(*lead, *self.shape)
    if "bias" in found:
      found["bias"] = found["bias"].reshape(*lead, -1)
    return found

  def unfold(self, leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `fold`; the kernel of a convolution may have another number of features."""
    if self.folding is None:
      return dict(leaves)
    found, lead = dict(leaves), (self.experts,) if self.experts else ()
    if "kernel" in found:
      *sizes, last = self.folding.shape
      features = found["kernel"].shape[-1] if not self.folding.x else last
      spread = found["kernel"].reshape(*lead, *sizes, features)
      found["kernel"] = spread.transpose(self._order(np.argsort(self.folding.kernel)))
    if "bias" in found and self.folding.y:
      found["bias"] = found["bias"].reshape(*lead, *self.folding.shape[len(self.folding.x) :])
    return found

  def _order(self, axes: Any) -> tuple[int, ...]:
    """A permutation of one matrix's axes, behind that of experts."""
    return (0, *(axis + 1 for axis in axes)) if self.experts else tuple(axes)

  @property
  def name(self) -> str:
    """The first layer's name, with the method where that is not the module's call."""
    return self.names[0] if self.method == "__call__" else f"{self.names[0]}.{self.method}"
