"""Between pictures and what a denoiser sees of them: an autoencoder's latents, or the pictures themselves."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp

from peftjax.diffusion.folder import factor_of, has_component
from peftjax.diffusion.texts import Forward
from peftjax.errors import UserError
from peftjax.files import read_json
from peftjax.kinds import number, value_of

NEEDED = ("unet", "text_encoder")
_SCALE = number(above=0.0)


@dataclasses.dataclass(frozen=True)
class Latents:
  """How the latents of a pipeline are made.

  Attributes:
    encoded: by its component `vae`; otherwise the pictures are what is denoised.
    scale: of the latents that the autoencoder gives (Rombach et al. 2022, appendix G).
    channels: of the latents.
    factor: pixels along a side of one latent.
  """

  encoded: bool = False
  scale: float = 1.0
  channels: int = 3
  factor: int = 1

  @staticmethod
  def of(folder: Path) -> Latents:
    """Those of a pipeline's folder.

    Raises:
      UserError: a component is missing, or the components do not fit each other.
    """
    for name in NEEDED:
      if not has_component(folder, name):
        raise UserError(f"{folder} has no component {name!r}; expected a pipeline's folder with {', '.join(NEEDED)}")
    unet = read_json(folder / "unet" / "config.json")
    channels, out = (unet.get(f"{one}_channels", 4) for one in ("in", "out"))
    if channels != out:
      raise UserError(f"{folder}/unet/config.json: in_channels={channels} and out_channels={out}: a denoiser that "
                      "gives what it reads was expected")  # fmt: skip
    path = folder / "vae" / "config.json"
    if not has_component(folder, "vae"):
      if channels != 3:
        raise UserError(f"{folder}/unet/config.json: in_channels={channels}, and there is no component 'vae': pictures "
                        "have 3")  # fmt: skip
      return Latents()
    vae = read_json(path)
    given = vae.get("latent_channels", 4)
    if given != channels:
      raise UserError(f"{path}: latent_channels={given}, and unet/config.json has in_channels={channels}")
    if vae.get("in_channels", 3) != 3 or vae.get("out_channels", 3) != 3:
      raise UserError(f"{path}: in_channels={vae.get('in_channels', 3)}, out_channels={vae.get('out_channels', 3)}: "
                      "pictures have 3")  # fmt: skip
    scale = value_of(str(path), "scaling_factor", vae.get("scaling_factor", 0.18215), _SCALE)
    return Latents(True, scale, channels, factor_of(path))

  def encode(self, forward: Forward, pixels: jax.Array, key: jax.Array | None) -> jax.Array:
    """float32 [N, C, h, w] of pictures [N, 3, H, W] in [-1, 1]: drawn from the autoencoder's distribution by `key`, or
    its mean without one. No gradient reaches the autoencoder."""
    if not self.encoded:
      return pixels
    found = jax.lax.stop_gradient(forward({"vae": {"x": pixels}})["vae"])
    return self.drawn(found["mean"], found["logvar"], key)

  def drawn(self, mean: jax.Array, logvar: jax.Array, key: jax.Array | None) -> jax.Array:
    """float32 [N, C, h, w] of what the autoencoder gave, as `encode`."""
    latents = mean.astype(jnp.float32)
    if key is not None:
      spread = jnp.exp(0.5 * logvar.astype(jnp.float32))
      latents = latents + spread * jax.random.normal(key, latents.shape, jnp.float32)
    return latents * self.scale

  def decode(self, forward: Forward, latents: jax.Array) -> jax.Array:
    """float32 [N, 3, H, W], pictures in about [-1, 1]."""
    if not self.encoded:
      return latents
    return forward({"vae": {"z": latents / self.scale}})["vae"]["sample"].astype(jnp.float32)
