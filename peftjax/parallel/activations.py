"""Activations that stay where the batch lies, so that leaves come to them and not they to leaves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from peftjax import masks
from peftjax.model import Model
from peftjax.parallel.gathering import in_stages
from peftjax.parallel.mesh import BATCH_AXES
from peftjax.parallel.sharding import EMBED, RULES, by_rules, ends_of, hidden_size
from peftjax.placement import Placement, bringing, placed


def on_mesh(forward: Callable[..., Any], model: Model, mesh: Mesh) -> Callable[..., Any]:
  """A forward pass whose activations stay where the batch lies, so that leaves come to them and not they to leaves.

  Left to itself, the partitioner gathers the batch instead of the leaves wherever a leaf is larger. Inputs and outputs
  of every linear module are held to [batch over data and fsdp, length over sequence, features over tensor or whole].
  """
  ways = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
  placement = Placement(mesh.devices.flat[0].platform, ways, mesh.shape["tensor"])
  hidden = hidden_size(model)
  ends = {
    site.path: ends_of(site, hidden)
    for site in model.sites
    if site.kind in ("linear", "embedding") and site.folding is None
  }
  # Without recomputation the gathered kernels of all layers would be kept for the backward pass.
  gather = in_stages(mesh) if model.runtime.remat != "none" else None

  def hold(x: jax.Array, name: str | None) -> jax.Array:
    if x.ndim < 2 or x.shape[0] % ways:
      return x
    along = mesh.shape["sequence"]
    middle = ["sequence" if x.ndim == 3 and along > 1 and x.shape[1] % along == 0 else None] + [None] * (x.ndim - 3)
    axis = RULES.get(name or "") if name != EMBED else None
    last = axis if axis and x.shape[-1] % mesh.shape[axis] == 0 else None
    spec = PartitionSpec(BATCH_AXES, *middle[: x.ndim - 2], last)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

  def intercept(next_fun: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    module = context.module
    if context.method_name != "__call__" or module.scope is None or module.path not in ends or len(args) != 1:
      return next_fun(*args, **kwargs)
    source, target = ends[module.path]
    if isinstance(module, nn.Embed):
      return hold(next_fun(*args, **kwargs), target)
    x = hold(args[0], source)
    if gather is None:
      return hold(next_fun(x, **kwargs), target)
    with bringing(lambda kernel: gather(kernel, by_rules(mesh, (source, target), kernel, 0))):
      return hold(next_fun(x, **kwargs), target)

  def run(params: masks.Tree, inputs: Mapping[str, Any], rng: jax.Array | None = None) -> Any:
    with placed(placement):
      if mesh.size == 1 or not isinstance(model.module, nn.Module):  # a program of the user's own has no modules
        return forward(params, inputs, rng)
      with nn.intercept_methods(intercept):
        return forward(params, inputs, rng)

  return run
