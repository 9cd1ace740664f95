"""Trainable tokens as PEFT writes them: the new rows of the word embeddings."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from peftjax.errors import UserError
from peftjax.interop.formats.base import Config, Format, Tensor, Tensors
from peftjax.methods.base import Context
from peftjax.methods.bound import Bound
from peftjax.methods.trainable_tokens import TrainableTokens
from peftjax.sites import Site

KEY = "trainable_tokens_delta"
_TIED = f"base_model.model.lm_head.{KEY}"
_COPIES = tuple(f"base_model.model.{part}.embed_tokens.{KEY}" for part in ("encoder", "decoder"))  # of T5's `shared`


def _tensors(method: TrainableTokens, site: Site) -> Mapping[str, Tensor]:
  del method
  return {} if site.kind == "unembedding" else {"token_rows": Tensor(KEY)}


def _config(method: TrainableTokens, config: Config, names: Mapping[str, str], context: Context) -> Config:
  del context
  targets = config["target_modules"]
  is_whole = len(targets) == 1 and targets[0] in names.values()  # a string is compared with whole names
  return {"init_weights": not method.init_random, "target_modules": targets[0] if is_whole else targets}


def _fields(config: Config, names: Mapping[str, str], context: Context) -> Config:
  del names, context
  return {"init_random": not config["init_weights"]}


def _with_copy(bound: Bound, config: Config, tensors: Tensors) -> tuple[Config, Tensors]:
  """PEFT repeats the rows for an output layer that is tied to the embeddings."""
  if not any(site.kind == "unembedding" for site in bound.sites):
    return config, tensors
  (value,) = tensors.values()
  return config, {**tensors, _TIED: value}


def _without_copies(bound: Bound, config: Config, tensors: Tensors) -> Tensors:
  del config
  is_tied = any(site.kind == "unembedding" for site in bound.sites)
  copies = [key for key in tensors if key in _COPIES or (is_tied and key == _TIED)]
  found = {key: value for key, value in tensors.items() if key not in copies}
  for key in copies:
    if not any(np.array_equal(value, tensors[key]) for own, value in found.items() if own.endswith(KEY)):
      raise UserError(f"{key!r} is not the embeddings', to which it is tied in this model")
  return found


FORMATS = (
  Format(
    peft_type="TRAINABLE_TOKENS",
    method=TrainableTokens,
    defaults={"token_indices": [], "target_modules": None, "init_weights": True},
    kinds=("embedding",),
    fields={"token_indices": "token_indices"},
    tensors=_tensors,
    config_of=_config,
    fields_of=_fields,
    pack=_with_copy,
    unpack=_without_copies,
  ),
)
