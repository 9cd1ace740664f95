"""What models that find objects in images share."""

from __future__ import annotations

import jax
from flax import linen as nn

from peftjax.models.layers import Runtime

# Of config.json: how transformers weighs the loss and the matching, which `config.task` says here.
LOSS_FIELDS = frozenset(
  {
    "class_cost",
    "bbox_cost",
    "giou_cost",
    "bbox_loss_coefficient",
    "giou_loss_coefficient",
    "mask_loss_coefficient",
    "dice_loss_coefficient",
    "eos_coefficient",
  }
)


class BoxHead(nn.Module):
  """Three linear layers with ReLUs between them, under the names layers.0 to layers.2.

  Of boxes the sigmoid of what it gives is (centre x, centre y, width, height), as shares of the image's sides (Carion
  et al. 2020, arXiv 2005.12872, section 3.2).
  """

  hidden_size: int
  features: int
  runtime: Runtime

  def setup(self) -> None:
    self.layers = _Numbered((self.hidden_size, self.hidden_size, self.features), self.runtime)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.layers(x)


class _Numbered(nn.Module):
  """Layers under the names "0", "1", ... with ReLUs between them."""

  sizes: tuple[int, ...]
  runtime: Runtime

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for index, size in enumerate(self.sizes):
      x = self.runtime.dense(size, name=str(index))(x if index == 0 else nn.relu(x))
    return x
