"""AdamW, SGD with momentum and clipping against torch's own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from peftjax import config as config_lib
from peftjax import optim


def loss_jax(params, x):
  hidden = jnp.tanh(x @ params["a"]["kernel"] + params["a"]["bias"])
  return ((hidden @ params["b"]["kernel"]) ** 2).mean() * 30


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_ten_updates_equal_torch(name):
  random = np.random.default_rng(0)
  values = {
    "a": {"kernel": random.normal(size=(5, 7)).astype("f4"), "bias": random.normal(size=(7,)).astype("f4")},
    "b": {"kernel": random.normal(size=(7, 3)).astype("f4")},
  }
  batches = random.normal(size=(10, 4, 5)).astype("f4")
  decay = 0.1 if name == "adamw" else 0.0  # torch's SGD adds its decay to the gradient; here it is decoupled
  config = config_lib.default().optim
  config.update({"name": name, "learning_rate": 1e-2, "schedule": "constant", "warmup": 0.0, "weight_decay": decay})
  config.update({"clip_norm": 0.7, "momentum": 0.9})

  transform = optim.make_optimizer(config, jax.tree.map(lambda _: "all", values), 10)
  params = jax.tree.map(jnp.asarray, values)
  state = transform.init(params)
  for x in batches:
    updates, state = transform.update(jax.grad(loss_jax)(params, x), state, params)
    params = optax.apply_updates(params, updates)

  a, bias, b = (
    torch.tensor(value.copy(), requires_grad=True)
    for value in (values["a"]["kernel"], values["a"]["bias"], values["b"]["kernel"])
  )
  groups = [{"params": [a, b], "weight_decay": decay}, {"params": [bias], "weight_decay": 0.0}]
  optimizer = torch.optim.AdamW(groups, lr=1e-2) if name == "adamw" else torch.optim.SGD(groups, lr=1e-2, momentum=0.9)
  for x in batches:
    optimizer.zero_grad()
    loss = ((torch.tanh(torch.tensor(x) @ a + bias) @ b) ** 2).mean() * 30
    loss.backward()
    torch.nn.utils.clip_grad_norm_([a, bias, b], 0.7)
    optimizer.step()
  for mine, theirs in [(params["a"]["kernel"], a), (params["a"]["bias"], bias), (params["b"]["kernel"], b)]:
    np.testing.assert_allclose(mine, theirs.detach().numpy(), rtol=1e-6, atol=2e-6)
