"""Adapters of a user's own model in files: safetensors, and a JSON of the methods and of the sites they act on.

    adapter.safetensors   dotted path of a leaf -> its values: what methods added, and what else trains
    adapter.json          {"methods": [{"name": "lora", "rank": 8, ...}], "sites": [{"path": ..., "kind": ...}],
                           "base_sha256": digest of the leaves that do not train}

A file is read for what the model it is put on implies: the same methods at the same sites, every leaf in its shape.
"""

from __future__ import annotations

import dataclasses
import hashlib
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
from peftjax.kinds import NAME, SETTINGS, Kind, list_of, number, value_of, whole
from peftjax.methods import METHODS, Method, build
from peftjax.models.tensor_files import Checkpoint, write_tensors
from peftjax.registry import only_trusted
from peftjax.sites import Site

if TYPE_CHECKING:
  from peftjax.model import Model

CONFIG = "adapter.json"
WEIGHTS = "adapter.safetensors"
FORMAT = "peftjax wrapped adapter 1"
KIND = "wrapped adapter"

_TOP: dict[str, Kind] = {
  "format": NAME,
  "methods": list_of(SETTINGS, what="objects"),
  "sites": list_of(SETTINGS, 2**20, what="objects"),
  "head": list_of(NAME, what="texts"),
  "base_sha256": NAME,
}
_SIZES = list_of(whole(0, 2**48), what="sizes")
_OF_SITE: dict[str, Kind] = {"path": NAME, "kind": NAME, "stack": _SIZES, "shape": _SIZES}


def save(model: Model, folder: str | Path, overwrite: bool = False) -> None:
  """Writes what the model's methods added and what else trains.

  Raises:
    UserError: there is nothing to save, or it holds several adapters; as `outputs.written`.
  """
  if not model.bound:
    raise UserError("the model has no adapter to save; add a method first")
  if any(one.is_stacked for one in model.bound):
    raise UserError("the model holds several adapters; save them one by one, as adapters.split gives them")
  flat, saved = masks.flatten(model.params), _held(model)
  config = {
    "format": FORMAT,
    "methods": [{**_settings(one.method), **({"scale": one.scale} if one.scale != 1.0 else {})} for one in model.bound],
    "sites": [_site(site) for site in dict.fromkeys(site for one in model.bound for site in one.sites)],
    "head": list(model.head),
    "base_sha256": _digest({path: leaf for path, leaf in flat.items() if path not in saved}),
  }
  with outputs.written(folder, (CONFIG, WEIGHTS), KIND, overwrite=overwrite) as temporary:
    (temporary / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    write_tensors(temporary / WEIGHTS, {path: np.asarray(leaf) for path, leaf in flat.items() if path in saved})


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


def _digest(leaves: Mapping[str, Any]) -> str:
  """sha256 over names, shapes, dtypes and bytes; keys of random streams and what lies elsewhere are not in it."""
  found = hashlib.sha256()
  for path, leaf in sorted(leaves.items()):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) or not getattr(leaf, "is_fully_addressable", True):
      continue
    array = np.ascontiguousarray(leaf)
    found.update(f"{path} {array.dtype} {array.shape} ".encode())
    found.update(array.reshape(-1).view(np.uint8).data)
  return found.hexdigest()


def _read(path: Path) -> dict[str, Any]:
  """adapter.json with everything in it of the type it should have.

  Raises:
    UserError: it is none that this version writes.
  """
  config = read_json(path)
  if config.get("format") != FORMAT:
    raise UserError(f"{path}: format {config.get('format')!r:.60}; expected {FORMAT!r}")
  for name, kind in _TOP.items():
    value_of(str(path), name, config.setdefault(name, "" if name == "base_sha256" else []), kind)
  for number_of, one in enumerate(config["methods"]):
    value_of(str(path), f"methods[{number_of}].scale", one.get("scale", 1.0), number())
  for number_of, one in enumerate(config["sites"]):
    for name, kind in _OF_SITE.items():
      value_of(str(path), f"sites[{number_of}].{name}", one.get(name), kind)
  return config


def load(model: Model, folder: str | Path, other_base: bool = False) -> Model:
  """The model with a saved adapter.

  Args:
    other_base: take it though it was trained beside other values of the leaves that do not train.

  Raises:
    UserError: the model has one already, the folder holds none, or it is for another model.
  """
  folder = Path(folder).expanduser()
  if model.bound:
    raise UserError("the model has an adapter already; load another one onto the model without it")
  for name in (CONFIG, WEIGHTS):
    if not (folder / name).is_file():
      raise UserError(f"{folder} has no {name}; expected what save_adapter wrote of a wrapped model")
  config, saved = _read(folder / CONFIG), Checkpoint([folder / WEIGHTS])
  with only_trusted(folder):
    methods = [build({key: value for key, value in one.items() if key != "scale"}) for one in config["methods"]]
  _compare(model.with_params(jax.eval_shape(lambda tree: tree, model.params)).add(methods), config, saved)
  added = model.add(methods)
  bound = [dataclasses.replace(one, scale=float(said.get("scale", 1.0)))
           for one, said in zip(added.bound, config["methods"], strict=True)]  # fmt: skip
  frozen = {path: leaf for path, leaf in masks.flatten(added.params).items() if path not in _held(added)}
  if config["base_sha256"] and not other_base and not model.is_abstract and config["base_sha256"] != _digest(frozen):
    raise UserError(
      f"{folder}: the adapter was trained on another base: leaves that do not train have other values than "
      "base_sha256 notes; give the base that it was trained on, or other_base"
    )
  return _filled(dataclasses.replace(added, bound=tuple(bound)), saved)


def _held(model: Model) -> set[str]:
  """Paths of the leaves that an adapter's file holds: what methods added, and what else trains."""
  groups, added = masks.flatten(model.labels()), model.adapter_paths()
  return {path for path in masks.flatten(model.params) if path in added or groups[path] != masks.FROZEN}


def _compare(shaped: Model, config: Mapping[str, Any], saved: Checkpoint) -> None:
  """Raises a `UserError` if the file has not what shapes alone imply; no leaf is made for that."""
  _check_sites(config["sites"], [site for one in shaped.bound for site in one.sites])
  flat, wanted, found = masks.flatten(shaped.params), _held(shaped), set(saved.keys())
  for missing in sorted(wanted - found):
    raise UserError(f"{WEIGHTS} has no {missing!r}; {nearest(missing, found, 1)}")
  for extra in sorted(found - wanted):
    raise UserError(f"{WEIGHTS} has {extra!r}, which is none of the adapter's leaves; {nearest(extra, wanted, 1)}")
  for path in wanted:
    if saved.shape(path) != tuple(flat[path].shape):
      raise UserError(f"{path!r} has shape {saved.shape(path)}, and this model needs {tuple(flat[path].shape)}")


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
  extra = sorted(own.keys() - {(one["path"], one["kind"]) for one in said})
  if extra:
    raise UserError(f"the adapter is for another model: here its methods act on {extra[0][0]!r} too")


def _filled(model: Model, saved: Checkpoint) -> Model:
  flat = masks.flatten(model.params)
  leaves = {
    path: jax.ShapeDtypeStruct(flat[path].shape, flat[path].dtype)
    if model.is_abstract
    else jnp.asarray(saved.read(path)).astype(flat[path].dtype)
    for path in _held(model)
  }
  return model.with_params(masks.unflatten({**flat, **leaves}))
