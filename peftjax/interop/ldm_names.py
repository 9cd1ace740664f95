"""Names of a denoiser's modules in its first implementation, latent-diffusion, which LoRA files for SDXL use."""

from __future__ import annotations

import re

_RESNET = {
  "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
  "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_OUTSIDE = {
  "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
  "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
  "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


def ldm_name(name: str, layers: int, attends: bool) -> str:
  """A module's name there; "" where it has none.

  Args:
    name: in diffusers' `UNet2DConditionModel`.
    layers: `layers_per_block`, the same in every block.
    attends: whether the block that it is in has attention.

  >>> ldm_name("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", 2, True)
  'input_blocks.4.1.transformer_blocks.0.attn1.to_q'
  >>> ldm_name("up_blocks.0.upsamplers.0.conv", 2, True)
  'output_blocks.2.2.conv'
  """
  if name in _OUTSIDE:
    return _OUTSIDE[name]
  if found := _MIDDLE.fullmatch(name):
    kind, number, below = found.groups()
    place = 2 * int(number) if kind == "resnets" else 1
    return f"middle_block.{place}.{_below(kind, below)}"
  if not (found := _BLOCK.fullmatch(name)):
    return ""
  side, block, kind, number, below = found.groups()
  first = (layers + 1) * int(block)
  if kind == "downsamplers":
    return f"input_blocks.{first + layers + 1}.0.op"
  if kind == "upsamplers":
    return f"output_blocks.{first + layers}.{1 + attends}.{below}"
  place, path = first + int(number) + (side == "down"), "input_blocks" if side == "down" else "output_blocks"
  return f"{path}.{place}.{int(kind == 'attentions')}.{_below(kind, below)}"


def _below(kind: str, name: str) -> str:
  return _RESNET.get(name, name) if kind == "resnets" else name
