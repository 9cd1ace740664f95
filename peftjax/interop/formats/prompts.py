"""Prompts as PEFT writes them: the embeddings alone, under a key without a module."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from peftjax.errors import UserError
from peftjax.interop.formats.base import Config, Format, Layers, Tensors
from peftjax.methods.base import Context, Leaves, Site
from peftjax.methods.inject import Bound
from peftjax.methods.prefix import Prefix
from peftjax.methods.prompt import Prompt

KEY = "prompt_embeddings"
_INITS = {"random": "RANDOM", "vocab": "SAMPLE_VOCAB"}
_SIZES = {
  "token_dim": ("hidden_size", "n_embd", "d_model"),
  "num_layers": ("num_hidden_layers", "num_layers", "n_layer"),
  "num_attention_heads": ("num_attention_heads", "n_head", "num_heads", "encoder_attention_heads"),
}
SHAPE: Config = {
  "num_virtual_tokens": None,
  "token_dim": None,
  "num_transformer_submodules": None,
  "num_attention_heads": None,
  "num_layers": None,
  "modules_to_save": None,
}


def sizes(context: Context) -> Config:
  """What PEFT writes of the base's shape."""
  found: Config = {"num_transformer_submodules": 1}
  for key, names in _SIZES.items():
    found[key] = next((context.config[name] for name in names if name in context.config), None)
  return found


def check_sizes(config: Config, expected: Config) -> None:
  """Raises a `UserError` unless the adapter's base had the shape of this one."""
  for key, value in expected.items():
    if config[key] not in (None, value):
      raise UserError(f"{key} is {config[key]}, this model's is {value}; the adapter is for another base model")


def _config(method: Prompt, config: Config, names: Mapping[str, str], context: Context) -> Config:
  del config, names
  return {**sizes(context), "prompt_tuning_init": _INITS.get(method.init, "RANDOM")}


def _fields(config: Config, names: Mapping[str, str], context: Context) -> Config:
  del names
  check_sizes(config, sizes(context))
  return {"init": "vocab" if config["prompt_tuning_init"] == "SAMPLE_VOCAB" else "random"}


def _write(bound: Bound, layers: Layers, shared: Leaves) -> Tensors:
  del bound, shared
  (leaves,) = layers.values()
  return {KEY: np.ascontiguousarray(leaves["prompt_embeddings"])}


def _read(bound: Bound, tensors: Tensors, layers: Layers, shared: Leaves) -> tuple[Layers, Leaves]:
  del bound
  return {name: {"prompt_embeddings": tensors[KEY]} for name in layers}, shared


def _prefix_sizes(context: Context) -> Config:
  attention = [site for site in context.sites if site.kind == "attention"]
  _, heads, size = attention[0].shape
  layers = sum(len(site.names) for site in attention)
  return {
    "num_transformer_submodules": 1,
    "num_layers": layers,
    "num_attention_heads": heads,
    "token_dim": heads * size,
  }


def _prefix_config(method: Prefix, config: Config, names: Mapping[str, str], context: Context) -> Config:
  del config, names
  found = _prefix_sizes(context)
  return {
    **found,
    "prefix_projection": method.reparametrize,
    "encoder_hidden_size": method.encoder_hidden_size or found["token_dim"],
    "init_weights": "zero" if method.init == "zero" else None,
  }


def _prefix_fields(config: Config, names: Mapping[str, str], context: Context) -> Config:
  del names
  check_sizes(config, _prefix_sizes(context))
  return {"init": "zero" if config["init_weights"] == "zero" else "random"}


def _write_prefix(bound: Bound, layers: Layers, shared: Leaves) -> Tensors:
  """[n, layers * 2 * heads * size], keys before values."""
  if shared:
    derived = bound.method.derive({name: jnp.asarray(leaf) for name, leaf in shared.items()}, bound.sites)
    rows = [row for site, leaves in zip(bound.sites, derived) if leaves for row in _rows(site, leaves)]
  else:
    rows = [(leaves["prefix_k"], leaves["prefix_v"]) for leaves in layers.values() if leaves]
  pairs = np.stack([np.stack(row) for row in rows])
  return {KEY: np.ascontiguousarray(np.moveaxis(pairs, 2, 0).reshape(pairs.shape[2], -1))}


def _rows(site: Site, leaves: Leaves) -> list[tuple[np.ndarray, np.ndarray]]:
  keys, values = np.asarray(leaves["prefix_k"]), np.asarray(leaves["prefix_v"])
  return list(zip(keys, values)) if site.stack else [(keys, values)]


def _read_prefix(bound: Bound, tensors: Tensors, layers: Layers, shared: Leaves) -> tuple[Layers, Leaves]:
  del bound
  if shared:
    return {name: {} for name in layers}, {}
  shapes = [leaves["prefix_k"].shape for leaves in layers.values() if leaves]
  pairs = np.moveaxis(tensors[KEY].reshape(shapes[0][0], len(shapes), 2, *shapes[0][1:]), 0, 2)
  rows = iter(pairs)
  found: Layers = {}
  for name, leaves in layers.items():
    found[name] = dict(zip(("prefix_k", "prefix_v"), next(rows))) if leaves else {}
  return found, shared


FORMATS = (
  Format(
    peft_type="PREFIX_TUNING",
    method=Prefix,
    defaults={**SHAPE, "init_weights": None, "encoder_hidden_size": None, "prefix_projection": False},
    fields={"num_virtual_tokens": "num_virtual_tokens"},
    free=(*_SIZES, "num_transformer_submodules", "init_weights", "encoder_hidden_size", "prefix_projection"),
    prefix="base_model.",
    config_of=_prefix_config,
    fields_of=_prefix_fields,
    write=_write_prefix,
    read=_read_prefix,
    has_more=lambda method: method.reparametrize,
  ),
  Format(
    peft_type="PROMPT_TUNING",
    method=Prompt,
    defaults={
      **SHAPE,
      "prompt_tuning_init": "RANDOM",
      "prompt_tuning_init_text": None,
      "tokenizer_name_or_path": None,
      "tokenizer_kwargs": None,
    },
    fields={"num_virtual_tokens": "num_virtual_tokens"},
    free=(
      *_SIZES,
      "num_transformer_submodules",
      "prompt_tuning_init",
      "prompt_tuning_init_text",
      "tokenizer_name_or_path",
      "tokenizer_kwargs",
    ),
    prefix="base_model.",
    config_of=_config,
    fields_of=_fields,
    write=_write,
    read=_read,
  ),
)
