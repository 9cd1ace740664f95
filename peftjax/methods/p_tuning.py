"""P-tuning (Liu et al. 2021, arXiv 2103.10385): prompt embeddings that a small network makes.

    prompt = W₃ relu(W₂ relu(W₁ E + b₁) + b₂) + b₃              MLP
    prompt = W₂ relu(W₁ LSTM(E) + b₁) + b₂                      LSTM, two directions

E: [n, hidden] is learned together with the network. The prompt enters before the input's embeddings, as in prompt
tuning. Once trained, the network's output is all that is needed; the network is kept so that training can go on.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import ClassVar

import jax
import jax.numpy as jnp

from peftjax.errors import UserError, nearest
from peftjax.methods.base import Call, Leaves
from peftjax.methods.lstm import lstm
from peftjax.methods.prefix import torch_linear
from peftjax.methods.virtual_tokens import VirtualTokens
from peftjax.sites import Site

ENCODERS = ("MLP", "LSTM")
_MAX_LSTM_LAYERS = 4


def _names() -> tuple[str, ...]:
  heads = [f"encoder_head_{index}_{leaf}" for index in range(3) for leaf in ("kernel", "bias")]
  cells = [
    f"encoder_lstm_{layer}_{direction}_{leaf}"
    for layer in range(_MAX_LSTM_LAYERS)
    for direction in ("forward", "reverse")
    for leaf in ("input_kernel", "hidden_kernel", "input_bias", "hidden_bias")
  ]
  return ("encoder_embedding", *heads, *cells)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PTuning(VirtualTokens):
  """Virtual tokens from a prompt encoder.

  Attributes:
    encoder_type: MLP or LSTM (PEFT's `encoder_reparameterization_type`).
    encoder_hidden_size: width of the network, of one direction of an LSTM; 0: the model's hidden size.
    encoder_num_layers: layers of an LSTM; an MLP has always three.
    encoder_dropout: rate between the LSTM's layers while training; 0 where there is one layer, or an MLP.
  """

  name: ClassVar[str] = "p_tuning"
  leaf_names: ClassVar[tuple[str, ...]] = _names()
  learning_rate: ClassVar[float] = 3e-3

  encoder_type: str = "MLP"
  encoder_hidden_size: int = 0
  encoder_num_layers: int = 2
  encoder_dropout: float = 0.0

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.encoder_type not in ENCODERS:
      raise UserError(
        f"{self.name}.encoder_type: unknown {self.encoder_type!r}; {nearest(self.encoder_type, ENCODERS)}"
      )
    if not 1 <= self.encoder_num_layers <= _MAX_LSTM_LAYERS:
      raise UserError(
        f"{self.name}.encoder_num_layers: expected 1 to {_MAX_LSTM_LAYERS}, got {self.encoder_num_layers}"
      )
    if self.encoder_dropout and (self.encoder_type == "MLP" or self.encoder_num_layers == 1):
      kind = "an MLP" if self.encoder_type == "MLP" else "an LSTM of one layer"
      raise UserError(
        f"{self.name}.encoder_dropout={self.encoder_dropout:g} acts between the layers of an LSTM, and there are none "
        f"in {kind}; expected 0, or encoder_type=LSTM with at least two encoder_num_layers"
      )

  def create(self, key: jax.Array, site: Site, base: Leaves) -> Leaves:
    del base
    (size,) = site.shape
    width = self.encoder_hidden_size or size
    keys = iter(jax.random.split(key, 4 + 4 * 2 * self.encoder_num_layers))
    leaves = {"encoder_embedding": jax.random.normal(next(keys), (self.rows, size))}
    widths = (size, width, width, size) if self.encoder_type == "MLP" else (2 * width, 2 * width, size)
    for index, (features_in, features_out) in enumerate(itertools.pairwise(widths)):
      kernel, bias = torch_linear(next(keys), features_in, features_out)
      leaves |= {f"encoder_head_{index}_kernel": kernel, f"encoder_head_{index}_bias": bias}
    if self.encoder_type == "LSTM":
      for layer in range(self.encoder_num_layers):
        features_in = size if layer == 0 else 2 * width
        shapes = {
          "input_kernel": (features_in, 4 * width),
          "hidden_kernel": (width, 4 * width),
          "input_bias": (4 * width,),
          "hidden_bias": (4 * width,),
        }
        for direction in ("forward", "reverse"):
          for leaf, shape in shapes.items():
            drawn = jax.random.uniform(next(keys), shape, minval=-(width**-0.5), maxval=width**-0.5)
            leaves[f"encoder_lstm_{layer}_{direction}_{leaf}"] = drawn
    return leaves

  def prompt(self, leaves: Leaves, call: Call | None = None) -> jax.Array:
    """[rows, hidden] from the network."""
    x = leaves["encoder_embedding"]
    for layer in range(self.encoder_num_layers if self.encoder_type == "LSTM" else 0):
      if layer and call is not None:
        x = call.dropout(x, self.encoder_dropout)
      cells = [lstm(leaves, f"encoder_lstm_{layer}_{way}_", x, way == "reverse") for way in ("forward", "reverse")]
      x = jnp.concatenate(cells, axis=-1)
    count = 3 if self.encoder_type == "MLP" else 2
    for index in range(count):
      x = x @ leaves[f"encoder_head_{index}_kernel"] + leaves[f"encoder_head_{index}_bias"]
      x = jax.nn.relu(x) if index < count - 1 else x
    return x
