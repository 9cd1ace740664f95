"""Tiny encoders with odd sizes for checks of methods, and what is done with their leaves."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax import masks
from peftjax.loading import from_config
from peftjax.model import Model
from peftjax.models.layers import Runtime

LAYERS, HEADS, HIDDEN, LENGTH, LABELS = 2, 3, 12, 7, 5

Flat = dict[str, Any]


def config(model_type: str = "bert", **changes: Any) -> dict[str, Any]:
  """config.json of a tiny BERT or RoBERTa."""
  return {
    "model_type": model_type,
    "vocab_size": 37,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 19,
    "max_position_embeddings": 33,
    "type_vocab_size": 2,
    "pad_token_id": 1 if model_type == "roberta" else 0,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "num_labels": LABELS,
    **changes,
  }


def encoder(
  model_type: str = "bert", task: str = "text_classification", runtime: Runtime | None = None, **changes: Any
) -> Model:
  """A model with random leaves, wide enough that every layer matters; the same at every call."""
  return drawn(from_config(config(model_type, **changes), task=task, runtime=runtime))


def drawn(model: Model) -> Model:
  """A model of shapes with random leaves; the same at every call."""
  random = np.random.default_rng(7)

  def draw(path: str, shape: Any) -> jax.Array:
    noise = random.normal(size=shape.shape).astype(np.float32)
    return jnp.asarray(1.0 + 0.1 * noise if path.endswith("scale") else 0.3 * noise, shape.dtype)

  return model.with_params(masks.unflatten({path: draw(path, x) for path, x in masks.flatten(model.params).items()}))


def wide() -> Model:
  """Two of BERT-base's layers as shapes, where FLOPs are counted."""
  sizes: dict[str, Any] = {
    "hidden_size": 768,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 128,
  }
  return from_config(config(**sizes), task="text_classification")


def batch(seed: int = 0, size: int = 3, length: int = LENGTH, padded: bool = True) -> dict[str, jax.Array]:
  """Token ids and a mask; where `padded`, row i ends in i tokens of padding."""
  random = np.random.default_rng(seed)
  ids = random.integers(3, 37, (size, length))
  mask = np.ones((size, length), np.int32)
  for row in range(size if padded else 0):
    mask[row, length - row :] = 0
  return {"input_ids": jnp.asarray(np.where(mask, ids, 1)), "attention_mask": jnp.asarray(mask)}


def trainable(model: Model) -> Flat:
  """Dotted path -> leaf, of those that train."""
  labels = masks.flatten(model.labels())
  return {path: leaf for path, leaf in masks.flatten(model.params).items() if labels[path] != masks.FROZEN}


def rest_of(model: Model) -> Flat:
  """Dotted path -> leaf, of those that do not train."""
  trains = trainable(model)
  return {path: leaf for path, leaf in masks.flatten(model.params).items() if path not in trains}


def noise_on(leaves: Flat, seed: int = 1, scale: float = 0.3) -> Flat:
  """The leaves with noise that depends on their sizes and order alone."""
  random = np.random.default_rng(seed)
  return {path: leaf + scale * random.normal(size=leaf.shape).astype(np.float32) for path, leaf in leaves.items()}


def replaced(model: Model, flat: Flat) -> Model:
  """The model with other values of some leaves."""
  return model.with_params(masks.unflatten({**masks.flatten(model.params), **flat}))
