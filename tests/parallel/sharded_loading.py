"""Run with 8 virtual devices: a folder's leaves read onto a mesh, merged and exported there; prints JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import numpy as np

from peftjax import config as config_lib
from peftjax import loading, masks, methods
from peftjax.models.tensor_files import Checkpoint
from peftjax.parallel import mesh as mesh_lib
from peftjax.parallel import sharding
from tests.parallel.equal_on_meshes import LLAMA


def main(folder):
  sharding.SMALLEST = 16
  source = loading.initialise(loading.from_config(LLAMA), jax.random.key(0))
  source.save(folder / "base")
  config = config_lib.default()
  config.mesh.update({"data": 1, "fsdp": 4, "tensor": 2})
  mesh = mesh_lib.make_mesh(config.mesh)
  largest = []
  part = Checkpoint.part

  def counted(self, key, index):
    found = part(self, key, index)
    largest.append(found.size / np.prod(self.shape(key)))
    return found

  Checkpoint.part = counted
  loaded = {}
  for dtype in ("float32", "bfloat16"):
    whole = loading.load(folder / "base", dtype=dtype)
    model = loading.load(folder / "base", dtype=dtype, place=lambda base: sharding.layout_of(base, mesh).shardings)
    pairs = [(masks.flatten(whole.params)[name], leaf) for name, leaf in masks.flatten(model.params).items()]
    loaded[dtype] = all(np.array_equal(np.asarray(a), np.asarray(b)) and a.dtype == b.dtype for a, b in pairs)
    split = sum(not leaf.sharding.is_fully_replicated for _, leaf in pairs)
  nf4 = [
    loading.load(folder / "base", quantize="nf4", place=place).params
    for place in (None, lambda base: sharding.layout_of(base, mesh).shardings)
  ]
  exported = []
  for base in (whole, model):
    adapted = base.add(methods.LoRA(rank=3), jax.random.key(1))
    flat = masks.flatten(adapted.params)
    flat = {name: leaf + 0.25 if "lora_" in name else leaf for name, leaf in flat.items()}
    merged = adapted.with_params(masks.unflatten(flat)).merge()
    merged.save(folder / f"merged{len(exported)}")
    exported.append(loading.load(folder / f"merged{len(exported)}").params)
  apart = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()), *exported)
  same = jax.tree.map(lambda a, b: bool(np.array_equal(np.asarray(a), np.asarray(b))), *nf4)
  print(
    json.dumps(
      {
        "loaded": loaded,
        "split": split,
        "smallest_share": min(largest),
        "mean_share": float(np.mean(largest)),
        "apart": max(jax.tree.leaves(apart)),
        "nf4": all(jax.tree.leaves(same)),
      }
    )
  )


if __name__ == "__main__":
  main(Path(sys.argv[1]))
