"""Adapters of a user's own model in files: safetensors, and a JSON of the methods and of the sites they act on.

    adapter.safetensors   dotted path of a leaf -> its values: what methods added, and what else trains
    adapter.json          {"methods": [{"name": "lora", "rank": 8, ...}], "sites": [{"path": ..., "kind": ...}]}

A file is read for what the model it is put on implies: the same methods at the same sites, every leaf in its shape.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax import masks, outputs
from peftjax.errors import UserError, nearest
from peftjax.files import read_json
from peftjax.methods import METHODS, Method, build
from peftjax.models.tensor_files import Checkpoint, write_tensors
from peftjax.registry import only_trusted
from peftjax.sites import Site

if TYPE_CHECKING:
  from peftjax.model import Model

CONFIG = "adapter.json"
WEIGHTS = "adapter.safetensors"
FORMAT = "peftjax wrapped adapter 1"


def save(model: Model, folder: str | Path, overwrite: bool = False) -> None:
  """Writes what the model's methods added and what else trains.

  Raises:
    UserError: there is nothing to save, or it holds several adapters; as `outputs.written`.
  """
  if not model.bound:
    raise UserError("the model has no adapter to save; add a method first")
  if any(one.is_stacked for one in model.bound):
    raise UserError("the model holds several adapters; save them one by one, as adapters.split gives them")
  groups, added, flat = masks.flatten(model.labels()), model.adapter_paths(), masks.flatten(model.params)
  saved = [path for path in flat if path in added or groups[path] != masks.FROZEN]
  config = {
    "format": FORMAT,
    "methods": [{**_settings(one.method), **({"scale": one.scale} if one.scale != 1.0 else {})} for one in model.bound],
    "sites": [_site(site) for site in dict.fromkeys(site for one in model.bound for site in one.sites)],
    "head": list(model.head),
  }
  with outputs.written(folder, (CONFIG, WEIGHTS), "wrapped adapter", overwrite=overwrite) as temporary:
    (temporary / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    write_tensors(temporary / WEIGHTS, {path: np.asarray(flat[path]) for path in saved})


def _site(site: Site) -> dict[str, Any]:
  return {"path": site.names[0] if not site.stack else site.places[0].leaf, "kind": site.kind,
          "stack": list(site.stack), "shape": list(site.shape)}  # fmt: skip


def _settings(method: Method) -> dict[str, Any]:
  """The method as `config.method` says it."""
  kind = type(method)
  name = method.name if METHODS.get(method.name) is kind else f"{kind.__module__}:{kind.__qualname__}"
  found: dict[str, Any] = {"name": name}
  for field in dataclasses.fields(method):
    value = getattr(method, field.name)
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if field.repr and value != default:
      if isinstance(value, tuple) and any(isinstance(one, Method) for one in value):
        value = [_settings(one) for one in value]
      found[field.name] = dict(value) if isinstance(value, Mapping) else value
  return found


def load(model: Model, folder: str | Path) -> Model:
  """The model with a saved adapter.

  Raises:
    UserError: the model has one already, the folder holds none, or it is for another model.
  """
  folder = Path(folder).expanduser()
  if model.bound:
    raise UserError("the model has an adapter already; load another one onto the model without it")
  for name in (CONFIG, WEIGHTS):
    if not (folder / name).is_file():
      raise UserError(f"{folder} has no {name}; expected what save_adapter wrote of a wrapped model")
  config = read_json(folder / CONFIG)
  if config.get("format") != FORMAT:
    raise UserError(f"{folder / CONFIG}: format {config.get('format')!r}; expected {FORMAT!r}")
  with only_trusted(folder):
    methods = [build({key: value for key, value in one.items() if key != "scale"}) for one in config["methods"]]
  added = model.add(methods)
  bound = [dataclasses.replace(one, scale=float(said.get("scale", 1.0)))
           for one, said in zip(added.bound, config["methods"])]  # fmt: skip
  _check_sites(config["sites"], [site for one in bound for site in one.sites])
  return _filled(dataclasses.replace(added, bound=tuple(bound)), Checkpoint([folder / WEIGHTS]))


def _check_sites(said: list[dict[str, Any]], sites: list[Site]) -> None:
  own = {(one["path"], one["kind"]): one for one in map(_site, sites)}
  known = {path for path, _ in own}
  for one in said:
    found = own.get((one["path"], one["kind"]))
    if found is None:
      raise UserError(f"the adapter is for another model: it acts on {one['path']!r}; {nearest(one['path'], known)}")
    if found != one:
      raise UserError(f"the adapter is for another model: {one['path']!r} has shape {one['shape']}, here it has "
                      f"{found['shape']}")  # fmt: skip
  if len(said) != len(own):
    extra = next(path for path, _ in own if path not in {one["path"] for one in said})
    raise UserError(f"the adapter is for another model: here its methods act on {extra!r} too")


def _filled(model: Model, saved: Checkpoint) -> Model:
  groups, added, flat = masks.flatten(model.labels()), model.adapter_paths(), masks.flatten(model.params)
  wanted = {path for path in flat if path in added or groups[path] != masks.FROZEN}
  found = set(saved.keys())
  for missing in sorted(wanted - found):
    raise UserError(f"{WEIGHTS} has no {missing!r}; {nearest(missing, found, 1)}")
  for extra in sorted(found - wanted):
    raise UserError(f"{WEIGHTS} has {extra!r}, which is none of the adapter's leaves; {nearest(extra, wanted, 1)}")
  leaves = {}
  for path in wanted:
    if saved.shape(path) != tuple(flat[path].shape):
      raise UserError(f"{path!r} has shape {saved.shape(path)}, and this model needs {tuple(flat[path].shape)}")
    leaves[path] = (
      jax.ShapeDtypeStruct(flat[path].shape, flat[path].dtype)
      if model.is_abstract
      else jnp.asarray(saved.read(path)).astype(flat[path].dtype)
    )
  return model.with_params(masks.unflatten({**flat, **leaves}))
