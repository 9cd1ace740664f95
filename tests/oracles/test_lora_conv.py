"""LoRA on convolutions and embeddings against PEFT's, and merged."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from flax import linen as nn

from peftjax import masks, methods
from peftjax.errors import UserError
from peftjax.methods.attach import attach
from peftjax.methods.base import Context
from peftjax.methods.bound import bind
from peftjax.methods.discovery import discover
from peftjax.methods.inject import acting

CASES = {
  "1-D": ((5,), {"strides": 2, "padding": 2}, {"stride": 2, "padding": 2}),
  "2-D": ((3, 2), {"strides": (1, 2), "padding": 1}, {"stride": (1, 2), "padding": 1}),
  "pointwise": ((1, 1), {"padding": "VALID"}, {}),
}


class Net(nn.Module):
  """One convolution."""

  window: tuple[int, ...]
  options: dict[str, Any]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return nn.Conv(7, self.window, name="conv", **self.options)(x)


class TorchNet(torch.nn.Module):
  """The same in torch."""

  def __init__(self, window: tuple[int, ...], options: dict[str, Any]):
    super().__init__()
    self.conv = (torch.nn.Conv1d if len(window) == 1 else torch.nn.Conv2d)(4, 7, window, **options)

  def forward(self, x: Any) -> Any:
    return self.conv(x)


def channels_last(kernel: Any) -> jax.Array:
  """torch's [out, in, *window] as [*window, in, out]."""
  value = kernel.detach().numpy()
  return jnp.asarray(value.transpose(*range(2, value.ndim), 1, 0))


@pytest.mark.parametrize("init", ["kaiming", "pissa"])
@pytest.mark.parametrize("name", CASES)
def test_convolutions(name: str, init: str):
  window, ours, theirs = CASES[name]
  torch.manual_seed(0)
  base = TorchNet(window, theirs)
  kernel, bias = base.conv.weight, base.conv.bias
  x = np.random.default_rng(0).standard_normal((2, *(9, 8)[: len(window)], 4)).astype(np.float32)
  module = Net(window, ours)
  params = {"conv": {"kernel": channels_last(kernel), "bias": jnp.asarray(bias.detach().numpy())}}
  _, sites = discover(module, {"x": jax.ShapeDtypeStruct(x.shape, jnp.float32)}, {})
  bound = bind([methods.LoRA(rank=3, alpha=5.0, targets=("conv",), init=init)], Context(sites, {}))
  tree = attach(params, bound, jax.random.key(0))

  def forward(tree: masks.Tree) -> jax.Array:
    with acting(bound, tree) as whole:
      return module.apply({"params": whole}, x)

  np.testing.assert_allclose(forward(tree), module.apply({"params": params}, x), rtol=1e-5, atol=1e-5)
  if init == "kaiming":
    model = peft.get_peft_model(base, peft.LoraConfig(r=3, lora_alpha=5, target_modules=["conv"]))
    layer = model.base_model.model.conv
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    tree["conv"]["lora_a"] = channels_last(layer.lora_A["default"].weight)
    tree["conv"]["lora_b"] = channels_last(layer.lora_B["default"].weight).reshape(3, 7)
    wanted = model(torch.tensor(np.moveaxis(x, -1, 1))).detach().numpy()
    np.testing.assert_allclose(forward(tree), np.moveaxis(wanted, 1, -1), rtol=1e-5, atol=1e-5)
  else:
    tree["conv"]["lora_b"] = tree["conv"]["lora_b"] * 0.5 + 0.1
  (site,), method = bound[0].sites, bound[0].method
  delta = method.delta(tree["conv"], params["conv"], site, {})
  merged = {"conv": {**params["conv"], "kernel": params["conv"]["kernel"] + delta["kernel"]}}
  np.testing.assert_allclose(forward(tree), module.apply({"params": merged}, x), rtol=1e-5, atol=1e-5)


def test_groups_must_divide_the_rank():
  grouped, x = Net((3,), {"feature_group_count": 7}), jnp.zeros((2, 9, 7))
  _, sites = discover(grouped, {"x": x}, {})
  with pytest.raises(UserError, match="7 groups"):
    bind([methods.LoRA(rank=3, targets=("conv",))], Context(sites, {}))
