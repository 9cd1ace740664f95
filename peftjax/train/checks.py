"""Checks of a run's promises: every trainable leaf moves, every frozen leaf stays as it was, bit by bit."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from peftjax.masks import Tree, flatten, unflatten

log = logging.getLogger(__name__)


def check_moved(before: Tree, after: Tree, metrics: Mapping[str, Any], optimizer: optax.GradientTransformation) -> None:
  """Checks that an update moved every leaf whose gradient was not zero, as far as float32 can tell; that none had a
  gradient is logged.

  A leaf may stand still where the update of a gradient of its size is lost in rounding: norms of 1 do not move by less
  than 6e-8, which a long warm-up begins below.

  Args:
    before, after: the trainable tree.
    metrics: of the update, as `peftjax.train.step` gives them; nothing is checked if it was not finite.
    optimizer: over the trainable tree.

  Raises:
    RuntimeError: a leaf stands still, by name.
  """
  if not metrics["finite"]:
    return
  if metrics["leaf_norms"] and not any(float(norm) > 0 for norm in metrics["leaf_norms"].values()):
    log.warning(
      "in the first update no leaf that trains had a gradient: %s; if the batch says nothing of them, later ones may, "
      "and if the loss does not depend on them, nothing is trained",
      _some(metrics["leaf_norms"]),
    )
  changed = flatten(_differs(before, after))
  still = [name for name, norm in metrics["leaf_norms"].items() if float(norm) > 0 and not bool(changed[name])]
  if not still:
    return
  norms = unflatten(dict(metrics["leaf_norms"]))
  lost = flatten(jax.jit(lambda leaves, norms: _lost(leaves, norms, optimizer))(before, norms))
  stuck = [name for name in still if not bool(lost[name])]
  if stuck:
    raise RuntimeError(f"{len(stuck)} trainable leaves have a gradient and did not move: {_some(stuck)}")


def _some(names: Iterable[str]) -> str:
  first = list(names)
  return ", ".join(first[:4]) + (f" and {len(first) - 4} more" if len(first) > 4 else "")


@jax.jit
def _differs(before: Tree, after: Tree) -> Tree:
  return jax.tree.map(lambda old, new: jnp.any(old != new), before, after)


def _lost(leaves: Tree, norms: Tree, optimizer: optax.GradientTransformation) -> Tree:
  """Whether the optimizer updates a leaf, by a gradient of that norm in equal parts, and rounding keeps an element."""
  grads = jax.tree.map(lambda leaf, norm: jnp.full_like(leaf, norm * leaf.size**-0.5), leaves, norms)
  updating = optax.with_extra_args_support(optimizer)
  updates, _ = updating.update(grads, optimizer.init(leaves), leaves, value=jnp.float32(0))
  moved = optax.apply_updates(leaves, updates)
  return jax.tree.map(lambda u, old, new: jnp.any(u != 0) & jnp.any(old == new), updates, leaves, moved)


def check_unchanged(before: Mapping[str, str], after: Mapping[str, str]) -> None:
  """Compares the fingerprints of the frozen leaves.

  Raises:
    RuntimeError: a leaf changed, by name.
  """
  changed = [name for name, one in after.items() if before[name] != one]
  if changed:
    raise RuntimeError(f"{len(changed)} frozen leaves changed during training: {', '.join(changed[:4])}")
