"""Small random decoders from a config alone, and methods at random values."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from peftjax import masks, methods
from peftjax.loading import from_config
from peftjax.model import Model

LLAMA = {
  "model_type": "llama",
  "vocab_size": 61,
  "hidden_size": 20,
  "intermediate_size": 28,
  "num_hidden_layers": 3,
  "num_attention_heads": 6,
  "num_key_value_heads": 2,
  "head_dim": 6,
  "max_position_embeddings": 64,
}


def random_model(hf_config, seed: int = 0, **options) -> Model:
  """A model whose leaves are all random, large enough that every part matters."""
  model = from_config(hf_config, **options)
  random = np.random.default_rng(seed)

  def draw(path: str, leaf) -> jax.Array:
    centre = 1.0 if path.endswith(".scale") else 0.0
    return jnp.asarray(random.normal(centre, 0.2, leaf.shape), leaf.dtype)

  return model.with_params(masks.unflatten({path: draw(path, leaf) for path, leaf in _sorted_leaves(model)}))


def with_method(model: Model, method: methods.Method, seed: int = 1) -> Model:
  """The model with a method whose leaves are random."""
  model = model.add(method, jax.random.key(seed))
  random, added = np.random.default_rng(seed), model.adapter_paths()
  flat = dict(_sorted_leaves(model))
  for path in sorted(added):
    flat[path] = flat[path] + jnp.asarray(random.normal(0.0, 0.3, flat[path].shape), flat[path].dtype)
  return model.with_params(masks.unflatten(flat))


def _sorted_leaves(model: Model):
  return sorted(masks.flatten(model.params).items())


def token_ids(batch: int = 2, length: int = 9, vocabulary: int = 61, seed: int = 0) -> np.ndarray:
  """Random token ids, 3 and up."""
  return np.random.default_rng(seed).integers(3, vocabulary, size=(batch, length))


def assert_close(found, expected, tolerance: float = 1e-5):
  """Equality relative to the largest value."""
  expected = np.asarray(expected)
  np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * max(1.0, np.abs(expected).max()))
