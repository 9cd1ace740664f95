"""What the frozen encoders of a diffusion model give of its training examples, computed once before training."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from peftjax import masks
from peftjax.data.inputs.encoded_images import EncodedImages
from peftjax.diffusion.folder import ENCODERS
from peftjax.errors import UserError
from peftjax.masks import Tree
from peftjax.parallel.mesh import put_batch, replicated
from peftjax.train.run import Run

COMPONENTS = {"latents": ("vae",), "text": ENCODERS}


def filled(run: Run) -> Run:
  """The run, whose training batches hold what `input.cache` asks for.

  Raises:
    UserError: an encoder trains, or several processes train.
  """
  inputs = run.loaders.inputs.training()
  if not isinstance(inputs, EncodedImages):
    return run
  groups = masks.flatten(run.model.labels())
  for name in inputs.kept:
    trains = [leaf for leaf, group in groups.items() if group != masks.FROZEN and _part(leaf) in COMPONENTS[name]]
    if trains:
      raise UserError(f"input.cache: {name} changes with every update, as {trains[0]} trains; leave it out")
  if jax.process_count() > 1:
    raise UserError(f"input.cache: one process was expected, not {jax.process_count()}")
  forward, mesh = run.forward, run.mesh
  params = masks.combine(run.trainable, run.frozen)

  def encode(params: Tree, name: str, raw: jax.Array) -> dict[str, jax.Array]:
    return run.task.encode(lambda inputs: forward(params, inputs, None), name, raw)

  compiled = jax.jit(encode, static_argnums=1, out_shardings=replicated(mesh))

  def on_devices(name: str, raw: np.ndarray) -> dict[str, np.ndarray]:
    found = compiled(params, name, put_batch(mesh, {"raw": raw})["raw"])
    return {field: np.asarray(array) for field, array in found.items()}

  counts = inputs.fill(on_devices, int(run.config.train.eval_batch_size))
  told = ", ".join(f"{count} of {name}" for name, count in counts.items())
  return dataclasses.replace(run, notes=(*run.notes, f"kept of the frozen encoders: {told}"))


def _part(leaf: str) -> str:
  return leaf.partition(".")[0]
