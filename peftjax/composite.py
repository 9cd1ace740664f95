"""Models made of several models, from several folders: put together, and one of them taken out.

pair = compose({"query": load("encoder-a"), "passage": load("encoder-b")})
pair = pair.add(LoRA(rank=8, targets=("query.*.value",)), key)
pair(query={"input_ids": ids}, passage={"input_ids": others})["query"]["last_hidden_state"]
component(pair, "query")                                              # the part, with its share of the methods
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftjax import buffers, masks
from peftjax.errors import UserError, nearest
from peftjax.methods.base import Targeted
from peftjax.methods.bound import Bound
from peftjax.models.building import build
from peftjax.models.components import CLASS_NAME, COMPOSITE, CompositeFamily, Part, composite_family, within
from peftjax.models.registry import FAMILIES
from peftjax.sites import Site
from peftjax.wrap.family import is_wrapped

if TYPE_CHECKING:
  from peftjax.model import Model


def compose(models: Mapping[str, Model], index: Mapping[str, Any] | None = None, folder: Path | None = None) -> Model:
  """The models as the components of one; their leaves stay the same arrays.

  No leaf of a component is tied to another component's: the same model under two names is two, which train apart.

  Args:
    models: name -> model without methods; they may differ in dtype.
    index: model_index.json; left out: one of these components.
    folder: where that file is; `save` copies what it lists and what is no model: tokenizers, schedulers, processors.

  Raises:
    UserError: no model, a name that cannot be a module's, a model with methods, models that run differently.
  """
  if not models:
    raise UserError("a composite model needs at least one component")
  first = next(iter(models.values()))
  for name, model in models.items():
    if not name.isidentifier() or name == buffers.ROOT:
      raise UserError(f"component {name!r}: expected a name of letters, digits and underscores, not {buffers.ROOT!r}")
    if is_wrapped(model):
      raise UserError(f"component {name!r} is a model of your own; wrap one function of all components")
    if model.bound:
      raise UserError(f"component {name!r} has methods; put the models together first, and add methods to the whole")
    if within(model.runtime, first.runtime) != first.runtime:
      raise UserError(f"component {name!r} runs otherwise than the others; give all of them one runtime but for dtypes")
  parts = {
    name: Part(model.family, model.architecture, model.config, model.hf_config, model.runtime, model.folder)
    for name, model in models.items()
  }
  family = composite_family(parts, folder)
  module, _, sites, stacks = build(family, CLASS_NAME, None, first.runtime)
  index = index or {
    "_class_name": CLASS_NAME,
    **{name: [_library(one), one.architecture] for name, one in parts.items()},
  }
  return dataclasses.replace(
    first,
    module=module,
    params=_joined({name: model.params for name, model in models.items()}),
    config={name: part.config for name, part in parts.items()},
    hf_config=_agreed(parts, index),
    family=family,
    architecture=CLASS_NAME,
    sites=sites,
    stacks=stacks,
    folder=None,
    drawn=tuple(f"{name}.{leaf}" for name, model in models.items() for leaf in model.drawn),
    quantization_errors={
      f"{name}.{path}": error for name, model in models.items() for path, error in model.quantization_errors.items()
    },
  )


def _library(part: Part) -> str:
  """Whose class reads the component's folder."""
  if part.hf_config.get("_class_name"):
    return "diffusers"
  return "transformers" if part.hf_config.get("model_type") in FAMILIES else "peftjax"


def _agreed(parts: Mapping[str, Part], index: Mapping[str, Any]) -> dict[str, Any]:
  """What all components say alike, as methods may ask it, and the index."""
  configs = [part.hf_config for part in parts.values()]
  common = {name: value for name, value in configs[0].items() if all(one.get(name) == value for one in configs)}
  return {**common, "architectures": [CLASS_NAME], COMPOSITE: dict(index)}


def _joined(trees: Mapping[str, masks.Tree]) -> masks.Tree:
  """{component: its leaves}, with the buffers of all at the root."""
  whole: dict[str, Any] = {}
  kept: dict[str, Any] = {}
  for name, tree in trees.items():
    variables = buffers.variables_of(tree)
    whole[name] = variables.pop("params")
    for collection, values in variables.items():
      kept.setdefault(collection, {})[name] = values
  return {**whole, buffers.ROOT: kept} if kept else whole


def is_composite(model: Model) -> bool:
  """Whether the model is made of components."""
  return isinstance(model.family, CompositeFamily)


def components(model: Model) -> tuple[str, ...]:
  """The names of a composite model's components; () of any other model."""
  return tuple(model.family.parts) if isinstance(model.family, CompositeFamily) else ()


def component(model: Model, name: str) -> Model:
  """One component as a model of its own, with the methods that act in it and what they share.

  Raises:
    UserError: no such component.
  """
  family = model.family
  if not isinstance(family, CompositeFamily) or name not in family.parts:
    raise UserError(f"component: no {name!r}; {nearest(name, components(model))}")
  part = family.parts[name]
  runtime = part.within(model.runtime)
  module, _, sites, stacks = build(part.family, part.architecture, part.config, runtime)
  bound = tuple(one for each in model.bound if (one := _within(each, name)).sites)
  variables = buffers.variables_of(model.params)
  tree = {**variables.pop("params")[name]}
  for one in bound:
    if one.shared_path in model.params:
      tree[one.shared_path] = model.params[one.shared_path]
  kept = {collection: values[name] for collection, values in variables.items() if name in values}
  prefix = f"{name}."
  return dataclasses.replace(
    model,
    module=module,
    params={**tree, buffers.ROOT: kept} if kept else tree,
    config=part.config,
    hf_config=part.hf_config,
    family=part.family,
    architecture=part.architecture,
    runtime=runtime,
    sites=sites,
    stacks=stacks,
    bound=bound,
    folder=part.folder,
    drawn=tuple(leaf.removeprefix(prefix) for leaf in model.drawn if leaf.startswith(prefix)),
    quantization_errors={
      path.removeprefix(prefix): error for path, error in model.quantization_errors.items() if path.startswith(prefix)
    },
  )


def part_path(path: str, name: str, shared: frozenset[str]) -> str:
  """Where a leaf of a component stands in the whole.

  Args:
    shared: the roots of what methods share.
  """
  if path.partition(".")[0] in shared:
    return path
  if not buffers.is_buffer(path):
    return f"{name}.{path}"
  root, collection, rest = path.split(".", 2)
  return f"{root}.{collection}.{name}.{rest}"


def in_component(bound: Bound, name: str) -> Targeted:
  """The method of a component's adapter, for the whole: it acts at that component's modules alone.

  Raises:
    UserError: its sites are not chosen by name.
  """
  method = bound.method
  if not isinstance(method, Targeted):
    raise UserError(f"component {name!r}: {method.name} acts on a model as a whole; add it to the component alone")
  modules = sorted({re.escape(f"{name}.{module}") for site in bound.sites for module in site.names if module})
  return dataclasses.replace(method, targets="|".join(modules), exclude=())


def _within(bound: Bound, name: str) -> Bound:
  """The bound's share in a component, by the component's own names; its targets are the modules' whole names."""
  sites = tuple(_stripped(site, name) for site in bound.sites if site.path[:1] == (name,))
  method = bound.method
  if isinstance(method, Targeted):
    modules = sorted({re.escape(module) for site in sites for module in site.names})
    method = dataclasses.replace(method, targets="|".join(modules), exclude=())
  return dataclasses.replace(bound, method=method, sites=sites)


def _stripped(site: Site, name: str) -> Site:
  names = tuple(one.removeprefix(f"{name}.") if one != name else "" for one in site.names)
  return dataclasses.replace(site, path=site.path[1:], base_path=site.base_path[1:], names=names)
