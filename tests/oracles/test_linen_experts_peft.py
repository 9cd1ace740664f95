"""LoRA on a map that holds a matrix for each expert against PEFT's on one parameter, through its adapter files."""

from __future__ import annotations

import json

import jax
import numpy as np
import peft
import torch
from safetensors.torch import save_file

from peftjax import methods
from peftjax.loading import load
from tests.methods import tiny
from tests.methods.linen_models import EXPERTS, HIDDEN, PIXELS, Mixture, family


class Expert(torch.nn.Module):
  """y[..., e, :] = x[..., e, :] W[e], with the experts' axis before the last."""

  is_transposed = True  # PEFT's word for [E, in, out]

  def __init__(self, source: int, target: int, bias: bool = True):
    super().__init__()
    self.weight = torch.nn.Parameter(0.3 * torch.randn(EXPERTS, source, target))
    self.bias = torch.nn.Parameter(0.3 * torch.randn(EXPERTS, target)) if bias else None

  def forward(self, x):
    y = torch.einsum("...ei,eio->...eo", x, self.weight)
    return y if self.bias is None else y + self.bias


class Theirs(torch.nn.Module):
  def __init__(self):
    super().__init__()
    self.patches, self.router = torch.nn.Linear(HIDDEN, HIDDEN), torch.nn.Linear(HIDDEN, EXPERTS)
    self.first, self.second, self.third = Expert(HIDDEN, 8), Expert(8, 20), Expert(20, HIDDEN, bias=False)
    self.head = torch.nn.Linear(HIDDEN, 5)

  def forward(self, pixels):
    x = self.patches(pixels.reshape(*pixels.shape[:2], -1))
    gates = torch.softmax(self.router(x), dim=-1)
    wide = torch.tanh(self.first(x[..., None, :].expand(*x.shape[:-1], EXPERTS, HIDDEN)))
    y = self.third(torch.nn.functional.gelu(self.second(wide), approximate="tanh"))
    return self.head(torch.einsum("bted,bte->bd", y, gates))


def test_an_adapter_of_experts_goes_to_peft_and_back(tmp_path):
  torch.manual_seed(0)
  theirs = Theirs().eval()
  state = theirs.state_dict()
  shapes = {"first": ((HIDDEN, 2, 4), (2, 4)), "second": ((2, 4, 20), (20,)), "third": ((20, HIDDEN), ())}
  for name, (kernel, bias) in shapes.items():  # as the Linen module has its axes
    value = state[f"{name}.weight"].reshape(EXPERTS, *kernel)
    state[f"{name}.weight"] = value.permute(0, 2, 1).contiguous() if name == "third" else value.contiguous()
    if bias:
      state[f"{name}.bias"] = state[f"{name}.bias"].reshape(EXPERTS, *bias).contiguous()
  (tmp_path / "base").mkdir()
  (tmp_path / "base" / "config.json").write_text(json.dumps({"model_type": "mine"}))
  save_file(state, tmp_path / "base" / "model.safetensors")
  mine = family(Mixture, untransposed=("first", "second", "third"))
  base = load(tmp_path / "base", family=mine)
  plain = theirs(torch.tensor(np.asarray(PIXELS))).detach().numpy()
  np.testing.assert_allclose(base(pixels=PIXELS)["logits"], plain, rtol=1e-5, atol=1e-5)
  model = base.add(methods.LoRA(rank=3, alpha=5.0, targets=("router", "first", "second")), jax.random.key(0))
  own = {path: leaf for path, leaf in tiny.trainable(model).items() if not model.context.in_head(path)}
  model = tiny.replaced(model, tiny.noise_on(own))
  found = model(pixels=PIXELS)["logits"]
  assert np.abs(found - plain).max() > 0.1
  model.save_adapter(tmp_path / "adapter")
  adapted = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter")
  wanted = adapted(torch.tensor(np.asarray(PIXELS))).detach().numpy()
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
  again = load(tmp_path / "base", tmp_path / "adapter", family=mine)
  jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
