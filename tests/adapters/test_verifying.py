"""A merge that computes something else is refused; how much of the change rounding took is told."""

from __future__ import annotations

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax import UserError, adapters, masks
from peftjax.loading import from_config
from peftjax.methods import LoRA, TrainableTokens
from tests.adapters import cases
from tests.methods import tiny
from tests.models import decoder_models


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wrong(LoRA):
  """Its change of the weights is a tenth too small."""

  def delta(self, leaves, base, site, shared):
    return {name: 0.9 * change for name, change in super().delta(leaves, base, site, shared).items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shifting(LoRA):
  """It shifts the outputs, of which its change of the weights knows nothing."""

  def after(self, leaves, x, y, site, call):
    return super().after(leaves, x, y, site, call) + leaves["lora_b"].sum()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Noting(Wrong):
  """It needs what another site left, so that none of its sites runs by itself."""

  def after(self, leaves, x, y, site, call):
    call.notes.setdefault("first", site.name)
    if call.module.path == ():
      raise KeyError("no model around it")
    return super().after(leaves, x, y, site, call)


LLAMA = {**decoder_models.LLAMA, "tie_word_embeddings": True}
EXPERTS = {**decoder_models.LLAMA, "model_type": "mixtral", "num_local_experts": 3, "num_experts_per_tok": 2}


def adapted(base, method, scale=0.3):
  model = base.add(method, jax.random.key(0))
  own = {path: leaf for path, leaf in tiny.trainable(model).items() if path in model.adapter_paths()}
  return tiny.replaced(model, tiny.noise_on(own, scale=scale))


BASES = {
  "linear": lambda: (tiny.encoder(), ("query", "output.dense")),
  "unrolled": lambda: (tiny.encoder().unrolled(), ("query",)),
  "quantized": lambda: (tiny.encoder().quantized("nf4"), ("query",)),
  "embedding": lambda: (tiny.encoder(), ("word_embeddings",)),
  "tied": lambda: (decoder_models.random_model(LLAMA), ("embed_tokens",)),
  "experts": lambda: (decoder_models.random_model(EXPERTS), ("w1", "w2")),
}


@pytest.mark.parametrize("kind", BASES)
def test_a_wrong_delta_is_refused_at_its_site(kind):
  base, targets = BASES[kind]()
  adapted(base, LoRA(rank=3, targets=targets)).merge()
  model = adapted(base, Wrong(rank=3, targets=targets))
  with pytest.raises(UserError, match=rf"lora cannot be merged at .*{targets[0]}.*: the outputs would be off by"):
    model.merge()
  assert model.merge(check=False).bound == ()


def test_what_a_delta_leaves_out_is_missed():
  with pytest.raises(UserError, match="its delta is not what its before and after do"):
    adapted(cases.toy(), Shifting(rank=3, targets=("query",))).merge()
  fresh = cases.toy().add(Shifting(rank=3, targets=("query",)))  # its change is zero, and so is the shift
  assert fresh.merge().bound == ()


def test_where_no_site_runs_by_itself_the_models_are_compared():
  with pytest.raises(UserError, match=r"lora cannot be merged: the model's \w+ would be off by"):
    adapted(cases.toy(), Noting(rank=3, targets=("query",))).merge()


@pytest.mark.slow
def test_an_output_layer_of_its_own_is_compared_too():
  base = decoder_models.random_model(LLAMA)
  adapted(base, LoRA(rank=2, targets=("embed_tokens",), ensure_weight_tying=True)).merge()
  adapted(base, TrainableTokens(token_indices=(4, 9))).merge()
  with pytest.raises(UserError, match="lora cannot be merged at"):
    adapted(base, Wrong(rank=2, targets=("embed_tokens",), ensure_weight_tying=True)).merge()


@pytest.mark.parametrize(("dtype", "tiny_scale"), [("bfloat16", 1e-3), ("float16", 1e-4)])
def test_the_share_of_the_change_that_rounding_took(dtype, tiny_scale, caplog):
  base = tiny.encoder().with_params(jax.tree.map(lambda leaf: leaf.astype(dtype), tiny.encoder().params))
  model = adapted(base, LoRA(rank=3, targets=("query",)), scale=0.1)
  merged = model.merge()
  (path,) = merged.merge_errors
  before = np.asarray(masks.flatten(base.params)[path], np.float32)
  change = np.asarray(adapters.deltas(model)[path])
  after = np.asarray(masks.flatten(merged.params)[path], np.float32)
  wanted = np.linalg.norm(after - before - change) / np.linalg.norm(change)
  assert merged.merge_errors[path] == pytest.approx(wanted, rel=1e-4) and 0.0 < wanted < 0.2
  assert not caplog.records
  small = adapted(base, LoRA(rank=3, targets=("query",)), scale=tiny_scale).merge()
  assert min(small.merge_errors.values()) > 0.5
  (record,) = caplog.records
  assert record.levelno == logging.WARNING and f"too small for {dtype}" in record.getMessage()


def test_nothing_is_lost_in_float32_and_nothing_compared_in_a_trace():
  model = adapted(cases.toy(), Wrong(rank=3, targets=("query",)))
  with pytest.raises(UserError):
    model.merge()
  jax.jit(lambda params: model.with_params(params).merge().params)(model.params)
  assert adapted(cases.toy(), LoRA(rank=3, targets=("query",))).merge().merge_errors == {}


def test_a_wrong_delta_hides_in_no_layer():
  """Of a long stack some layers are compared, the first and the last among them."""
  config = tiny.config(num_hidden_layers=9)
  base = from_config(config)
  base = base.with_params(jax.tree.map(lambda one: jnp.full(one.shape, 0.1, one.dtype), base.params))
  with pytest.raises(UserError, match=r"layer\.0\."):
    adapted(base, Wrong(rank=2)).merge()
