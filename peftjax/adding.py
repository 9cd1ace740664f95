"""Adding methods to a model: their leaves are laid beside the base's, which stay the same arrays."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from peftjax import masks, memory
from peftjax.errors import UserError
from peftjax.methods import Method, expand
from peftjax.methods.attach import attach
from peftjax.methods.bound import Bound, bind
from peftjax.methods.observe import observe
from peftjax.methods.settings import check
from peftjax.methods.usage import check_all_used
from peftjax.models import pretrained
from peftjax.quantize import is_quantized
from peftjax.quantize_model import check_frozen
from peftjax.sites import Site
from peftjax.stacks import unstack
from peftjax.vocabulary import untied_for
from peftjax.wrap.family import is_wrapped

if TYPE_CHECKING:
  from peftjax.model import Model


def add(model: Model, methods: Method | Sequence[Method], key: jax.Array | None = None) -> Model:
  """See `Model.add`."""
  parts = expand(methods)
  for method in parts:
    check(method)
  if is_wrapped(model):
    _check_kinds(model, parts)
  model = untied_for(model, parts)
  try:
    bound = bind(parts, model.context)
    for one in bound:
      check_frozen(model.params, masks.label(model.params, one.mask, model.stacks), one.method.name)
  except masks.LayersDiffer as error:
    if is_wrapped(model):
      raise UserError(f"{error}; your own function scans over them as one leaf, so treat them alike") from None
    if not model.layer_stacks:
      raise UserError(f"{error}; the experts of a layer are one leaf, so treat them alike") from None
    return add(model.unrolled(), methods, key)
  key = jax.random.key(0) if key is None else key
  laid = functools.partial(attach, bound=bound, key=key, original=_originals(model, bound))
  observed = _observed(model, bound)
  if model.is_abstract:
    params = jax.eval_shape(laid, model.params, observed=observed)
  else:
    if _may_be_large(bound):
      shapes = jax.eval_shape(laid, model.params, observed=observed)
      made = masks.count(shapes).bytes - masks.count(model.params).bytes
      memory.check(made, f"{' + '.join(one.method.name for one in bound)}: the leaves that it adds")
    params = laid(model.params, observed=observed)
  whole = (*model.bound, *bound)
  check_all_used(model.module, params, whole, model.example_inputs)
  return _with_float32(dataclasses.replace(model, params=params, bound=whole))


def _check_kinds(model: Model, methods: Sequence[Method]) -> None:
  """Raises a `UserError` for a method that needs places which dataflow does not find, such as attention."""
  for method in methods:
    if method.kinds and not any(map(method.reaches, model.sites)):
      named = not {"linear", "conv", "embedding", "norm"} & set(method.kinds)
      unknown = next(
        (f": {path!r} is {use}" for path, use in model.context.uses.items() if use.startswith("other")), ""
      )
      hint = "; such places have names in this package's families alone (peftjax.load)" if named else unknown
      raise UserError(f"{method.name} acts on {' and '.join(method.kinds)} sites, and the model has none{hint}")


def _with_float32(model: Model) -> Model:
  """The model with what trains in float32, whatever the base's dtype: small updates round to nothing in fewer bits.

  The forward pass converts such leaves to the compute dtype.
  """
  if model.runtime.trains_as_stored:
    return model
  groups = masks.flatten(model.labels())

  def wide(path: str, leaf: Any) -> Any:
    if groups[path] == masks.FROZEN or is_quantized(leaf) or not jnp.issubdtype(leaf.dtype, jnp.floating):
      return leaf
    if leaf.dtype.itemsize >= 4:
      return leaf
    return jax.ShapeDtypeStruct(leaf.shape, jnp.float32) if model.is_abstract else leaf.astype(jnp.float32)

  flat = masks.flatten(model.params)
  return model.with_params(masks.unflatten({path: wide(path, leaf) for path, leaf in flat.items()}))


def _may_be_large(bound: Sequence[Bound]) -> bool:
  """Whether leaves as wide as the greatest of a method's counts may take a good part of the memory."""
  total = 0
  for one in bound:
    fields = [getattr(one.method, field.name) for field in dataclasses.fields(one.method)]
    numbers = [inner for value in fields for inner in (value.values() if isinstance(value, Mapping) else (value,))]
    widest = max((number for number in numbers if isinstance(number, int)), default=0)
    total += sum(4 * widest * max(site.shape, default=1) * len(site.names) for site in one.sites)
  return total > memory.limit() // 4


def _originals(model: Model, bound: tuple[Bound, ...]) -> Callable[[Site], jax.Array] | None:
  """How to get the float kernel that was quantised at a site; None if no method asks for one."""
  wanting = [one for one in bound if one.method.needs_original]
  if not wanting:
    return None
  paths, name = model.quantized_paths(), wanting[0].method.name
  if not any(".".join((*site.path, "kernel")) in paths for one in wanting for site in one.sites):
    raise UserError(f"{name}.init='loftq' starts from what quantisation rounded away; set model.quantize='nf4'")
  if model.is_abstract:
    return lambda site: jnp.zeros((*site.stack, *site.shape))
  if model.folder is None:
    raise UserError(f"{name}.init='loftq' needs the float weights; load the model from a folder with quantize='nf4'")
  return pretrained.kernels_of(model.folder, model.family, model.params, model.stacks)


def _observed(model: Model, bound: tuple[Bound, ...]) -> dict[str, dict[str, Any]]:
  """What methods note at their sites in a run of the model as it is; {} for most methods."""
  watching = [one for one in bound if one.method.calibration(one.sites) is not None]
  if not watching:
    return {}
  if is_wrapped(model):
    raise UserError(
      f"{watching[0].method.name} starts from a run of the base, which needs one of this package's families"
    )
  plain = model.with_params(jax.eval_shape(lambda tree: tree, model.params)).unrolled()
  module: Any = plain.module

  def run(params: masks.Tree) -> dict[str, dict[str, Any]]:
    whole = unstack(params, model.stacks)
    return {key: leaves for one in watching for key, leaves in observe(module, plain.bound, whole, one).items()}

  return jax.eval_shape(run, model.params) if model.is_abstract else jax.jit(run)(model.params)
