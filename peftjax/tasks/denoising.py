"""Learning to denoise: latent diffusion (Rombach et al. 2022), and DreamBooth (Ruiz et al. 2023), where pictures of a
class stay what they are while a subject of it is learned."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from peftjax.data.inputs.encoded_images import LOGVAR, MEAN
from peftjax.data.sources.pictures import PRIOR
from peftjax.data.sources.types import Header
from peftjax.diffusion.latents import Latents
from peftjax.diffusion.noise import Noise
from peftjax.diffusion.samplers import read_config
from peftjax.diffusion.texts import SIZES, STATES, Texts
from peftjax.errors import UserError, nearest
from peftjax.models.components import COMPOSITE
from peftjax.tasks.base import Arrays, Batch, Forward, Task, own_setting, weighted_mean
from peftjax.tasks.metric import Metric

_EVALUATION = 0xD1FF  # any constant: what evaluations draw must depend on no seed


class Denoising(Task):
  """The squared error of what the denoiser predicts for a picture with noise at a random timestep, uniform over all.

  For a picture with another one beside it that should stay, the loss is that of both: L + prior_weight L_prior, each a
  mean over the batch, as in diffusers' train_dreambooth.py.

  Settings:
    prior_weight: of the pictures that should stay.
    min_snr_gamma: caps the weight of timesteps with little noise (Hang et al. 2023, who use 5); 0: all weigh the same.
    latents: of the autoencoder: "sampled" from its distribution in every step, or its "mode".
    eval_timesteps: at how many timesteps a picture is evaluated, one in each of as many equal ranges of them.

  Metrics: loss, unweighted. A picture's timesteps and noise in evaluations follow from its number alone, so that
  methods are compared on the same ones.
  """

  name = "denoising"
  head = COMPOSITE
  label_names: tuple[str, ...] = ()
  num_labels = 0
  reads = ()
  input = "captioned_images"
  fields = ("image", "text")
  needs_no_labels = True
  settings = {"prior_weight": 1.0, "min_snr_gamma": 0.0, "latents": "sampled", "eval_timesteps": 4}
  main_metric = "loss"
  specs = (Metric("loss", "per-example", value="loss", higher_is_better=False),)

  def __init__(
    self, prior_weight: float = 1.0, min_snr_gamma: float = 0.0, sampled: bool = True, eval_timesteps: int = 4
  ):
    self.prior_weight, self.min_snr_gamma = prior_weight, min_snr_gamma
    self.sampled, self.eval_timesteps = sampled, eval_timesteps
    self.noise, self.latents, self.texts = Noise(), Latents(), Texts()

  @classmethod
  def make(cls, settings: ConfigDict, header: Header) -> Denoising:
    numbers = {}
    for name in ("prior_weight", "min_snr_gamma"):
      value = own_setting(cls, settings, name)
      if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e6:
        raise UserError(f"task.{name}={value!r}: expected a number of at least 0")
      numbers[name] = float(value)
    latents, count = own_setting(cls, settings, "latents"), own_setting(cls, settings, "eval_timesteps")
    if latents not in ("sampled", "mode"):
      raise UserError(f"task.latents={latents!r}; {nearest(str(latents), ('sampled', 'mode'))}")
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= 1000:
      raise UserError(f"task.eval_timesteps={count!r}: expected a whole number from 1 to 1000")
    return cls(**numbers, sampled=latents == "sampled", eval_timesteps=count)

  def of_model(self, folder: Path | None) -> Self:
    """The task for a pipeline's folder, whose scheduler_config.json says the noise and what is predicted."""
    if folder is None:
      raise UserError(f"task.name={self.name!r} needs a folder with model_index.json, which says how much noise a "
                      "timestep has; a model of your own has none")  # fmt: skip
    found = copy.copy(self)
    found.noise, found.latents = Noise.of(*read_config(folder)), Latents.of(folder)
    found.texts = Texts.of(folder)
    return found

  def inputs(self, batch: Batch) -> dict[str, Any]:
    """Of one pass of the denoiser at the first timestep, with latents of nothing and the text as it is read."""
    rows, count = len(batch["weight"]), len(self.texts.encoders)
    side = batch[MEAN].shape[-1] if MEAN in batch else batch["pixel_values"].shape[-1] // self.latents.factor
    length = batch[STATES].shape[1] if STATES in batch else batch["input_ids"].shape[1] // count
    texts = {name: jnp.zeros((rows, *shape)) for name, shape in self.texts.shapes(length).items()}
    return {
      **self.texts.inputs(batch.get("input_ids", np.zeros((rows, count * length), np.int32))),
      "unet": {
        "sample": jnp.zeros((rows, self.latents.channels, side, side)),
        "timestep": jnp.zeros(rows, jnp.int32),
        **self.texts.told(texts, batch.get(SIZES)),
      },
    }

  def loss(self, forward: Forward, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, Arrays]:
    has_priors = any(name.startswith(PRIOR) for name in batch)
    first, second = jax.random.split(key)
    drawn_by = first if self.sampled else None
    if MEAN in batch:
      mean, logvar = (self._beside(batch, name, has_priors) for name in (MEAN, LOGVAR))
      latents = self.latents.drawn(mean, logvar, drawn_by)
    else:
      latents = self.latents.encode(forward, self._beside(batch, "pixel_values", has_priors), drawn_by)
    told = self._told(forward, batch, has_priors)
    timesteps, noise = self.draw(second, latents)
    losses = self._errors(forward, latents, told, timesteps, noise)
    if self.min_snr_gamma:
      losses = losses * self.noise.min_snr_weights(timesteps, self.min_snr_gamma)
    weights = batch["weight"]
    if not has_priors:
      return (losses * weights).sum(), weights.sum(), {}
    own, prior = losses[0::2], losses[1::2]
    extra = {"subject_loss": (own * weights).sum(), "prior_loss": (prior * weights).sum()}
    return extra["subject_loss"] + self.prior_weight * extra["prior_loss"], weights.sum(), extra

  def draw(self, key: jax.Array, latents: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(timesteps [N] int32, noise as the latents [N, C, H, W]) of a training step."""
    when, what = jax.random.split(key)
    timesteps = jax.random.randint(when, (len(latents),), 0, self.noise.num_train_timesteps)
    return timesteps, jax.random.normal(what, latents.shape, latents.dtype)

  def _beside(self, batch: Batch, name: str, has_priors: bool) -> jax.Array:
    """[N, ...]: with pictures that should stay 2 B rows, each row of the batch and the one beside it, which stay on
    their device so."""
    own: jax.Array = batch[name]
    if not has_priors:
      return own
    return jnp.stack([own, batch[f"{PRIOR}{name}"]], axis=1).reshape(-1, *own.shape[1:])

  def encode(self, forward: Forward, name: str, raw: jax.Array) -> Arrays:
    if name == "text":
      return {field: array.astype(jnp.float32) for field, array in self.texts.encode(forward, raw).items()}
    found: Any = forward({"vae": {"x": raw}})["vae"]
    return {MEAN: found["mean"].astype(jnp.float32), LOGVAR: found["logvar"].astype(jnp.float32)}

  def _told(self, forward: Forward, batch: Batch, has_priors: bool) -> dict[str, Any]:
    """What the denoiser is told of each picture."""
    if STATES in batch:
      texts = {name: self._beside(batch, name, has_priors) for name in self.texts.fields}
    else:
      texts = self.texts.encode(forward, self._beside(batch, "input_ids", has_priors))
    return self.texts.told(texts, self._beside(batch, SIZES, has_priors) if self.texts.pooled else None)

  def _errors(
    self, forward: Forward, latents: jax.Array, told: Mapping[str, Any], timesteps: jax.Array, noise: jax.Array
  ) -> jax.Array:
    """[N] float32: mean squared errors."""
    noisy = self.noise.add(latents, noise, timesteps)
    given = {"sample": noisy, "timestep": timesteps, **told}
    predicted = forward({"unet": given})["unet"]["sample"].astype(jnp.float32)
    error = predicted - self.noise.target(latents, noise, timesteps)
    return jnp.square(error).mean(axis=(1, 2, 3))

  def predict(self, forward: Forward, batch: Batch) -> Arrays:
    """ "losses" [B, eval_timesteps] float32, and "loss", their mean."""
    latents = self.latents.encode(forward, batch["pixel_values"], None)
    told = self._told(forward, batch, has_priors=False)

    def errors(place: jax.Array) -> jax.Array:
      return self._errors(forward, latents, told, *self.draw_fixed(batch["index"], place, latents.shape[1:]))

    found = jax.lax.map(
      errors, jnp.arange(self.eval_timesteps)
    ).T  # one after the other, so that one pass's activations are held
    return {"loss": found.mean(axis=1), "losses": found, "weight": batch["weight"]}

  def draw_fixed(self, index: jax.Array, place: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """(timesteps [B] int32, noise float32 [B, *shape]) of the examples with these numbers, in the range `place` of
    `eval_timesteps` equal ones: functions of the number alone."""
    count = self.noise.num_train_timesteps
    low, high = (count * bound / self.eval_timesteps for bound in (place, place + 1))

    def drawn(number: jax.Array) -> tuple[jax.Array, jax.Array]:
      key = jax.random.fold_in(jax.random.fold_in(jax.random.key(_EVALUATION), number), place)
      when, what = jax.random.split(key)
      timestep = jnp.minimum(low + (high - low) * jax.random.uniform(when), count - 1).astype(jnp.int32)
      return timestep, jax.random.normal(what, shape)

    timesteps, noise = jax.vmap(drawn)(index)
    return timesteps, noise

  def per_example(self, predictions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"losses": predictions["losses"]}

  def metrics(self, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {"loss": weighted_mean(predictions["loss"], np.ones(len(predictions["loss"])))}
