"""Serial bottleneck adapters (Houlsby et al. 2019, arXiv 1902.00751; Pfeiffer et al. 2021, arXiv 2005.00247).

    branch ← branch + act(branch D + d) U + u        D: [hidden, bottleneck], U: [bottleneck, hidden]

applied to a sublayer's output before its residual sum: Houlsby's after attention and feed-forward, Pfeiffer's after the
feed-forward alone. U and u start at zero, so the model starts as the base.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax

from peftjax.methods.base import Call, Leaves
from peftjax.methods.bottleneck import Bottleneck
from peftjax.sites import Site


@dataclasses.dataclass(frozen=True, kw_only=True)
class Houlsby(Bottleneck):
  """Serial adapters after every sublayer."""

  name: ClassVar[str] = "houlsby"

  def after(self, leaves: Leaves, x: Any, y: jax.Array, site: Site, call: Call) -> jax.Array:
    return y + self.network(leaves, y, call)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pfeiffer(Houlsby):
  """Serial adapters after the feed-forward sublayer alone, with a ReLU."""

  name: ClassVar[str] = "pfeiffer"

  activation: str = "relu"
  sublayers: tuple[str, ...] = ("mlp",)
