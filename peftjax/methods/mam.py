"""MAM, the mix-and-match adapter (He et al. 2022, arXiv 2110.04366): a short prefix in attention, and a wide scaled
parallel adapter beside the feed-forward sublayer.

    attention: softmax(q [P_k ; K]ᵀ / √D) [P_v ; V]        mlp ← mlp(x) + s · (relu(x D + d) U + u)

The paper's best within its budget: l = 30 prefix tokens, a middle of 512, s = 4; the prefix is reparametrised.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from peftjax.methods.base import Method
from peftjax.methods.parallel_adapter import ParallelAdapter
from peftjax.methods.prefix import Prefix


@dataclasses.dataclass(frozen=True, kw_only=True)
class MAM(Method):
  """Prefix and scaled parallel adapter together.

  Attributes:
    num_virtual_tokens, reparametrize, encoder_hidden_size: of the prefix.
    bottleneck_dim, scale, activation, dropout: of the adapter.
    layers: of both; empty: all.
  """

  name: ClassVar[str] = "mam"
  learning_rate: ClassVar[float] = 1e-3

  num_virtual_tokens: int = 30
  reparametrize: bool = False
  encoder_hidden_size: int = 0
  bottleneck_dim: int = 512
  scale: float = 4.0
  activation: str = "relu"
  dropout: float = 0.0
  layers: tuple[int, ...] = ()

  def __post_init__(self) -> None:
    _ = self.parts  # a wrong setting is said when it is given

  @property
  def parts(self) -> tuple[Method, ...]:
    prefix = Prefix(
      num_virtual_tokens=self.num_virtual_tokens,
      reparametrize=self.reparametrize,
      encoder_hidden_size=self.encoder_hidden_size,
      layers=self.layers,
      modules_to_save=self.modules_to_save,
    )
    adapter = ParallelAdapter(
      bottleneck_dim=self.bottleneck_dim,
      scale=self.scale,
      activation=self.activation,
      dropout=self.dropout,
      layers=self.layers,
    )
    return (prefix, adapter)
