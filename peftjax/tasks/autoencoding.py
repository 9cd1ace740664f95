"""Learning an autoencoder of pictures, whose latents a denoiser then sees."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from peftjax.data.sources.types import Header
from peftjax.diffusion.latents import Latents
from peftjax.errors import UserError
from peftjax.models.components import COMPOSITE
from peftjax.tasks.base import Arrays, Batch, Forward, Task, own_setting, weighted_mean
from peftjax.tasks.metric import Metric


class Autoencoding(Task):
  """The component `vae` of a pipeline as a variational autoencoder (Kingma and Welling 2014): the squared error of a
  picture from latents that are drawn, a mean over its numbers, and `kl_weight` times the divergence of their
  distribution from N(0, 1), a mean over theirs.

  Settings: `kl_weight`, small so that latents keep what pictures show (Rombach et al. 2022 take 1e-6).

  Metrics, of the distribution's mean: loss, the squared error; latent_deviation, the root of the mean square of the
  latents, whose reciprocal is the `scaling_factor` that gives a denoiser latents of deviation 1.
  """

  name = "autoencoding"
  head = COMPOSITE
  label_names: tuple[str, ...] = ()
  num_labels = 0
  reads = ()
  input = "captioned_images"
  fields = ("image", "text")
  needs_no_labels = True
  settings = {"kl_weight": 1e-6}
  main_metric = "loss"
  specs = (
    Metric("loss", "per-example", value="loss", higher_is_better=False),
    Metric("latent_deviation", "corpus"),
  )

  def __init__(self, kl_weight: float = 1e-6):
    self.kl_weight = kl_weight

  @classmethod
  def make(cls, settings: ConfigDict, header: Header) -> Autoencoding:
    weight = own_setting(cls, settings, "kl_weight")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < 1e6:
      raise UserError(f"task.kl_weight={weight!r}: expected a number of at least 0")
    return cls(float(weight))

  def of_model(self, folder: Path | None) -> Self:
    """Raises a `UserError` of a pipeline without an autoencoder."""
    if folder is None or not Latents.of(folder).encoded:
      raise UserError(f"task.name={self.name!r} trains the component 'vae', and {folder} has none")
    return self

  def inputs(self, batch: Batch) -> dict[str, Any]:
    return {"vae": {"sample": batch["pixel_values"]}}

  def loss(self, forward: Forward, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, Arrays]:
    mean, logvar = self._encoded(forward, batch)
    drawn = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
    errors = self._errors(forward, drawn, batch)
    divergences = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar).mean(axis=(1, 2, 3))
    weights = batch["weight"]
    extra = {"error": (errors * weights).sum(), "divergence": (divergences * weights).sum()}
    return extra["error"] + self.kl_weight * extra["divergence"], weights.sum(), extra

  def predict(self, forward: Forward, batch: Batch) -> Arrays:
    """ "loss" and "latent_square", the mean square of the latents, [B] float32."""
    mean, _ = self._encoded(forward, batch)
    squares = jnp.square(mean).mean(axis=(1, 2, 3))
    return {"loss": self._errors(forward, mean, batch), "latent_square": squares, "weight": batch["weight"]}

  def per_example(self, predictions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"latent_square": predictions["latent_square"]}

  def metrics(self, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
    ones = np.ones(len(predictions["loss"]))
    deviation = float(np.sqrt(weighted_mean(predictions["latent_square"], ones)))
    return {"loss": weighted_mean(predictions["loss"], ones), "latent_deviation": deviation}

  def _encoded(self, forward: Forward, batch: Batch) -> tuple[jax.Array, jax.Array]:
    found: Any = forward({"vae": {"x": batch["pixel_values"]}})["vae"]
    return found["mean"].astype(jnp.float32), found["logvar"].astype(jnp.float32)

  def _errors(self, forward: Forward, latents: jax.Array, batch: Batch) -> jax.Array:
    found: Any = forward({"vae": {"z": latents}})["vae"]
    return jnp.square(found["sample"].astype(jnp.float32) - batch["pixel_values"]).mean(axis=(1, 2, 3))
