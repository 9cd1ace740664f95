"""The protocol of a method: the leaves it adds at sites, how they act, and which leaves train.

  before   {"query": {"kernel": f32[384, 384], "bias": f32[384]}}
  after    {"query": {"kernel": ..., "bias": ..., "lora_a": f32[384, 8], "lora_b": f32[8, 384]}}   LoRA(rank=8)

A method is a frozen dataclass whose fields are its settings. It never sees how layers are stored: `create`, `before`,
`after` and `delta` get the leaves of one layer, `mask` the name of one layer's leaf.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import optax

from peftjax import masks
from peftjax.errors import UserError, nearest
from peftjax.sites import Site

Leaves = dict[str, Any]

MAY_BE_ZERO = {"may_be_zero": True}
"""Metadata of a count whose 0 leaves a part of a method out; other positive defaults refuse a 0 from a config."""

_LEAF_KINDS = ("linear", "conv", "embedding", "norm")
ADAPTER = "adapter"
SAVED = "saved"
BIAS = "bias"
# Default peak learning rate of a linear head that classifies texts and was drawn anew; docs/learning_rates.md
NEW_HEAD_RATE = 5e-2


@dataclasses.dataclass(frozen=True)
class Context:
  """What a method may know of the model when its defaults are filled in.

  Attributes:
    sites: all sites of the model, head included.
    stacks: dotted path of each stack -> layers.
    head: dotted prefixes of the task head's leaves.
    model_type: config.json's.
    config: config.json as a dict.
    encode: a text -> its token ids, special tokens included, by the model's tokenizer; None if it came without one.
    uses: of a model of the user's own, the name of each leaf -> how its program uses it.
    renamed: a module's name -> the one that transformers has for it now, where that is another than in checkpoints.
  """

  sites: tuple[Site, ...]
  stacks: Mapping[str, int]
  head: tuple[str, ...] = ()
  model_type: str = ""
  config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  encode: Callable[[str], tuple[int, ...]] | None = None
  uses: Mapping[str, str] = dataclasses.field(default_factory=dict)
  renamed: Callable[[str], str] | None = None

  def spelled(self, patterns: masks.Patterns, names: Sequence[str]) -> masks.Patterns:
    """Patterns of modules with those that match none of `names`, but what transformers calls these now, respelled."""
    if self.renamed is None or patterns == masks.ALL_LINEAR:
      return patterns
    now = {name: self.renamed(name) for name in names}
    found: list[str] = []
    for entry in masks.as_entries(patterns):
      one: masks.Patterns = entry if isinstance(patterns, str) else (entry,)
      hits = {name for name in names if masks.matches(one, now[name])}
      if not hits or any(masks.matches(one, name) for name in names):
        found.append(entry)
      elif isinstance(patterns, str):
        return "|".join(re.escape(name) for name in sorted(hits))
      else:
        found += masks.shortest(hits, names)
    return patterns if isinstance(patterns, str) else tuple(found)

  def in_head(self, name: str) -> bool:
    """Whether a module or leaf name lies in the task head."""
    return any(name == head or name.startswith(head + ".") for head in self.head)


@dataclasses.dataclass
class Call:
  """One intercepted call, as `before` and `after` see it.

  Attributes:
    base: reads a leaf of the base module by name, "kernel" or "bias"; None where it has none.
    shared: leaves that all sites of the method share.
    dropout: drops elements of an array at a rate while training, the identity otherwise.
    key: a fresh key while training, None otherwise.
    rerun: (leaves, x) -> what the base gives for the input `x` with these leaves in place of its own, of a module that
      has a kernel, an embedding or a scale; without "bias" among them it has none. None: it can take no others.
    product: (x, kernel) -> what a linear module or a convolution makes of x with this kernel in place of its own, and
      without a bias; the kernel as the site has it, but for the number of features. Keywords are other settings of a
      convolution.
    module: the Linen module, for methods on attention and model sites.
    notes: what the method's sites tell one another within one forward pass, such as the model site's attention mask.
  """

  base: Callable[[str], Any]
  shared: Leaves
  dropout: Callable[[jax.Array, float], jax.Array]
  key: Callable[[], Any] = lambda: None
  rerun: Callable[[Leaves, Any], Any] | None = None
  product: Callable[..., jax.Array] = jnp.dot
  module: Any = None
  notes: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
  """Base of all methods. With no override it adds no leaf and trains nothing but the task head.

  Class attributes:
    name: what `config.method.name` calls it.
    kinds: the kinds of site it can act on; () for a mask alone.
    leaf_names: the leaves it adds that train, and `buffer_names` those that do not.
    learning_rate: default peak learning rate with AdamW, of all groups but a new head's (`NEW_HEAD_RATE`).
    windows: the numbers of axes that the windows of convolutions may have at which it acts; () for none.
    grouped: it acts at convolutions of several groups, too.
    free: fields in which runs trained by one program may differ; see `free_leaves`.
    only_notes: `before` changes no input, and only notes what `after` needs.
  """

  name: ClassVar[str] = ""
  kinds: ClassVar[tuple[str, ...]] = ()
  leaf_names: ClassVar[tuple[str, ...]] = ()
  buffer_names: ClassVar[tuple[str, ...]] = ()
  learning_rate: ClassVar[float] = 1e-3
  windows: ClassVar[tuple[int, ...]] = ()
  grouped: ClassVar[bool] = False
  free: ClassVar[tuple[str, ...]] = ()
  only_notes: ClassVar[bool] = False

  modules_to_save: tuple[str, ...] = ()

  @property
  def parts(self) -> tuple[Method, ...]:
    """The methods that it stands for: itself, or those of a combination."""
    return (self,)

  def bind(self, context: Context) -> Self:
    """The method with every default that depends on the model filled in, and checked against it."""
    if self.modules_to_save:
      modules = {one for name in _leaf_owner_names(context) for one in ancestors(name)}
      masks.match_table(self.modules_to_save, sorted(modules), f"{self.name}.modules_to_save")
    return self

  def reaches(self, site: Site) -> bool:
    """Whether the method can act at a site of this kind; in a user's own function it may change any matrix."""
    is_matrix = bool(site.places) and site.kind in ("conv", "embedding") and "linear" in self.kinds
    return site.kind in self.kinds or is_matrix

  def select(self, context: Context) -> list[Site]:
    """The sites the method acts on; a site of a stack is selected for all layers or raises `masks.LayersDiffer`."""
    del context
    return []

  def settings(self, name: str) -> Any:
    """What may differ between layers (rank, alpha); layers of one stack must agree on it."""
    del name
    return None

  def calibration(self, sites: Sequence[Site]) -> Mapping[str, Any] | None:
    """The model's inputs for one run of the base before leaves are made; None if `create` needs no activations."""
    del sites
    return None

  def observe(self, x: Any, y: Any, site: Site) -> Leaves:
    """What `create` is to find in `base` from that run, from one layer's input and output as `after` sees them."""
    del x, y, site
    return {}

  @property
  def needs_original(self) -> bool:
    """Whether `create` is to find, at quantised kernels, base["original"], float32, and base["quantized"].

    It may then return another quantised "kernel", which replaces the base's.
    """
    return False

  def create(self, key: jax.Array, site: Site, base: Leaves) -> Leaves:
    """The leaves of one layer's site; `base` holds that layer's base leaves, and what was observed there."""
    del key, site, base
    return {}

  def create_shared(self, key: jax.Array, sites: Sequence[Site]) -> Leaves:
    """Leaves that all sites share; they stand at the root of the tree under the method's name."""
    del key, sites
    return {}

  def derive(self, shared: Leaves, sites: Sequence[Site]) -> list[Leaves]:
    """Leaves computed from the shared ones anew in every forward pass, for each site, with its stack axes leading.

    They are laid at the sites before the module runs, where `before` and `after` find them like any other; a
    reparametrised prefix reaches its layers this way. [] if there are none.
    """
    del shared, sites
    return []

  def free_leaves(self, site: Site) -> Leaves:
    """Frozen leaves of one layer that say the same as its `free` fields, and are read in their stead.

    Where a free field is a width, leaves filled up with zeros must act as the narrower ones and stay zero.
    """
    del site
    return {}

  def before(self, leaves: Leaves, x: Any, site: Site, call: Call) -> Any:
    """The input the base gets: an array for linear, conv, embedding and norm; a dict of arguments otherwise."""
    del leaves, site, call
    return x

  def after(self, leaves: Leaves, x: Any, y: Any, site: Site, call: Call) -> Any:
    """The output, from the original input `x` and the base's output `y`."""
    del leaves, x, site, call
    return y

  def acts_by_delta(self, site: Site) -> bool:
    """Whether it acts at a linear map or a convolution by `delta` alone, as no cheaper way exists.

    The base's product is then taken with the change added to its kernel; `before` and `after` are not called.
    """
    del site
    return False

  def penalty(self, leaves: Leaves, site: Site) -> jax.Array | float:
    """What one layer's leaves add to the mean loss of a training step, a scalar."""
    del leaves, site
    return 0.0

  def transform(self, optimizer: optax.GradientTransformation, total_steps: int) -> optax.GradientTransformation:
    """The optimizer of the whole trainable tree, with what the method does at every update built around it."""
    del total_steps
    return optimizer

  def delta(self, leaves: Leaves, base: Leaves, site: Site, shared: Leaves) -> Leaves:
    """float32 updates of the base module's leaves that merge the method into it: {"kernel": ..., "bias": ...}.

    Raises:
      UserError: the method does not act as a change of the base's weights.
    """
    del leaves, base, site, shared
    raise UserError(f"{self.name} cannot be merged: it is not a change of the base's weights")

  def rate_of(self, group: str) -> float:
    """Default peak learning rate of one of its groups."""
    del group
    return self.learning_rate

  def mask(self, name: str, leaf: Any) -> str:
    """The group of a leaf by its name."""
    del leaf
    module, _, tail = name.rpartition(".")
    if tail in self.leaf_names:
      return ADAPTER
    if self.modules_to_save and any(masks.matches(self.modules_to_save, one) for one in ancestors(module)):
      return masks.FROZEN if tail in self.buffer_names else SAVED
    return masks.FROZEN


def _leaf_owner_names(context: Context) -> list[str]:
  return [name for site in context.sites for name in site.names if site.method == "__call__"]


def ancestors(module: str) -> list[str]:
  """The names of a module and of those that it lies in, the longest first."""
  parts = module.split(".")
  return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Targeted(Method):
  """A method that acts at sites chosen by name, as Hugging Face PEFT chooses them.

  Attributes:
    targets: a sequence of suffixes or globs, a string that is a regular expression for the whole name, or "all-linear"
      (every linear site outside the head); empty: the default of the architecture.
    exclude: patterns of names to leave out.
    layers: indices of the layers to act on; empty: all.
    bias: base biases that train too: "none", "all", or "<method>_only" for those of the targeted modules, where these
      have biases of their own.
  """

  targets: masks.Patterns = ()
  exclude: masks.Patterns = ()
  layers: tuple[int, ...] = ()
  bias: str = "none"

  def default_targets(self, model_type: str) -> masks.Patterns:
    """The architecture's default targets; () if there are none."""
    del model_type
    return ()

  def bind(self, context: Context) -> Self:
    """Fills in `targets` and checks that each pattern matches.

    Raises:
      UserError: no default, a pattern without match, a layer that does not exist.
    """
    method = super().bind(context)
    has_modules = any(kind in _LEAF_KINDS for kind in self.kinds)
    modes = ("none", "all", *([f"{self.name}_only"] if has_modules else []))
    if self.bias not in modes:
      raise UserError(f"{self.name}.bias: unknown mode {self.bias!r}; {nearest(self.bias, modes)}")
    targets = self.targets or self.default_targets(context.model_type)
    if not targets:
      raise UserError(f"{self.name} has no default targets for model_type {context.model_type!r}; set targets=(...)")
    names = [name for site in self.candidates(context) for name in site.names]
    targets, exclude = context.spelled(targets, names), context.spelled(self.exclude, names)
    self._check_convolutions(dataclasses.replace(method, targets=targets), context)
    if targets != masks.ALL_LINEAR:
      self._check_uses(targets, names, context)
      masks.match_table(targets, names, f"{self.name}.targets")
    if exclude:
      masks.match_table(exclude, names, f"{self.name}.exclude")
    if self.layers:
      known = sorted({index for name in names if (index := layer_index(name)) is not None})
      for layer in self.layers:
        if layer not in known:
          raise UserError(f"{self.name}.layers: no layer {layer}; the model has {len(known)}, counted from 0")
    return dataclasses.replace(method, targets=targets, exclude=exclude)

  def _check_uses(self, targets: masks.Patterns, names: list[str], context: Context) -> None:
    """Raises a `UserError` if a pattern matches only leaves of a user's own that the method cannot act on: why."""
    for entry in masks.as_entries(targets):
      one: masks.Patterns = entry if isinstance(targets, str) else (entry,)
      hits = [name for name in context.uses if masks.matches(one, name)]
      if hits and not any(masks.matches(one, name) for name in names):
        kinds = (*self.kinds, "conv", "embedding") if "linear" in self.kinds else self.kinds
        raise UserError(
          f"{self.name}.targets: {entry!r} is {hits[0]!r}, and {self.name} acts on {', '.join(dict.fromkeys(kinds))} "
          f"alone; the leaf is {context.uses[hits[0]]}"
        )

  def candidates(self, context: Context) -> list[Site]:
    """The sites that the method can act on."""
    return [site for site in context.sites if self.reaches(site)]

  def seen(self, site: Site) -> Site:
    """The site as the method sees it."""
    if site.kind in self.kinds:
      return self.at_convolution(site) if site.kind == "conv" else site
    if site.kind == "conv":
      return site.as_changed(f"it is a convolution, where {self.name} is a change of the kernel")
    if site.kind == "embedding":
      return site.as_changed(f"it is a table, where {self.name} is a change of all rows")
    return site

  def at_convolution(self, site: Site) -> Site:
    """The site of a convolution as the method sees it."""
    return site

  def _check_convolutions(self, method: Self, context: Context) -> None:
    """Raises a `UserError` for a convolution that is targeted, and at which the method does not act."""
    if "linear" not in self.kinds:
      return
    for site in context.sites:
      if site.kind != "conv" or site.places:  # in a user's own function it may change any kernel
        continue
      chosen = [name for name in site.names if method.wants(name, site, context)]
      if chosen and (reason := self.refuses(site)):
        raise UserError(f"{self.name} cannot act on {chosen[0]!r}, {reason}; leave it out of targets, or exclude it")

  def refuses(self, site: Site) -> str:
    """Why it cannot act at the site of a convolution; "" if it can."""
    what = f"a {'transposed ' if site.transposed else ''}convolution"
    axes = f"of {len(site.window)} ax{'es' if len(site.window) > 1 else 'is'}"
    if not self.windows:
      return what
    if site.transposed:
      return f"{what}; lora can" if self.name != "lora" else ""
    if len(site.window) not in self.windows:
      return f"{what} {axes}: it does at those of {' or '.join(map(str, self.windows))}, as in Hugging Face PEFT"
    if site.groups > 1 and not self.grouped:
      return f"{what} of {site.groups} groups"
    return ""

  def select(self, context: Context) -> list[Site]:
    """The matched sites, in the model's order."""
    chosen = []
    for site in self.candidates(context):
      wanted = {self.wants(name, site, context) for name in site.names}
      if wanted == {True, False} or len({self.settings(name) for name in site.names if wanted == {True}}) > 1:
        raise masks.LayersDiffer(f"{self.name} treats the layers of {site.names[0]} differently")
      if wanted == {True}:
        chosen.append(self.seen(site))
    if not chosen:
      raise UserError(f"{self.name}: targets, exclude and layers leave no module to act on")
    return chosen

  def wants(self, name: str, site: Site, context: Context) -> bool:
    """Whether targets, exclude and layers choose the module; never one of the task's head."""
    if self.targets == masks.ALL_LINEAR:
      hit = site.kind == "linear" and not name.endswith(("lm_head", "embed_out"))
    else:
      hit = masks.matches(self.targets, name)
    if context.in_head(name) or (self.exclude and masks.matches(self.exclude, name)):
      hit = False  # a head trains whole
    return hit and (not self.layers or layer_index(name) in self.layers)


def layer_index(name: str) -> int | None:
  """The first number in a dotted name: the layer.

  >>> layer_index("encoder.layer.3.attention.self.query")
  3
  """
  for part in name.split("."):
    if part.isdigit():
      return int(part)
  return None


def field_error(method: type[Method], field: str) -> UserError:
  """The error for a setting that a method does not have."""
  known = [one.name for one in dataclasses.fields(method)]
  return UserError(f"method {method.name!r} has no field {field!r}; {nearest(field, known)}")


@dataclasses.dataclass(frozen=True)
class InPlaceOf:
  """What acts in a method's place, on the method's own leaves."""

  method: Method

  @property
  def leaf_names(self) -> tuple[str, ...]:
    """The leaves that the method reads and that train."""
    return self.method.leaf_names

  @property
  def buffer_names(self) -> tuple[str, ...]:
    """Those that it reads and that do not train."""
    return self.method.buffer_names
