"""Prompts as PEFT writes them: the embeddings alone, under a key without a module."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from peftjax.errors import UserError
from peftjax.interop.formats.base import Config, Format, Layers, Tensors
from peftjax.methods.base import Context, Leaves
from peftjax.methods.inject import Bound
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


def check_sizes(config: Config, context: Context) -> None:
  """Raises a `UserError` unless the adapter's base had the shape of this one."""
  for key, value in sizes(context).items():
    if config[key] not in (None, value):
      raise UserError(f"{key} is {config[key]}, this model's is {value}; the adapter is for another base model")


def _config(method: Prompt, config: Config, names: Mapping[str, str], context: Context) -> Config:
  del config, names
  return {**sizes(context), "prompt_tuning_init": _INITS.get(method.init, "RANDOM")}


def _fields(config: Config, names: Mapping[str, str], context: Context) -> Config:
  del names
  check_sizes(config, context)
  return {"init": "vocab" if config["prompt_tuning_init"] == "SAMPLE_VOCAB" else "random"}


def _write(bound: Bound, layers: Layers, shared: Leaves) -> Tensors:
  del bound, shared
  (leaves,) = layers.values()
  return {KEY: np.ascontiguousarray(leaves["prompt_embeddings"])}


def _read(bound: Bound, tensors: Tensors, layers: Layers, shared: Leaves) -> tuple[Layers, Leaves]:
  del bound
  return {name: {"prompt_embeddings": tensors[KEY]} for name in layers}, shared


FORMATS = (
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
