"""What methods may learn of a base before their leaves are made: one run of it on inputs that a method names.

A prefix that starts from real text takes the keys and values that the base computes for it; other methods may take
what enters a module. The run is of the unrolled model, where every layer can be told from the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from peftjax import masks
from peftjax.buffers import variables_of
from peftjax.methods.attach import note_key
from peftjax.methods.base import Leaves
from peftjax.methods.bound import Bound
from peftjax.methods.discovery import arguments_of
from peftjax.methods.inject import acting
from peftjax.sites import ARRAY_KINDS, Site

_Place = tuple[tuple[str, ...], str]


def observe(module: nn.Module, acted: Sequence[Bound], params: masks.Tree, watching: Bound) -> dict[str, Leaves]:
  """`note_key` of each site -> what the method noted there while the base ran, layers stacked where the site is.

  Args:
    module: the unrolled model.
    acted: the methods that are part of the base already, with the unrolled model's sites.
    params: the unrolled tree.
    watching: the method, which names the inputs, with its sites.
  """
  inputs = watching.method.calibration(watching.sites)
  assert inputs is not None
  places: dict[_Place, Site] = {}
  for site in watching.sites:
    places.update({_place(site, index): site.one(index) for index in range(len(site.names))})
  found: dict[_Place, Leaves] = {}

  def watch(next_fun: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    y = next_fun(*args, **kwargs)
    place = (context.module.path, context.method_name) if context.module.scope is not None else None
    if place in places:
      arguments = arguments_of(context.module, context.method_name, args, kwargs)
      is_array = places[place].kind in ARRAY_KINDS
      x: Any = next(iter(arguments.values())) if is_array else arguments
      folding = places[place].folding
      x, y = (x, y) if folding is None else (folding.fold_x(x), folding.fold_y(y))
      found[place] = watching.method.observe(x, y, places[place])
    return y

  with nn.intercept_methods(watch), acting(acted, params) as whole:
    module.apply(variables_of(whole), **inputs)
  noted = {}
  for site in watching.sites:
    layers = [found.get(_place(site, index), {}) for index in range(len(site.names))]
    noted[note_key(watching.method, site)] = (
      jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers) if site.stack else layers[0]
    )
  return noted


def _place(site: Site, index: int) -> _Place:
  return tuple(filter(None, site.names[index].split("."))), site.method
