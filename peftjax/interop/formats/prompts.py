"""Prompts and prefixes as PEFT writes them: what the network makes alone, under a key without a module."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from peftjax.errors import UserError
from peftjax.interop.formats.base import Config, Format, Layers, Tensor, Tensors
from peftjax.methods.base import Context, Leaves, layer_index
from peftjax.methods.bound import Bound
from peftjax.methods.llama_adapter import LlamaAdapter
from peftjax.methods.p_tuning import PTuning
from peftjax.methods.p_tuning_v2 import PTuningV2
from peftjax.methods.prefix import Prefix
from peftjax.methods.prompt import Prompt
from peftjax.sites import Site

KEY = "prompt_embeddings"
_INITS = {"random": "RANDOM", "vocab": "SAMPLE_VOCAB"}
_SIZES = {
  "token_dim": ("hidden_size", "n_embd", "d_model"),
  "num_layers": ("num_hidden_layers", "num_layers", "n_layer"),
  "num_attention_heads": ("num_attention_heads", "n_head", "num_heads", "encoder_attention_heads"),
}
_SHAPE: Config = {
  "num_virtual_tokens": None,
  "token_dim": None,
  "num_transformer_submodules": None,
  "num_attention_heads": None,
  "num_layers": None,
  "modules_to_save": None,
}
# Where PEFT's ADAPTION_PROMPT finds attention, by model_type.
_ADAPTION_TARGETS = {"llama": "self_attn", "mistral": "self_attn", "gpt2": "attn"}


def _sizes(context: Context) -> Config:
  """What PEFT writes of the base's shape."""
  found: Config = {"num_transformer_submodules": 1}
  for key, names in _SIZES.items():
    found[key] = next((context.config[name] for name in names if name in context.config), None)
  return found


def _check_sizes(config: Config, expected: Config) -> None:
  """Raises a `UserError` unless the adapter's base had the shape of this one."""
  for key, value in expected.items():
    if config[key] not in (None, value):
      raise UserError(f"{key} is {config[key]}, this model's is {value}; the adapter is for another base model")


# Prompts ----------------------------------------------------------------------------------------------------------


def _check_prompt(deep: bool, context: Context) -> None:
  """Raises a `UserError` for a prompt or prefix that PEFT has none of: before pictures, or of several layers."""
  if deep or not all(site.streams[0].ids for site in context.sites if site.kind == "model"):
    raise UserError("PEFT has prompts and prefixes for models of tokens alone")


def _prompt_config(method: Prompt, config: Config, names: Mapping[str, str], context: Context) -> Config:
  del config, names
  _check_prompt(method.deep, context)
  return {**_sizes(context), "prompt_tuning_init": _INITS.get(method.init, "RANDOM")}


def _prompt_fields(config: Config, names: Mapping[str, str], context: Context) -> Config:
  del names
  _check_sizes(config, _sizes(context))
  return {"init": "vocab" if config["prompt_tuning_init"] == "SAMPLE_VOCAB" else "random"}


def _p_tuning_config(method: PTuning, config: Config, names: Mapping[str, str], context: Context) -> Config:
  del config, names
  _check_prompt(False, context)
  found = _sizes(context)
  return {**found, "encoder_hidden_size": getattr(method, "encoder_hidden_size", 0) or found["token_dim"]}


def _p_tuning_fields(config: Config, names: Mapping[str, str], context: Context) -> Config:
  del names
  _check_sizes(config, _sizes(context))
  # In PEFT a rate of an MLP, and of an LSTM of one layer, does nothing.
  acts = config["encoder_reparameterization_type"] == "LSTM" and config["encoder_num_layers"] != 1
  return {"init": "random", **({} if acts else {"encoder_dropout": 0.0})}


def _write_prompt(bound: Bound, layers: Layers, shared: Leaves) -> Tensors:
  del shared
  (leaves,) = layers.values()
  method: Any = bound.method
  made = method.prompt({name: jnp.asarray(leaf) for name, leaf in leaves.items()})
  return {KEY: np.ascontiguousarray(made)}


def _read_prompt(bound: Bound, tensors: Tensors, layers: Layers, shared: Leaves) -> tuple[Layers, Leaves]:
  if not isinstance(bound.method, Prompt):
    return {name: {} for name in layers}, shared
  return {name: {"prompt_embeddings": tensors[KEY]} for name in layers}, shared


# Prefixes ---------------------------------------------------------------------------------------------------------


def _attention(context: Context) -> list[Site]:
  return [site for site in context.sites if site.kind == "attention"]


def _prefix_sizes(context: Context) -> Config:
  attention = _attention(context)
  _, heads, size = attention[0].shape
  layers = sum(len(site.names) for site in attention)
  return {
    "num_transformer_submodules": 1,
    "num_layers": layers,
    "num_attention_heads": heads,
    "token_dim": heads * size,
  }


def _prefix_config(method: Prefix, config: Config, names: Mapping[str, str], context: Context) -> Config:
  del config
  _check_prompt(False, context)
  for site in _attention(context):
    for name in site.names:
      if name not in names:
        raise UserError(f"PEFT's PREFIX_TUNING has no word for which layers, and {method.name} leaves out {name!r}")
  found = _prefix_sizes(context)
  return {
    **found,
    "prefix_projection": method.reparametrize,
    "encoder_hidden_size": method.encoder_hidden_size or found["token_dim"],
    "init_weights": "zero" if method.init == "zero" else None,
  }


def _prefix_fields(config: Config, names: Mapping[str, str], context: Context) -> Config:
  del names
  _check_sizes(config, _prefix_sizes(context))
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


# LLaMA-Adapter ----------------------------------------------------------------------------------------------------


def _adaption_tensors(method: LlamaAdapter, site: Site) -> Mapping[str, Tensor]:
  del method, site
  return {
    "adaption_prompt": Tensor("adaption_prompt", lambda leaf: leaf[None], lambda value: value[0]),
    "adaption_gate": Tensor("adaption_gate"),
  }


def _adaption_config(method: LlamaAdapter, config: Config, names: Mapping[str, str], context: Context) -> Config:
  del config
  if context.model_type not in _ADAPTION_TARGETS:
    raise UserError(f"PEFT's ADAPTION_PROMPT is for {', '.join(_ADAPTION_TARGETS)}, not for {context.model_type}")
  layers = [name for site in _attention(context) for name in site.names]
  last = sorted(layers, key=lambda name: layer_index(name) or 0)[len(layers) - len(names) :]
  if set(last) != set(names):
    raise UserError(f"PEFT's ADAPTION_PROMPT is on the last layers, and {method.name} is on {sorted(names)}")
  return {"target_modules": _ADAPTION_TARGETS[context.model_type], "adapter_layers": len(names)}


def _adaption_fields(config: Config, names: Mapping[str, str], context: Context) -> Config:
  del names
  wanted, target = config["target_modules"], _ADAPTION_TARGETS.get(context.model_type)
  if target is None or wanted not in (None, target):
    raise UserError(f"target_modules {wanted!r} of ADAPTION_PROMPT is not {context.model_type}'s attention, {target!r}")
  layers = sum(len(site.names) for site in _attention(context))
  return {"adapter_layers": 0 if config["adapter_layers"] == layers else config["adapter_layers"]}


_PROMPT = Format(
  peft_type="PROMPT_TUNING",
  method=Prompt,
  defaults={
    **_SHAPE,
    "prompt_tuning_init": "RANDOM",
    "prompt_tuning_init_text": None,
    "tokenizer_name_or_path": None,
    "tokenizer_kwargs": None,
  },
  chooses_modules=False,
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
  config_of=_prompt_config,
  fields_of=_prompt_fields,
  write=_write_prompt,
  read=_read_prompt,
)
_P_TUNING = dataclasses.replace(
  _PROMPT,
  peft_type="P_TUNING",
  method=PTuning,
  defaults={
    **_SHAPE,
    "encoder_reparameterization_type": "MLP",
    "encoder_hidden_size": None,
    "encoder_num_layers": 2,
    "encoder_dropout": 0.0,
  },
  fields={
    "num_virtual_tokens": "num_virtual_tokens",
    "encoder_reparameterization_type": "encoder_type",
    "encoder_hidden_size": "encoder_hidden_size",
    "encoder_num_layers": "encoder_num_layers",
    "encoder_dropout": "encoder_dropout",
  },
  free=(*_SIZES, "num_transformer_submodules"),
  config_of=_p_tuning_config,
  fields_of=_p_tuning_fields,
  reads_as=Prompt,
  has_more=lambda method: isinstance(method, PTuning),
)
_PREFIX = Format(
  peft_type="PREFIX_TUNING",
  method=Prefix,
  defaults={**_SHAPE, "init_weights": None, "encoder_hidden_size": None, "prefix_projection": False},
  chooses_modules=False,
  fields={"num_virtual_tokens": "num_virtual_tokens"},
  free=(*_SIZES, "num_transformer_submodules", "encoder_hidden_size", "prefix_projection"),
  prefix="base_model.",
  config_of=_prefix_config,
  fields_of=_prefix_fields,
  write=_write_prefix,
  read=_read_prefix,
  has_more=lambda method: method.reparametrize,
)
_ADAPTION_PROMPT = Format(
  peft_type="ADAPTION_PROMPT",
  method=LlamaAdapter,
  defaults={"target_modules": None, "adapter_len": None, "adapter_layers": None},
  chooses_modules=False,
  fields={"adapter_len": "num_virtual_tokens"},
  free=("adapter_layers",),
  tensors=_adaption_tensors,
  config_of=_adaption_config,
  fields_of=_adaption_fields,
)

FORMATS = (_PROMPT, _P_TUNING, _PREFIX, dataclasses.replace(_PREFIX, method=PTuningV2), _ADAPTION_PROMPT)
