"""Small random Hugging Face decoders, written to a folder and run beside the model that is loaded from it."""

from __future__ import annotations

import numpy as np
import torch
import transformers

import peftjax

VOCABULARY = 61


def random_model(config, kind: str = "CausalLM", seed: int = 0):
  """A model of the config's family with every parameter random, biases and normalisations too."""
  torch.manual_seed(seed)
  config._attn_implementation = config._experts_implementation = "eager"
  model = getattr(transformers, f"AutoModelFor{kind}").from_config(config).eval().float()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(torch.randn_like(parameter) * 0.1)
  return model


def load_pair(config, folder, kind: str = "CausalLM", **options):
  """(theirs, ours) with the same parameters."""
  theirs = random_model(config, kind)
  theirs.save_pretrained(folder)
  return theirs, peftjax.load(folder, **options)


def token_batch(batch: int = 3, length: int = 11, vocabulary: int = VOCABULARY, seed: int = 0, padding: str = "right"):
  """(input_ids, attention_mask) of sequences of different lengths; ids start at 3."""
  random = np.random.default_rng(seed)
  ids = random.integers(3, vocabulary, size=(batch, length))
  mask = np.ones((batch, length), np.int64)
  for row in range(1, batch):
    empty = slice(length - 2 * row, None) if padding == "right" else slice(0, 2 * row)
    mask[row, empty] = 0
  return np.where(mask, ids, 0), mask


def run_theirs(model, **inputs):
  """Outputs of a torch model for numpy inputs."""
  with torch.no_grad():
    return model(**{name: value if isinstance(value, bool) else torch.tensor(value) for name, value in inputs.items()})


def assert_close(ours, theirs, mask=None, tolerance: float = 1e-5):
  """Equality at all positions, or at those that `mask` marks, relative to the largest value."""
  ours, theirs = np.asarray(ours), theirs.detach().numpy()
  assert ours.shape == theirs.shape
  if mask is not None:
    ours, theirs = ours[mask.astype(bool)], theirs[mask.astype(bool)]
  np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance * max(1.0, np.abs(theirs).max()))
