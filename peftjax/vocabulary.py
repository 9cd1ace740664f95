"""The tables with a row for each token: the word embeddings, and an output layer that may be tied to them.

Whoever acts on one use of a tied table, or trains a copy of it, needs the other use to stay as it was: the output layer
becomes one of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from peftjax import masks
from peftjax.errors import UserError
from peftjax.methods.base import Method, ancestors
from peftjax.models.building import build
from peftjax.sites import Site
from peftjax.wrap.family import is_wrapped

if TYPE_CHECKING:
  from peftjax.model import Model

OUTPUT = "attend"
"""The method of an embedding that makes it an output layer."""


def tied_site(model: Model) -> Site | None:
  """The site of the word embeddings as output layer; None where there is none, or it is a layer of its own."""
  return next((site for site in model.sites if site.kind == "unembedding" and site.method == OUTPUT), None)


def table_path(model: Model) -> str:
  """Dotted path of the word embeddings' leaf; "" where the model declares none."""
  if words := getattr(model.module, "words_path", ()):  # a prompt starts from something else
    return ".".join((*words, "embedding"))
  return next((".".join((*site.base_path, "embedding")) for site in model.sites if site.kind == "model"), "")


def output_path(model: Model) -> str:
  """Dotted path of the kernel of the output layer that `untied` makes."""
  module: Any = model.module
  return f"{module.head_name}.kernel"


def untied(model: Model) -> Model:
  """The model with an output layer of its own, of the same values, where it is tied; else the model itself.

  Raises:
    UserError: a method acts on the tied output layer.
  """
  site = tied_site(model)
  if site is None:
    return model
  if is_wrapped(model):
    raise UserError(
      f"{site.names[0]} is looked up and is the output layer too, and a method acts on one of the two alone; untie "
      f"them in your own function, or act on both with lora.ensure_weight_tying=True"
    )
  for one in model.bound:
    if any(other.path == site.path and other.method == OUTPUT for other in one.sites):
      raise UserError(f"{one.method.name} acts on the output layer by the word embeddings that it is tied to")
  module: Any = model.module
  kept = {name: getattr(model.config, name) for name in module.tied_entries}
  hf_config = {**model.hf_config, **kept, "tie_word_embeddings": False}
  config = model.family.parse(hf_config)
  own, shapes, sites, stacks = build(model.family, model.architecture, config, model.runtime)

  def with_layer(params: masks.Tree) -> masks.Tree:
    flat = masks.flatten(params)
    new = {path: leaf for path, leaf in masks.flatten(shapes).items() if path.startswith(f"{module.head_name}.")}
    flat = {**{path: jnp.zeros(leaf.shape, leaf.dtype) for path, leaf in new.items()}, **flat}
    if bias := getattr(module, "tied_bias", ""):  # it stands in the output layer now
      flat[f"{module.head_name}.bias"] = flat.pop(bias)
    flat[output_path(model)] = flat[".".join((*site.path, "embedding"))].T
    return masks.unflatten(flat)

  params = jax.eval_shape(with_layer, model.params) if model.is_abstract else with_layer(model.params)
  return dataclasses.replace(
    model, module=own, params=params, config=config, hf_config=hf_config, sites=sites, stacks=stacks
  )


def resized(model: Model, rows: int, mean: bool = False) -> Model:
  """The model with another number of tokens; the tables keep their first rows.

  Args:
    mean: new rows are the mean of all; otherwise zero.
  """
  hf_config = {**model.hf_config, "vocab_size": rows}
  config = model.family.parse(hf_config)
  module, shapes, sites, stacks = build(model.family, model.architecture, config, model.runtime)

  def fitted(params: masks.Tree) -> masks.Tree:
    flat = masks.flatten(params)
    for path, leaf in masks.flatten(shapes).items():
      if flat[path].shape != leaf.shape:
        kept = flat[path][tuple(slice(size) for size in leaf.shape)]
        added = [(0, size - old) for size, old in zip(leaf.shape, kept.shape)]
        flat[path] = jnp.pad(kept, added, "mean") if mean else jnp.pad(kept, added)
    return masks.unflatten(flat)

  params = jax.eval_shape(fitted, model.params) if model.is_abstract else fitted(model.params)
  return dataclasses.replace(
    model, module=module, params=params, config=config, hf_config=hf_config, sites=sites, stacks=stacks
  )


def untied_for(model: Model, methods: Sequence[Method]) -> Model:
  """The model as methods need it: untied if one of them targets the output layer or trains a copy of either use.

  As in Hugging Face PEFT, `modules_to_save` trains a copy of what it names, and a tied table is not changed through it,
  unless `ensure_weight_tying` says so.
  """
  site = tied_site(model)
  return model if site is None or not any(_parts(model, site, method) for method in methods) else untied(model)


def _parts(model: Model, site: Site, method: Method) -> bool:
  module: Any = model.module
  if getattr(method, "ensure_weight_tying", False) or is_wrapped(model):
    return False
  saved, targets = method.modules_to_save, getattr(method, "targets", ())
  table, output = site.names[0], module.head_name
  if saved and any(masks.matches(saved, name) for name in (*ancestors(output), *ancestors(table))):
    return True
  exclude = getattr(method, "exclude", ())
  is_target = bool(targets) and targets != masks.ALL_LINEAR and masks.matches(targets, output)
  return is_target and "linear" in method.kinds and not (exclude and masks.matches(exclude, output))
