"""An architecture as a module, with what one trace of it on shapes says: its leaves and its sites."""

from __future__ import annotations

from typing import Any

from flax import linen as nn

from peftjax import buffers, masks
from peftjax.methods.discovery import discover
from peftjax.models.family import Family
from peftjax.models.layers import Runtime
from peftjax.sites import Site


def build(
  family: Family, architecture: str, config: Any, runtime: Runtime
) -> tuple[nn.Module, masks.Tree, tuple[Site, ...], dict[str, int]]:
  """(module, shapes, sites, stacks) of an architecture; what was built last is kept, since tracing takes long."""
  try:
    key = (id(family), architecture, config, runtime)
    kept = _built.get(key)
  except TypeError:  # a config that cannot be hashed
    return _build(family, architecture, config, runtime)
  if kept is None:
    kept = (family, *_build(family, architecture, config, runtime))  # holding the family keeps its id its own
    while len(_built) >= 8:
      del _built[next(iter(_built))]
    _built[key] = kept
  _, module, shapes, sites, stacks = kept
  return module, shapes, sites, dict(stacks)


_built: dict[Any, Any] = {}


def _build(
  family: Family, architecture: str, config: Any, runtime: Runtime
) -> tuple[nn.Module, masks.Tree, tuple[Site, ...], dict[str, int]]:
  module = family.architectures[architecture].build(config, runtime)
  stacks = family.stacks_of(architecture, config, runtime)
  shapes, sites = discover(module, family.inputs_of(architecture, config), stacks)
  if buffers.ROOT in shapes:
    stacks = buffers.with_stacks(stacks)
  return module, shapes, sites, stacks
