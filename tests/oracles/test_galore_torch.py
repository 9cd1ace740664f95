"""GaLore against the paper's algorithm in torch: projected Adam whose projection is renewed every T updates."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from peftjax import config, optim
from peftjax.galore import scale_by_galore

RANK, EVERY, SCALE, RATE, STEPS = 3, 4, 0.25, 1e-2, 10


def torch_run(weight, gradients):
  """The final weight after the paper's updates, one matrix at a time."""
  weight = torch.tensor(weight)
  m = v = 0.0
  for step, gradient in enumerate(map(torch.tensor, gradients)):
    wide = gradient.shape[0] <= gradient.shape[1]
    if step % EVERY == 0:
      u, _, vt = torch.linalg.svd(gradient, full_matrices=False)
      projection = u[:, :RANK] if wide else vt[:RANK].T
    low = projection.T @ gradient if wide else gradient @ projection
    m, v = 0.9 * m + 0.1 * low, 0.999 * v + 0.001 * low**2
    normed = (m / (1 - 0.9 ** (step + 1))) / ((v / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
    weight = weight - RATE * SCALE * (projection @ normed if wide else normed @ projection.T)
  return weight.numpy()


def test_ten_updates_equal_the_algorithm():
  random = np.random.default_rng(0)
  shapes = {"wide": (7, 11), "tall": (11, 5), "stacked": (2, 6, 9), "vector": (13,), "thin": (3, 9)}
  draw = lambda: {name: random.normal(size=shape).astype("f4") for name, shape in shapes.items()}  # noqa: E731
  start, gradients = draw(), [draw() for _ in range(STEPS)]

  transform = optax.chain(scale_by_galore(optax.scale_by_adam(), RANK, EVERY, SCALE, {"layers": 2}), optax.scale(-RATE))
  tree = lambda flat: {"layers": {"kernel": flat["stacked"]}, **{n: flat[n] for n in flat if n != "stacked"}}  # noqa: E731
  params = jax.tree.map(jnp.asarray, tree(start))
  state = transform.init(params)
  step = jax.jit(transform.update)
  for gradient in gradients:
    updates, state = step(tree(gradient), state, params)
    params = optax.apply_updates(params, updates)

  close = lambda found, name, *index: np.testing.assert_allclose(  # noqa: E731
    found, torch_run(start[name][index], [gradient[name][index] for gradient in gradients]), rtol=1e-4, atol=1e-5
  )
  close(params["wide"], "wide")
  close(params["tall"], "tall")
  for layer in range(2):
    close(params["layers"]["kernel"][layer], "stacked", layer)

  plain = optax.chain(optax.scale_by_adam(), optax.scale(-RATE))
  unprojected = {name: jnp.asarray(start[name]) for name in ("vector", "thin")}
  plain_state = plain.init(unprojected)
  for gradient in gradients:
    updates, plain_state = plain.update({name: gradient[name] for name in unprojected}, plain_state)
    unprojected = optax.apply_updates(unprojected, updates)
  for name, value in unprojected.items():
    np.testing.assert_allclose(params[name], value, rtol=1e-5)


def test_state_is_of_low_rank():
  params = {"kernel": jnp.zeros((40, 64)), "bias": jnp.zeros(64)}
  state = scale_by_galore(optax.scale_by_adam(), rank=4).init(params)
  moments = sum(leaf.size for leaf in jax.tree.leaves(state.inner) if leaf.ndim)
  assert moments == 2 * (4 * 64 + 64)
  assert sum(leaf.size for leaf in jax.tree.leaves(state.projections)) == 40 * 4


def test_full_rank_projection_changes_nothing_but_the_scale():
  random = np.random.default_rng(1)
  gradient = {"kernel": jnp.asarray(random.normal(size=(5, 9)), jnp.float32)}
  transform = scale_by_galore(optax.identity(), rank=4, scale=2.0)
  update, _ = transform.update(gradient, transform.init(gradient))
  u, s, vt = np.linalg.svd(gradient["kernel"], full_matrices=False)
  np.testing.assert_allclose(update["kernel"], 2.0 * (u[:, :4] * s[:4]) @ vt[:4], rtol=1e-4, atol=1e-5)


def test_it_is_chosen_by_config():
  settings = config.default().optim
  settings.update({"name": "galore", "learning_rate": 1e-3, "galore_rank": 2})
  params = {"layer": {"kernel": jnp.zeros((6, 9)), "embedding": jnp.zeros((8, 9))}}
  state = optim.make_optimizer(settings, jax.tree.map(lambda _: "full", params), 10).init(params)
  assert optim.optimizer_bytes(state) == 4 * (6 * 2 + 2 * (2 * 9) + 2 * (8 * 9))
