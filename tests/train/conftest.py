"""A tiny model: an embedding, two stacked layers with adapters beside their kernels, and a head."""

from __future__ import annotations

import csv
import dataclasses
import gc
import json
import sys
import threading
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax import config as config_lib
from peftjax import loading, masks, optim, tasks
from peftjax.train import loop
from peftjax.train import state as state_lib
from peftjax.train import step as step_lib
from peftjax.train.watch import Watch

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


@pytest.fixture
def train_in_two(monkeypatch):
  """Trains a config in a folder: the run dies before a step, and the same call goes on to its end."""

  def run(config, folder, step):
    plain = Watch.dispatched

    def dying(self, number, *rest, **more):
      if number == step:
        raise RuntimeError("died")
      return plain(self, number, *rest, **more)

    with monkeypatch.context() as patch:
      patch.setattr(Watch, "dispatched", dying)
      with pytest.raises(RuntimeError, match="died"):
        loop.train(config, folder)
    loop.train(config, folder)

  return run


GOOD = ["good", "fine", "great", "nice"]
BAD = ["bad", "poor", "dull", "worse"]
PLAIN = ["the", "a", "film", "plot", "was", "is", "it", "and"]


def write_model(folder: Path, seed: int = 0) -> Path:
  """A Hugging Face folder of a BERT with 2 layers of 8."""
  folder.mkdir(parents=True)
  vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *PLAIN]
  (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
  config = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "vocab_size": len(vocabulary),
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 32,
    "initializer_range": 0.5,
  }
  (folder / "config.json").write_text(json.dumps(config))
  model = loading.initialise(loading.from_config(config), jax.random.key(seed))
  dataclasses.replace(model, folder=folder).save(folder.parent / "saved")
  for path in (folder.parent / "saved").glob("*.safetensors"):
    path.replace(folder / path.name)
  return folder


def write_data(path: Path, rows: int = 60, seed: int = 0) -> Path:
  """Texts whose label is whether good words outnumber bad ones."""
  random = np.random.default_rng(seed)
  with path.open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["text", "label"])
    for index in range(rows):
      good = bool(random.integers(2))
      words = [*random.choice(PLAIN, random.integers(1, 9)), *random.choice(GOOD if good else BAD, 2)]
      writer.writerow([f"{' '.join(random.permutation(words))} {index}", "good" if good else "bad"])
  return path


@pytest.fixture
def printed(caplog, monkeypatch, recwarn):
  """The faults that threads, futures and coroutines that were thrown away have printed by now."""
  told: list = []
  for hook in (sys, "unraisablehook"), (threading, "excepthook"):
    monkeypatch.setattr(*hook, told.append)

  def found() -> list:
    gc.collect()
    late = [str(one.message) for one in recwarn if "never awaited" in str(one.message)]
    logged = [one.getMessage() for one in caplog.records if one.exc_info or one.name == "asyncio"]
    return told + logged + late

  return found


@pytest.fixture(scope="session")
def material(tmp_path_factory):
  """A folder with `model`, a tiny BERT, and `reviews.csv`."""
  folder = tmp_path_factory.mktemp("material")
  write_model(folder / "model")
  write_data(folder / "reviews.csv")
  return folder


@pytest.fixture
def config(material, monkeypatch):
  """A run of 12 steps on the material."""
  monkeypatch.setenv("PEFTJAX_CACHE", str(material / "cache"))
  return run_config(material)


def run_config(material: Path) -> config_lib.ConfigDict:
  """The config of 12 steps on the material."""
  config = config_lib.default()
  config.model.path = str(material / "model")
  config.data.name = f"csv:{material / 'reviews.csv'}"
  config.data.update({"max_length": 16, "buckets": (10,)})
  config.train.update({"batch_size": 8, "eval_batch_size": 16, "steps": 12, "save_every": 5, "log_every": 3})
  config.train.tensorboard = False
  config.optim.learning_rate = 2e-2
  return config
