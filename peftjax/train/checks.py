"""Checks of a run's promises: every trainable leaf moves, every frozen leaf stays as it was, bit by bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.masks import Tree, flatten


def check_moved(before: Tree, after: Tree, metrics: Mapping[str, Any]) -> None:
  """Checks that an update moved every leaf whose gradient was not zero.

  Args:
    before, after: the trainable tree.
    metrics: of the update, as `peftjax.train.step` gives them; nothing is checked if it was not finite.

  Raises:
    RuntimeError: a leaf stands still, by name.
  """
  if not metrics["finite"]:
    return
  changed = flatten(_changed(before, after))
  stuck = [name for name, norm in metrics["leaf_norms"].items() if float(norm) > 0 and not bool(changed[name])]
  if stuck:
    raise RuntimeError(f"{len(stuck)} trainable leaves have a gradient and did not move: {', '.join(stuck[:4])}")


@jax.jit
def _changed(before: Tree, after: Tree) -> Tree:
  return jax.tree.map(lambda old, new: jnp.any(old != new), before, after)


def check_unchanged(before: Mapping[str, str], after: Mapping[str, str]) -> None:
  """Compares the fingerprints of the frozen leaves.

  Raises:
    RuntimeError: a leaf changed, by name.
  """
  changed = [name for name, one in after.items() if before[name] != one]
  if changed:
    raise RuntimeError(f"{len(changed)} frozen leaves changed during training: {', '.join(changed[:4])}")
