"""Run with 8 virtual devices: trains tiny models by every kind of method on meshes and on one device; prints JSON."""

from __future__ import annotations

import functools
import json
import os
import sys

import jax
import numpy as np

from peftjax import config as config_lib
from peftjax import masks, methods, tasks
from peftjax.loading import from_config, initialise
from peftjax.models.layers import Runtime
from peftjax.parallel import activations, gathering, hosts, sharding
from peftjax.parallel import mesh as mesh_lib
from peftjax.train import run as run_lib
from peftjax.train.compiling import CompiledStep

BERT = {
  "model_type": "bert",
  "architectures": ["BertForSequenceClassification"],
  "vocab_size": 24,
  "hidden_size": 16,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "intermediate_size": 24,
  "max_position_embeddings": 32,
  "initializer_range": 0.3,
  "num_labels": 3,
}
LLAMA = {
  "model_type": "llama",
  "architectures": ["LlamaForSequenceClassification"],
  "vocab_size": 24,
  "hidden_size": 16,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "intermediate_size": 24,
  "max_position_embeddings": 32,
  "initializer_range": 0.3,
  "num_labels": 3,
  "pad_token_id": 0,
}
MODELS = {"bert": BERT, "llama": LLAMA}
MESHES = [
  {"data": 8},
  {"data": 1, "fsdp": 8},
  {"data": 2, "fsdp": 2, "tensor": 2},
  {"data": 1, "fsdp": 2, "tensor": 2, "sequence": 2},
]
METHODS = {
  "full": {},
  "lora": {"rank": 3},
  "ia3": {},
  "houlsby": {"bottleneck_dim": 5},
  "prefix": {"num_virtual_tokens": 4},
  "prompt": {"num_virtual_tokens": 4},
}


def batch(seed, rows=8, length=6):
  random = np.random.default_rng(seed)
  return {
    "input_ids": random.integers(1, 24, size=(rows, length)).astype("i4"),
    "attention_mask": (np.arange(length) < random.integers(1, length + 1, size=(rows, 1))).astype("i4"),
    "labels": random.integers(3, size=rows).astype("i4"),
    "weight": random.uniform(0.5, 2.0, size=rows).astype("f4"),
    "index": np.arange(rows, dtype="i4"),
  }


def train(hf_config, name, mesh_fields, steps=2, remat="none"):
  """(losses, trained leaves, share of all leaves' bytes that each device holds); no mesh: on one device."""
  config = config_lib.default()
  config.mesh.update(mesh_fields or {"data": 1})
  config.optim.update({"learning_rate": 1e-2, "warmup": 0.0, "name": "sgd", "weight_decay": 0.0, "clip_norm": 0.0})
  mesh = mesh_lib.make_mesh(config.mesh, jax.devices() if mesh_fields else jax.devices()[:1])
  share, ways = mesh_lib.process_share(mesh)
  bare = from_config(hf_config, runtime=Runtime(dropout=0.0, remat=remat))
  model = initialise(bare, jax.random.key(0)).add(
    methods.build(config_lib.ConfigDict({"name": name, **METHODS[name]})), jax.random.key(1)
  )
  program = run_lib.program(config, tasks.make("text_classification", "abc"), model, mesh, steps)
  trainable, frozen = masks.partition(model.params, model.labels())
  # Fresh adapters are zero on one side: noise lets gradients reach all leaves.
  trainable = jax.tree.map(lambda x: x + 0.1 * np.sin(np.arange(x.size).reshape(x.shape)).astype(x.dtype), trainable)
  trainable = mesh_lib.put_tree(jax.device_get(trainable), program.layout.shardings(trainable))
  frozen = mesh_lib.put_tree(jax.device_get(frozen), program.layout.shardings(frozen))
  place = program.layout.shardings(jax.eval_shape(program.init, trainable))
  state = jax.jit(program.init, out_shardings=place)(trainable)
  step = CompiledStep(program.step(), mesh, state, frozen, lambda _: None)
  losses = []
  for index in range(steps):
    own = {name: array[share * len(array) // ways :][: len(array) // ways] for name, array in batch(index).items()}
    state, metrics = step(state, frozen, mesh_lib.put_batch(mesh, own))
    losses.append(float(metrics["loss"].addressable_data(0)))
  held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves((trainable, frozen)))
  whole = sum(leaf.nbytes for leaf in jax.tree.leaves((trainable, frozen)))
  together = jax.jit(lambda tree: tree, out_shardings=mesh_lib.replicated(mesh))(state.trainable)
  return losses, masks.flatten(jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), together)), held / whole


@functools.cache
def on_one_device(model_name, name):
  """What `train` returns there, which all meshes are compared with."""
  return train(MODELS[model_name], name, None)


def row(model_name, name, mesh, remat="none"):
  """How training on a mesh went beside training on one device."""
  losses, leaves, _ = on_one_device(model_name, name)
  others, other_leaves, share = train(MODELS[model_name], name, mesh, remat=remat)
  apart = max(float(np.abs(leaves[path] - other_leaves[path]).max()) for path in leaves)
  found = {"model": model_name, "method": name, "mesh": mesh, "losses": losses, "others": others, "apart": apart}
  return found | {"share": share}


def in_processes(mesh, pairs):
  """Every process of several runs this; each prints what it has of the same losses and leaves."""
  hosts.start(config_lib.default(), os.environ)
  rows = []
  for model_name, name in pairs:
    losses, leaves, _ = train(MODELS[model_name], name, mesh)
    rows.append({"losses": losses, "leaves": {path: leaf.tolist() for path, leaf in leaves.items()}})
  print(json.dumps(rows))


def main(which, models):
  sharding.SMALLEST = 16  # so that leaves this small are split
  if which == "processes":
    mesh, *pairs = models
    in_processes(json.loads(mesh), [pair.split(".") for pair in pairs])
    return
  assert len(jax.devices()) == 8
  if which == "staged":  # as on a slice whose chips form a cube of two planes of four
    used = []
    activations.in_stages = lambda mesh: used.append(mesh) or gathering.two_stages(mesh, 4)
    rows = [row(name, method, MESHES[1], "full") for name, method in zip(models, ("full", "lora"))]
    assert used
    print(json.dumps(rows))
    return
  rows = []
  for number, model_name in enumerate(models):
    for index, name in enumerate(METHODS):
      if which == "some" and (index + number) % 2:
        continue
      chosen = MESHES if which == "all" else [MESHES[index % len(MESHES)]]
      rows += [row(model_name, name, mesh) for mesh in chosen]
  print(json.dumps(rows))


if __name__ == "__main__":
  main(sys.argv[1], sys.argv[2:])
