"""A tiny model: an embedding, two stacked layers with adapters beside their kernels, and a head."""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax import config as config_lib
from peftjax import masks, optim, tasks
from peftjax.train import state as state_lib
from peftjax.train import step as step_lib

STACKS = {"encoder.layer": 2}


def tiny_params(seed=0, hidden=6, rank=3, labels=3):
  keys = iter(jax.random.split(jax.random.PRNGKey(seed), 8))
  return {
    "embeddings": {"embedding": jax.random.normal(next(keys), (11, hidden))},
    "encoder": {
      "layer": {
        "query": {
          "kernel": jax.random.normal(next(keys), (2, hidden, hidden)),
          "bias": jax.random.normal(next(keys), (2, hidden)),
          "lora_a": jax.random.normal(next(keys), (2, hidden, rank)),
          "lora_b": jax.random.normal(next(keys), (2, rank, hidden)),
        }
      }
    },
    "classifier": {"kernel": jax.random.normal(next(keys), (hidden, labels)), "bias": jnp.zeros((labels,))},
  }


def tiny_forward(params, inputs, rng=None):
  x = params["embeddings"]["embedding"][inputs["input_ids"]]
  if rng is not None:
    x = x * jax.random.bernoulli(rng, 0.9, x.shape) / 0.9

  def layer(x, leaves):
    leaves = leaves["query"]
    return jnp.tanh(x @ leaves["kernel"] + (x @ leaves["lora_a"]) @ leaves["lora_b"] + leaves["bias"]), None

  x, _ = jax.lax.scan(layer, x, params["encoder"]["layer"])
  mask = inputs["attention_mask"][..., None]
  pooled = (x * mask).sum(1) / mask.sum(1)
  return {"logits": pooled @ params["classifier"]["kernel"] + params["classifier"]["bias"]}


def lora_mask(name, leaf):
  del leaf
  if "lora" in name:
    return "adapter"
  return "head" if name.startswith("classifier") else masks.FROZEN


def tiny_batch(rows=8, length=5, seed=0):
  random = np.random.default_rng(seed)
  return {
    "input_ids": random.integers(11, size=(rows, length)).astype("i4"),
    "attention_mask": (np.arange(length) < random.integers(1, length + 1, size=(rows, 1))).astype("i4"),
    "labels": random.integers(3, size=rows).astype("i4"),
    "weight": random.uniform(0.5, 2.0, size=rows).astype("f4"),
    "index": np.arange(rows),
  }


@pytest.fixture
def tiny():
  """Builds (state, frozen, step function, optimizer) of the tiny model."""

  def build(mask=lora_mask, accumulate=1, forward=tiny_forward, seed=0, **optim_fields):
    params = tiny_params(seed)
    labels = masks.label(params, mask, STACKS)
    trainable, frozen = masks.partition(params, labels)
    config = config_lib.default().optim
    config.update({"learning_rate": 1e-2, "warmup": 0.0, **optim_fields})
    optimizer = optim.make_optimizer(config, labels, 10, stacks=STACKS)
    task = tasks.make("text_classification", "abc")
    loss = step_lib.make_loss(forward, task)
    step = step_lib.make_train_step(loss, optimizer, accumulate)
    state = state_lib.init_state(trainable, optimizer, seed)
    return types.SimpleNamespace(
      state=state, frozen=frozen, step=step, optimizer=optimizer, loss=loss, task=task, labels=labels, forward=forward
    )

  build.batch = tiny_batch
  build.params = tiny_params
  build.mask = lora_mask
  build.without_dropout = lambda params, inputs, rng=None: tiny_forward(params, inputs)
  return build
