"""What training did to the matrices: the effective rank of each change, and intruder dimensions.

Effective rank (Roy & Vetterli 2007, "The effective rank: a measure of effective dimensionality", EUSIPCO), of the
change ΔW of a matrix with singular values σᵢ:

    erank(ΔW) = exp(-Σ pᵢ log pᵢ),   pᵢ = σᵢ / Σ σⱼ

It is between 1 and the rank: a LoRA of rank 8 has at most 8, full fine-tuning up to the smaller side of the matrix.

Intruder dimensions (Shuttleworth et al. 2024, "LoRA vs full fine-tuning: an illusion of equivalence", arXiv 2410.21228,
Algorithm 1): of the first k left singular vectors of the tuned matrix W + ΔW those that resemble no left singular
vector of the pretrained W, max_i |cos(u_j, v_i)| < ε. "Left" is the side of the outputs: the paper's W is [out, in].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from peftjax import adapters, masks
from peftjax.quantize_model import dequantize_leaves

if TYPE_CHECKING:
  from peftjax.model import Model

TOP = 10  # k: as in the paper's experiments
EPSILON = 0.5  # the middle of the values that the paper shows
_SMALLEST = 1e-7  # of a matrix's largest singular value: below it there is only rounding


def effective_rank(change: np.ndarray) -> float:
  """exp of the entropy of a change's normalised singular values; ``change [in, out]``; 0 for no change at all."""
  values = _singular_values(change)
  if not values.size:
    return 0.0
  shares = values / values.sum()
  return float(np.exp(-(shares * np.log(shares)).sum()))


def intruders(before: np.ndarray, change: np.ndarray, top: int = TOP, epsilon: float = EPSILON) -> int:
  """How many of the first `top` singular vectors of ``before + change [in, out]``, on the side of the outputs, are new.

  A vector is new where its cosine with every singular vector of `before` is below `epsilon`; singular vectors have no
  sign, so the cosine's is left out.
  """
  known = _output_vectors(before)
  tuned = _output_vectors(before.astype(np.float64) + change)[:, :top]
  return int((np.abs(known.T @ tuned).max(axis=0, initial=0.0) < epsilon).sum())


def changes(base: Model, tuned: Model) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
  """(module, its kernel before [in, out], its change) in float32, of each linear module outside the head that changed.

  Args:
    base: without an adapter.
    tuned: the same base after training, with its adapter beside it or without one.

  Raises:
    UserError: the method is no change of the base's weights.
  """
  added = adapters.deltas(tuned) if tuned.bound else {}
  before, after = _kernels(base, {}), _kernels(tuned, added)
  for name, kernel in before.items():
    change = after[name] - kernel.astype(np.float64)
    if change.any():
      yield name, kernel, change.astype(np.float32)


def diagnose(base: Model, tuned: Model) -> dict[str, Any]:
  """Effective rank and intruder dimensions of every matrix that training changed.

  Returns:
    "top" (k), "epsilon"; "matrices": {"name", "side" (the smaller one, above which no rank goes), "effective_rank",
    "relative_norm" (‖ΔW‖ / ‖W‖), "intruders"}; "effective_rank", their mean; "relative_norm", their mean; "intruders",
    their sum.

  Raises:
    UserError: the method is no change of the base's weights.
  """
  rows = []
  for name, before, change in changes(base, tuned):
    norm = float(np.linalg.norm(before))
    rows.append(
      {
        "name": name,
        "side": min(before.shape),
        "effective_rank": round(effective_rank(change), 4),
        "relative_norm": float(f"{np.linalg.norm(change) / norm:.4g}") if norm else None,
        "intruders": intruders(before, change),
      }
    )
  norms = [row["relative_norm"] for row in rows if row["relative_norm"] is not None]
  return {
    "top": TOP,
    "epsilon": EPSILON,
    "matrices": rows,
    "effective_rank": float(np.mean([row["effective_rank"] for row in rows])) if rows else 0.0,
    "relative_norm": float(np.mean(norms)) if norms else 0.0,
    "intruders": sum(row["intruders"] for row in rows),
  }


def _kernels(model: Model, added: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """{module: kernel [in, out]} of the linear modules outside the head, one for each layer, with changes added."""
  flat = masks.flatten(dequantize_leaves(model.params, jnp.float32))
  found: dict[str, np.ndarray] = {}
  for site in model.sites:
    path = site.leaf("kernel")
    if site.kind != "linear" or path not in flat or model.context.in_head(path):
      continue
    whole = np.asarray(flat[path], np.float64)
    if path in added:
      whole = whole + np.asarray(added[path], np.float64)
    if site.places:
      whole = np.asarray(site.folded({"kernel": jnp.asarray(whole, jnp.float32)})["kernel"], np.float64)
    layers = whole.reshape(-1, *whole.shape[len(site.stack) :])
    found |= {name: layer for name, layer in zip(site.names, layers) if layer.ndim == 2}
  return found


def _singular_values(matrix: np.ndarray) -> np.ndarray:
  """Those that are more than rounding, from the Gram matrix of the smaller side in float64."""
  matrix = matrix.astype(np.float64)
  gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
  values = np.sqrt(np.clip(np.linalg.eigvalsh(gram), 0.0, None))
  return values[values > _SMALLEST * values.max(initial=0.0)]


def _output_vectors(kernel: np.ndarray) -> np.ndarray:
  """Singular vectors [out, n] of a kernel [in, out] on the side of its outputs, the largest singular value first."""
  kernel = kernel.astype(np.float64)
  if kernel.shape[1] <= kernel.shape[0]:
    return np.linalg.eigh(kernel.T @ kernel)[1][:, ::-1]
  squares, inputs = np.linalg.eigh(kernel @ kernel.T)
  values = np.sqrt(np.clip(squares, 0.0, None))[::-1]
  keep = values > _SMALLEST * values.max(initial=0.0)
  return (kernel.T @ inputs[:, ::-1][:, keep]) / values[keep]
