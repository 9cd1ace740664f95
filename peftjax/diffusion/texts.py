"""What a pipeline's text encoders tell its denoiser: the states of one, or of two with SDXL's added conditions (Podell
et al. 2023, arXiv 2307.01952, section 2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.diffusion.folder import encoders_of, has_component
from peftjax.errors import UserError
from peftjax.files import read_json
from peftjax.kinds import shown, value_of, whole

Forward = Callable[..., Mapping[str, Any]]  # component -> its inputs, to component -> its outputs
STATES, POOLED, SIZES = "text_states", "text_pooled", "time_ids"
NO_TEXT = -1  # ids that stand for no text at all, of which a denoiser is told zeros
NUMBERS = 6  # of a picture's sizes: height and width, top and left of what is cut out of it, height and width of that
_POOLS = "CLIPTextModelWithProjection"
_WIDTH = whole(1, 2**20)


@dataclasses.dataclass(frozen=True)
class Texts:
  """How texts reach the denoiser.

  Attributes:
    encoders: the components that read them, each with ids of its own.
    width: of the states that the denoiser reads, of all encoders together.
    pooled: features of the pooled text that it reads beside them, of the last encoder; 0: none, and no sizes either.
  """

  encoders: tuple[str, ...] = ("text_encoder",)
  width: int = 1280
  pooled: int = 0

  @staticmethod
  def of(folder: Path) -> Texts:
    """Those of a pipeline's folder.

    Raises:
      UserError: a text encoder is missing, or what it gives does not fit the denoiser.
    """
    where = f"{folder}/unet/config.json"
    unet, names = read_json(folder / "unet" / "config.json"), encoders_of(folder)
    configs, widths = {}, []
    width = value_of(where, "cross_attention_dim", unet.get("cross_attention_dim", 1280), _WIDTH)
    for name in names:
      if not has_component(folder, name):
        raise UserError(f"{folder} has no component {name!r}; its denoiser is told by {' and '.join(names)}")
      path = f"{folder}/{name}/config.json"
      configs[name] = read_json(folder / name / "config.json")
      if fills := configs[name].get("use_attention_mask"):
        raise UserError(f"{path}: use_attention_mask={shown(fills)}: what fills up a text is seen here, as in Stable "
                        "Diffusion; expected false")  # fmt: skip
      widths.append(value_of(path, "hidden_size", configs[name].get("hidden_size", width), _WIDTH))
    if sum(widths) != width:
      given = " and ".join(f"{name}/config.json has hidden_size={one}" for name, one in zip(names, widths, strict=True))
      raise UserError(f"{where}: cross_attention_dim={width}, and {given}")
    if len(names) == 1:
      return Texts(names, width)
    last = configs[names[-1]]
    if last.get("architectures") != [_POOLS]:
      raise UserError(f"{folder}/{names[-1]}/config.json: architectures={shown(last.get('architectures'))}: the "
                      f"denoiser reads pooled texts; expected [{_POOLS!r}]")  # fmt: skip
    pooled = value_of(f"{folder}/{names[-1]}/config.json", "projection_dim", last.get("projection_dim", 512), _WIDTH)
    beside, each = (unet.get(f"{one}_dim") for one in ("projection_class_embeddings_input", "addition_time_embed"))
    if not isinstance(each, int) or beside != pooled + NUMBERS * each:
      raise UserError(f"{where}: projection_class_embeddings_input_dim={shown(beside)}; expected {pooled} of the "
                      f"pooled text and {NUMBERS} times addition_time_embed_dim={shown(each)}")  # fmt: skip
    return Texts(names, width, pooled)

  @property
  def fields(self) -> tuple[str, ...]:
    """The arrays of `encode`."""
    return (STATES, POOLED) if self.pooled else (STATES,)

  def shapes(self, length: int) -> dict[str, tuple[int, ...]]:
    """Array of `encode` -> its shape for one text of so many tokens."""
    return dict(zip(self.fields, ((length, self.width), (self.pooled,)), strict=False))

  def inputs(self, ids: Any) -> dict[str, dict[str, Any]]:
    """Encoder -> its inputs, of ids int [N, encoders x L], those of one encoder behind those of another."""
    each = ids.shape[-1] // len(self.encoders)
    return {name: {"input_ids": ids[:, place * each : (place + 1) * each]} for place, name in enumerate(self.encoders)}

  def encode(self, forward: Forward, ids: jax.Array) -> dict[str, jax.Array]:
    """ "text_states" [N, L, width] and, of two encoders, "text_pooled" [N, pooled], of ids [N, encoders x L].

    One encoder gives its last states, normalised; two give those before their last layers, beside each other. A row
    of `NO_TEXT` is zeros.
    """
    found: Any = forward(self.inputs(jnp.maximum(ids, 0)))
    if not self.pooled:
      return {STATES: found[self.encoders[0]]["last_hidden_state"]}
    is_text = ids[:, 0] != NO_TEXT
    states = jnp.concatenate([found[name]["hidden_states"][-2] for name in self.encoders], axis=-1)
    pooled = found[self.encoders[-1]]["text_embeds"]
    return {STATES: states * is_text[:, None, None], POOLED: pooled * is_text[:, None]}

  def told(self, texts: Mapping[str, jax.Array], sizes: Any = None) -> dict[str, Any]:
    """The denoiser's inputs beside the picture and its timestep.

    Args:
      texts: of `encode`.
      sizes: float32 [N, 6] where there are pooled texts: height and width of the whole picture, top and left of the
        part that is seen, height and width of that, in pixels.
    """
    found: dict[str, Any] = {"encoder_hidden_states": texts[STATES]}
    if self.pooled:
      found["added_cond_kwargs"] = {"text_embeds": texts[POOLED], "time_ids": sizes}
    return found
