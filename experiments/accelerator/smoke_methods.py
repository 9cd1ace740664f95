"""Every method on a tiny encoder: this device against the CPU, and merged against unmerged.

    JAX_PLATFORMS=cpu python -m experiments.accelerator.smoke_methods FOLDER

leaves in FOLDER what the CPU gives, NAME.npz of each method, so that the accelerator's machine need not compute it.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.accelerator.distance import distance
from peftjax import config as config_lib
from peftjax import masks, methods, optim, tasks
from peftjax.errors import UserError
from peftjax.loading import from_config
from peftjax.model import Model
from peftjax.models.layers import Runtime
from peftjax.train.state import init_state
from peftjax.train.step import make_loss, make_train_step

BERT = {
  "model_type": "bert",
  "architectures": ["BertForSequenceClassification"],
  "vocab_size": 64,
  "hidden_size": 32,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "intermediate_size": 48,
  "max_position_embeddings": 40,
  "type_vocab_size": 2,
  "hidden_dropout_prob": 0.0,
  "attention_probs_dropout_prob": 0.0,
  "num_labels": 3,
}
SETTINGS: dict[str, dict[str, Any]] = {  # where the defaults do not fit the tiny encoder
  "last_k": {"k": 1},
  "patterns": {"train": ("query",)},
  "adalora": {"init_r": 4, "target_r": 2},
  "fourierft": {"n_frequency": 9},
  "vblora": {"rank": 2, "num_vectors": 6, "vector_length": 8},
  "oft": {"oft_block_size": 8},
  "boft": {"boft_block_size": 4},
  "c3a": {"block_size": 8},
  "miss": {"rank": 8},
  "shira": {"rank": 4},
  "gralora": {"rank": 4, "gralora_k": 2},
  "road": {"group_size": 8},
  "compacter": {"bottleneck_dim": 8, "phm_dim": 4},
  "houlsby": {"bottleneck_dim": 6},
  "pfeiffer": {"bottleneck_dim": 6},
  "parallel_adapter": {"bottleneck_dim": 6},
  "adapter_plus": {"bottleneck_dim": 6},
  "mam": {"num_virtual_tokens": 4, "bottleneck_dim": 6},
  "unipelt": {"rank": 2, "num_virtual_tokens": 4, "bottleneck_dim": 6},
  "prompt": {"num_virtual_tokens": 4},
  "p_tuning": {"num_virtual_tokens": 4, "encoder_hidden_size": 8},
  "prefix": {"num_virtual_tokens": 4},
  "p_tuning_v2": {"num_virtual_tokens": 4},
  "llama_adapter": {"num_virtual_tokens": 4},
  "trainable_tokens": {"token_indices": (30, 11, 5, 17)},
  "hybrid": {"methods": ({"name": "bitfit"}, {"name": "lora"})},
}


def check(checks: Any, shard: int, shards: int, references: str) -> None:
  """Every `shards`-th method.

  Args:
    references: folder of what the CPU gives; empty: computed here.
  """
  for name in sorted(methods.METHODS)[shard::shards]:
    checks.attempt(name, one, name, references)


def one(name: str, references: str) -> tuple[bool, dict[str, Any]]:
  """The figures of a method."""
  model, merged = made(name)
  wanted = referred(Path(references) / f"{name}.npz") if references else run(model, jax.devices("cpu")[0])
  found = run(model, jax.devices()[0], lowered(model), merged)
  figures: dict[str, Any] = {
    "float32": {key: distance(found[key], wanted[key]) for key in ("logits", "grads", "loss")},
    "bfloat16": {key: distance(found[f"{key}_bfloat16"], wanted[key]) for key in ("logits", "grads")},
    "moved": any(float(np.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(found["grads"])),
  }
  passed = figures["float32"]["logits"] < 1e-4 and figures["float32"]["grads"] < 1e-3
  passed &= figures["bfloat16"]["logits"] < 0.05 and figures["bfloat16"]["grads"] < 0.1
  passed &= figures["moved"]
  if merged is not None:
    figures["merged"] = distance(found["merged"], found["logits"])
    passed &= figures["merged"] < 1e-4
  return passed, figures


def made(name: str) -> tuple[Model, Model | None]:
  """The model with the method after some training, and merged; None where it cannot be."""
  with jax.default_device(jax.devices("cpu")[0]):
    model = noisy(base().add(methods.build({"name": name, **SETTINGS.get(name, {})}), jax.random.key(1)))
    return model, merged_of(model)


def referred(path: Path) -> dict[str, Any]:
  """What `main` kept of a method."""
  with np.load(path, allow_pickle=False) as found:
    grads = {key.removeprefix("grads/"): found[key] for key in found if key.startswith("grads/")}
    return {"loss": found["loss"], "logits": found["logits"], "grads": grads}


def main() -> None:
  """Keeps what this device gives of every method."""
  folder = Path(sys.argv[1])
  folder.mkdir(parents=True, exist_ok=True)
  for name in sorted(methods.METHODS):
    found = run(made(name)[0], jax.devices()[0])
    grads = {f"grads/{path}": leaf for path, leaf in found["grads"].items()}
    np.savez(folder / f"{name}.npz", loss=found["loss"], logits=found["logits"], **grads)


@functools.cache
def base() -> Model:
  """The tiny encoder with random leaves."""
  model = from_config(BERT, task="text_classification", runtime=Runtime(attention="auto"))
  random = np.random.default_rng(0)

  def draw(path: str, leaf: Any) -> jax.Array:
    noise = random.normal(size=leaf.shape).astype(np.float32)
    return jnp.asarray(1.0 + 0.1 * noise if path.endswith("scale") else 0.15 * noise)

  return model.with_params(masks.unflatten({path: draw(path, x) for path, x in masks.flatten(model.params).items()}))


def noisy(model: Model) -> Model:
  """The model after some training: what trains moved a little."""
  labels, flat, random = masks.flatten(model.labels()), dict(masks.flatten(model.params)), np.random.default_rng(1)
  for path, leaf in flat.items():
    if labels[path] != masks.FROZEN:
      flat[path] = leaf + 0.05 * random.normal(size=leaf.shape).astype(leaf.dtype)
  return model.with_params(masks.unflatten(flat))


def lowered(model: Model) -> Model:
  """The same leaves, computing in bfloat16."""
  low = from_config(BERT, task="text_classification", runtime=Runtime(compute_dtype=jnp.bfloat16))
  return low.add(model.methods).with_params(model.params) if len(model.methods) else low.with_params(model.params)


def batch() -> dict[str, np.ndarray]:
  """Four rows of sixteen tokens, padded on the right."""
  random = np.random.default_rng(2)
  mask = np.ones((4, 16), np.int32)
  for row in range(4):
    mask[row, 16 - 3 * row :] = 0
  ids = np.where(mask, random.integers(3, 64, mask.shape), 0).astype(np.int32)
  labels = random.integers(3, size=4).astype(np.int32)
  index = np.arange(4, dtype=np.int32)
  return {"input_ids": ids, "attention_mask": mask, "labels": labels, "index": index, "weight": np.ones(4, np.float32)}


def run(model: Model, device: Any, low: Model | None = None, merged: Model | None = None) -> dict[str, Any]:
  """Loss, logits and gradients of a method on a device, from a real step of plain gradient descent with rate 1.

  Args:
    low: the same model in another precision, whose results are "logits_bfloat16" and "grads_bfloat16".
    merged: the merged model, whose logits are "merged".
  """
  given = batch()
  params = {"model": model.params} | ({"merged": merged.params} if merged else {})

  def everything(params: Any, given: Any) -> dict[str, Any]:
    found = stepped(model, params["model"], given)
    if low is not None:
      found |= {f"{key}_bfloat16": value for key, value in stepped(low, params["model"], given).items()}
    if merged is not None:
      found["merged"] = merged.forward(params["merged"], _inputs(given))["logits"]
    return found

  # One program, since each takes seconds to compile.
  with jax.default_device(device), jax.default_matmul_precision("highest"):
    return dict(jax.device_get(jax.jit(everything)(*jax.device_put((params, given), device))))


def stepped(model: Model, params: Any, given: Any) -> dict[str, Any]:
  """Loss, logits, and gradients by path, of one step."""
  labels = model.labels()
  trainable, frozen = masks.partition(params, labels)
  config = config_lib.default().optim
  config.update({"name": "sgd", "learning_rate": 1.0, "schedule": "constant", "warmup": 0.0})
  config.update({"weight_decay": 0.0, "clip_norm": 0.0})
  groups = masks.partition(labels, labels)[0]
  optimizer = optim.make_optimizer(config, groups, 10, stacks=model.stacks)
  optimizer = model.transformed(optimizer, 10)
  task = tasks.make("text_classification", ("a", "b", "c"))
  step = make_train_step(make_loss(model.forward, task, model.penalty), optimizer)
  after, metrics = step(init_state(trainable, optimizer, 0), frozen, given)
  moved = jax.tree.map(jnp.subtract, trainable, after.trainable)
  logits = model.forward(params, _inputs(given))["logits"]
  return {"loss": metrics["loss"], "logits": logits, "grads": masks.flatten(moved)}


def _inputs(given: Any) -> dict[str, Any]:
  return {name: given[name] for name in ("input_ids", "attention_mask")}


def merged_of(model: Model) -> Model | None:
  """The merged model, or None where the method cannot be merged."""
  try:
    return model.merge()
  except UserError:
    return None


if __name__ == "__main__":
  main()
