"""Pictures from text: noise that is denoised step by step under a prompt, with guidance (Ho and Salimans 2022).

A whole sampling is one compiled scan. A picture depends on its seed and prompt alone, not on those beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.data.inputs.pipeline import Pipeline
from peftjax.diffusion.latents import Latents
from peftjax.diffusion.samplers import Sampler, Steps, of_pipeline
from peftjax.diffusion.texts import Forward, Texts
from peftjax.errors import UserError
from peftjax.masks import Tree

ModelForward = Callable[[Tree, Any, Any], Any]  # parameters, inputs, key of dropout -> outputs
_NOISE = 0x5EED  # any constant: what a random sampler adds is not what it starts from


@dataclasses.dataclass(frozen=True)
class Plan:
  """How pictures are sampled.

  Attributes:
    sampler, latents, texts: the pipeline's.
    steps: of the sampler.
    guidance_scale: how far a prediction goes from that of the negative prompt on to the prompt's; up to 1 there is no
      guidance, and the negative prompt is not run.
    side: pixels of a side.
  """

  sampler: Sampler
  latents: Latents
  texts: Texts
  steps: int = 50
  guidance_scale: float = 7.5
  side: int = 512

  def __post_init__(self) -> None:
    if not 0 <= self.guidance_scale < 1e3:
      raise UserError(f"guidance={self.guidance_scale}: expected a number from 0 to 1000")
    if self.side < 1 or self.side % self.latents.factor:
      raise UserError(f"size={self.side}: expected a multiple of {self.latents.factor} pixels")
    self.sampler.steps(self.steps)

  @property
  def is_guided(self) -> bool:
    """Whether the negative prompt is run."""
    return self.guidance_scale > 1

  @property
  def shape(self) -> tuple[int, int, int]:
    """Of one picture's latents."""
    side = self.side // self.latents.factor
    return self.latents.channels, side, side

  def starts(self, seeds: Sequence[int] | np.ndarray) -> jax.Array:
    """float32 [N, C, h, w]: the noise that pictures start from, of deviation 1."""
    return jax.vmap(lambda key: jax.random.normal(key, self.shape))(_keys(seeds))


def plan_of(folder: Path, sampler: str = "", steps: int = 50, guidance_scale: float = 7.5, side: int = 0) -> Plan:
  """How a pipeline's folder is sampled from.

  Args:
    sampler: one of `peftjax.diffusion.samplers.NAMES`; "": the folder's own.
    side: pixels; 0: what the denoiser is made for.

  Raises:
    UserError: a component or a file is missing; as `samplers.of_pipeline` and `Plan`.
  """
  latents, texts = Latents.of(folder), Texts.of(folder)
  return Plan(of_pipeline(folder, sampler), latents, texts, steps, guidance_scale, side or Pipeline(folder).side)


def make_sampling(forward: ModelForward, plan: Plan) -> Callable[..., jax.Array]:
  """run(params, ids, negative_ids, starts, seeds) -> pictures float32 [N, 3, H, W] in [0, 1], compiled.

  Its arguments: ids and negative_ids int32 of `Pipeline.ids`, starts float32 [N, C, h, w] of deviation 1, seeds uint32
  [N], which a random sampler's noise follows from.
  """

  @jax.jit
  def run(params: Tree, ids: jax.Array, negative_ids: jax.Array, starts: jax.Array, seeds: jax.Array) -> jax.Array:
    bound: Forward = lambda inputs: forward(params, inputs, None)  # noqa: E731
    latents = denoised(bound, plan, ids, negative_ids, starts, seeds)
    return jnp.clip(plan.latents.decode(bound, latents) / 2 + 0.5, 0.0, 1.0)

  return run


def denoised(
  forward: Forward, plan: Plan, ids: jax.Array, negative_ids: jax.Array, starts: jax.Array, seeds: jax.Array
) -> jax.Array:
  """Latents float32 [N, C, h, w] after all steps; traceable. Arguments as of `make_sampling`."""
  sampler, count = plan.sampler, len(starts)
  texts = jnp.concatenate([negative_ids, ids]) if plan.is_guided else ids
  sizes = jnp.asarray([plan.side, plan.side, 0, 0, plan.side, plan.side], jnp.float32)
  told = plan.texts.told(plan.texts.encode(forward, texts), jnp.broadcast_to(sizes, (len(texts), len(sizes))))
  keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), _NOISE))(seeds)

  def step(sample: jax.Array, row: tuple[Steps, jax.Array]) -> tuple[jax.Array, None]:
    one, number = row
    seen: jax.Array = jnp.asarray(one.scale) * sample
    seen = jnp.concatenate([seen, seen]) if plan.is_guided else seen
    given = {"sample": seen, "timestep": jnp.full(len(seen), one.timesteps), **told}
    output = forward({"unet": given})["unet"]["sample"].astype(jnp.float32)
    if plan.is_guided:
      without, under = output[:count], output[count:]
      output = without + plan.guidance_scale * (under - without)
    noise = None
    if sampler.is_random:
      noise = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, number), plan.shape))(keys)
    return sampler.step(one, output, sample, noise), None

  rows = (jax.tree.map(jnp.asarray, sampler.steps(plan.steps)), jnp.arange(plan.steps))
  return jax.lax.scan(step, starts * sampler.start_scale(plan.steps), rows)[0]


def sample(
  run: Callable[..., jax.Array],
  params: Tree,
  plan: Plan,
  pipeline: Pipeline,
  texts: Sequence[str],
  seeds: Sequence[int],
  negative: str = "",
  batch_size: int = 4,
) -> np.ndarray:
  """Pictures uint8 [N, H, W, 3], one for each text and seed, `batch_size` at once.

  Args:
    run: see `make_sampling`.
  """
  found: list[np.ndarray] = []
  ids, no_ids = pipeline.ids(texts), pipeline.negative_ids(negative)  # on the host: batches differ in values alone
  for start in range(0, len(texts), batch_size):
    rows = [min(row, len(texts) - 1) for row in range(start, start + batch_size)]  # the last again, to fill up
    own: Any = np.array([seeds[row] for row in rows], np.uint32)
    pictures = np.asarray(run(params, ids[rows], no_ids.repeat(len(rows), 0), plan.starts(own), own))
    found.append(pictures[: len(texts) - start])
  return as_bytes(np.concatenate(found))


def as_bytes(pictures: np.ndarray) -> np.ndarray:
  """uint8 [N, H, W, 3] of pictures [N, 3, H, W] in [0, 1], rounded as diffusers rounds."""
  return (np.asarray(pictures, np.float64).transpose(0, 2, 3, 1) * 255).round().astype(np.uint8)


def _keys(seeds: Sequence[int] | np.ndarray) -> jax.Array:
  return jax.vmap(jax.random.key)(np.asarray(seeds, np.uint32))
