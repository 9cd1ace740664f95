"""Every method on every kind of module and base: saved, loaded onto the base again, equal outputs.

Two formats: a run's checkpoint of what trains, and Hugging Face PEFT's files where it has the method.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax
from peftjax import UserError, masks, methods
from peftjax.methods.base import Targeted
from peftjax.model import Model
from peftjax.train.checkpoint import Base, Checkpoints
from peftjax.train.state import TrainState
from tests.methods import linen_models, matrix, tiny
from tests.models import decoder_models

TIED = {**decoder_models.LLAMA, "tie_word_embeddings": True}
GPT2 = {"model_type": "gpt2", "vocab_size": 61, "n_embd": 20, "n_layer": 2, "n_head": 5, "n_positions": 33}
T5 = {
  "model_type": "t5", "vocab_size": 61, "d_model": 20, "d_kv": 4, "d_ff": 28, "num_layers": 2, "num_heads": 5,
  "decoder_start_token_id": 0, "dropout_rate": 0.0,
}  # fmt: skip
IDS = np.random.default_rng(0).integers(3, 37, (2, 6))


@functools.cache
def base(kind: str) -> Model:
  if kind == "quantized":
    return tiny.encoder().quantized("int8")
  if kind == "conv":
    return linen_models.make(linen_models.Normed)
  if kind in ("tied", "gpt2", "t5"):
    return decoder_models.random_model({"tied": TIED, "gpt2": GPT2, "t5": T5}[kind])
  return tiny.encoder()


def inputs(kind: str) -> dict[str, np.ndarray]:
  if kind == "conv":
    return {"pixels": np.asarray(linen_models.PIXELS)}
  return {"input_ids": IDS, **({"decoder_input_ids": IDS[:, :4]} if kind == "t5" else {"attention_mask": IDS * 0 + 1})}


def method_on(name: str, kind: str) -> methods.Method:
  """The method where it acts in such a model.

  Raises:
    UserError: it has no such settings.
  """
  made = matrix.make(name, {key: value for key, value in matrix.SETTINGS.get(name, {}).items() if key != "train"})
  changes: dict[str, object] = {}
  if kind == "embedding":
    changes = {"targets": ("word_embeddings",)}
  elif kind == "unrolled":
    changes = {"layers": (1,)}
  elif kind == "conv":
    changes = {"targets": ("conv", "dense")}
  elif isinstance(made, Targeted) and kind in ("tied", "gpt2", "t5") and "linear" in made.kinds:
    changes = {"targets": "all-linear"}
  known = {field.name for field in dataclasses.fields(made)}
  if not changes.keys() <= known:
    raise UserError(f"{name} has no {', '.join(changes)}")
  return dataclasses.replace(made, **changes)


KINDS = ("unrolled", "embedding", "quantized", "conv", "tied", "gpt2", "t5")
"""Beside linear, norm and attention sites of a stacked encoder, which the page of all methods has."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", matrix.NAMES)
def test_saved_and_loaded_is_the_same(name, kind, record_property):
  try:
    method = method_on(name, kind)
    model = base(kind).add(method, jax.random.key(1))
  except UserError as error:  # such a model has no place for it: said in one line
    record_property("counted", f"refused: {name} on {kind}: {error}")
    pytest.skip(str(error))
  own = {path: leaf for path, leaf in tiny.trainable(model).items() if jnp.issubdtype(leaf.dtype, jnp.floating)}
  model = tiny.replaced(model, tiny.noise_on(own, scale=0.05))
  wanted = model(**inputs(kind))
  again = through_checkpoint(model, base(kind).add(method, jax.random.key(1)))
  same(again(**inputs(kind)), wanted)
  if kind in ("conv", "quantized"):  # PEFT's files name a Hugging Face model; over codes the base differs
    return
  with tempfile.TemporaryDirectory() as folder:
    try:
      model.save_adapter(f"{folder}/adapter")
    except UserError as error:
      is_known = any(said in str(error) for said in ("PEFT", "no adapter to save"))
      if not is_known:
        raise
      return
    base(kind).save(f"{folder}/base")
    loaded = peftjax.load(f"{folder}/base", f"{folder}/adapter", task=base(kind).task)
  same(loaded(**inputs(kind)), wanted)


def through_checkpoint(model: Model, fresh: Model) -> Model:
  """The fresh model with what a run's checkpoint keeps of the other."""
  trainable, _ = masks.partition(model.params, model.labels())
  like, frozen = masks.partition(fresh.params, fresh.labels())
  with tempfile.TemporaryDirectory() as folder, Checkpoints(Path(folder)) as checkpoints:
    checkpoints.save(TrainState(jnp.zeros((), jnp.int32), trainable, (), jax.random.PRNGKey(0)), {}, BASE)
    checkpoints.wait()
    _, restored = checkpoints.restore_trainable(jax.tree.map(jnp.zeros_like, like), BASE)
  return fresh.with_params(masks.combine(restored, frozen))


BASE = Base("tiny", "0")


def same(found, wanted) -> None:
  for name, leaf in wanted.items():
    np.testing.assert_allclose(found[name], leaf, rtol=1e-5, atol=1e-5 * float(jnp.abs(leaf).max()), err_msg=name)
