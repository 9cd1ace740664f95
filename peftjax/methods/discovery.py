"""The sites of a Linen module, found by running it once on shapes under a recording interceptor."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from peftjax import buffers, masks
from peftjax.errors import UserError
from peftjax.methods.folding import NotAMatrix, folding_of
from peftjax.sites import ARRAY_KINDS, Example, Site, Stream

_LEAF_MODULES: tuple[tuple[Any, str, str], ...] = (
  (nn.Dense, "linear", "kernel"),
  (nn.DenseGeneral, "linear", "kernel"),
  (nn.Einsum, "linear", "kernel"),
  (nn.Conv, "conv", "kernel"),
  (nn.ConvTranspose, "conv", "kernel"),
  (nn.Embed, "embedding", "embedding"),
  (nn.LayerNorm, "norm", "scale"),
  (nn.RMSNorm, "norm", "scale"),
  (nn.GroupNorm, "norm", "scale"),
  (nn.BatchNorm, "norm", "scale"),
  (nn.InstanceNorm, "norm", "scale"),
)


def discover(
  module: nn.Module, inputs: Mapping[str, Any], stacks: Mapping[str, int]
) -> tuple[masks.Tree, tuple[Site, ...]]:
  """(shapes of its leaves, sites) of a module, from shapes alone; other collections than `params` are buffers.

  Args:
    module: any Linen model; modules may declare `sites` (method name -> kind) beside the built-in leaf modules.
    inputs: keyword inputs of its call, arrays or `jax.ShapeDtypeStruct`s.
    stacks: dotted path of each scanned stack -> number of layers.
  """
  found: dict[tuple[tuple[str, ...], str], Site] = {}

  def record(next_fun: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    y = next_fun(*args, **kwargs)
    site = _site_of(context, args, kwargs, stacks)
    if site is not None:
      found.setdefault((site.path, site.method), site)
    return y

  with nn.intercept_methods(record):
    variables = jax.eval_shape(lambda key, batch: module.init(key, **batch), jax.random.key(0), dict(inputs))
  return buffers.tree_of(variables), tuple(_in_context(list(found.values())))


def _site_of(context: Any, args: Any, kwargs: Any, stacks: Mapping[str, int]) -> Site | None:
  module, method = context.module, context.method_name
  kind = getattr(type(module), "sites", {}).get(method)
  shape: tuple[int, ...] = ()
  dtype, has_bias = jnp.float32, False
  if kind is None and method == "__call__":
    for module_type, leaf_kind, leaf in _LEAF_MODULES:
      if isinstance(module, module_type) and module.has_variable("params", leaf):
        value = module.get_variable("params", leaf)
        kind, shape, dtype = leaf_kind, tuple(value.shape), value.dtype
        has_bias = module.has_variable("params", "bias")
        break
  if isinstance(module, nn.BatchNorm):
    _check_uses_statistics(module, arguments_of(module, method, args, kwargs))
  if kind is None and method == "attend" and isinstance(module, nn.Embed):
    kind, shape, dtype = "unembedding", tuple(module.embedding.shape), module.embedding.dtype
  if kind is None:
    return None
  arguments = arguments_of(module, method, args, kwargs)
  folding = None
  if isinstance(module, nn.DenseGeneral | nn.Einsum | nn.ConvTranspose):
    try:
      folding = folding_of(module, arguments, shape)
    except NotAMatrix:
      return None
  experts = 0
  if folding is not None and folding.x:
    split, experts = len(folding.x), shape[0] if folding.experts is not None else 0
    shape = (math.prod(folding.shape[:split]), math.prod(folding.shape[split:]))
  elif folding is not None:
    shape = folding.shape
  if not shape:
    shape = _activation_shape(kind, arguments)
  dotted = ".".join(module.path)
  below = dotted + "."  # a stack's own module is one of its layers
  names = tuple(name[:-1] for name in masks.layer_names(below, stacks))
  stack = masks.stack_shape(below, stacks)
  example = _example(module, arguments) if kind in ARRAY_KINDS else None
  site = Site(module.path, method, kind, names, stack, shape, dtype, has_bias, base_path=module.path, folding=folding,
              experts=experts, example=example)  # fmt: skip
  if isinstance(module, nn.Conv | nn.ConvTranspose):
    groups, transposed = getattr(module, "feature_group_count", 1), isinstance(module, nn.ConvTranspose)
    return dataclasses.replace(site, window=shape[:-2], groups=groups, transposed=transposed)
  if kind != "model":
    return site
  base_path = (*module.path, *module.embedding_path)
  streams: tuple[Stream, ...] = tuple(module.streams) or (Stream(),)
  return dataclasses.replace(site, base_path=base_path, streams=streams)


def _example(module: nn.Module, arguments: Mapping[str, Any]) -> Example:
  shapes = jax.tree.map(
    lambda one: jax.ShapeDtypeStruct(one.shape, one.dtype) if isinstance(one, jax.Array) else one, dict(arguments)
  )
  return Example(module.clone(parent=None, name=None), shapes)


def _check_uses_statistics(module: nn.BatchNorm, arguments: Mapping[str, Any]) -> None:
  given = arguments.get("use_running_average")
  if not (module.use_running_average if given is None else given):
    raise UserError(
      f"{'.'.join(module.path)} counts statistics while it runs, and no step here keeps them; build the model with "
      "nn.BatchNorm(use_running_average=True)"
    )


def _in_context(sites: list[Site]) -> list[Site]:
  """The sites, each with what runs through it; of models within models the outermost alone."""
  models = [site for site in sites if site.kind == "model"]
  models = [site for site in models if not any(_is_below(site, other) for other in models if other is not site)]
  around = [site for site in sites if site.kind in ("model", "block", "sublayer")]
  found = []
  for site in sites:
    if site.kind == "model":
      found += [site] if site in models else []
      continue
    outer = next((model for model in models if _is_below(site, model)), None)
    streams = () if outer is None else outer.streams
    inside = () if outer is None else site.path[len(outer.path) :]
    own = tuple(stream for stream in streams if stream.within in (*inside, ""))
    outside = [other for other in around if _is_below(site, other)]
    hidden = max(outside, key=lambda other: len(other.path)).shape[0] if outside else 0
    found.append(dataclasses.replace(site, streams=own, hidden=hidden))
  return found


def _is_below(site: Site, other: Site) -> bool:
  return site.path[: len(other.path)] == other.path


def _activation_shape(kind: str, arguments: dict[str, Any]) -> tuple[int, ...]:
  if kind == "attention":
    q, k = arguments["q"], arguments["k"]
    return (q.shape[-2], k.shape[-2], q.shape[-1])
  return (next(iter(arguments.values())).shape[-1],)


def arguments_of(module: nn.Module, method: str, args: Any, kwargs: Any) -> dict[str, Any]:
  """The call's arguments by name."""
  parameters = list(inspect.signature(getattr(type(module), method)).parameters)[1:]
  return {**dict(zip(parameters, args)), **kwargs}
