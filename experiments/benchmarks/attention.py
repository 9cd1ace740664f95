"""Attention's backends by sequence length: forward and backward pass of one layer of Llama-3.2-1B's heads.

    python -m experiments.benchmarks.attention --out=runs/benchmarks/attention.json

32 query heads of 64 on 8 key heads (on a CPU 8 on 2), a constant number of tokens in a batch. "cudnn" runs where the
platform has it: with the causal mask alone, and with right padding and packed segments, which it gets as a bias.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.measuring import command_of, in_turns, is_accelerator, matmul_peak, record, summary
from peftjax.models import cudnn
from peftjax.models.layers import attention


def rivals(
  rows: int, length: int, heads: int, kv_heads: int, dtype: Any, wanted: set[str]
) -> dict[str, Callable[[], Any]]:
  """Name -> the compiled gradient of one attention call."""
  keys = jax.random.split(jax.random.key(0), 3)
  q, k, v = (
    jax.random.normal(key, (rows, length, count, 64)).astype(dtype)
    for key, count in zip(keys, (heads, kv_heads, kv_heads), strict=True)
  )
  at = jnp.arange(length)
  diagonal = (at[None, :] <= at[:, None])[None, None]
  lengths = length - (np.arange(rows) % 4) * (length // 16)
  padded = diagonal & (at[None] < lengths[:, None])[:, None, None]
  segment = at // max(length // 4, 1)
  packed = jnp.broadcast_to(diagonal & (segment[:, None] == segment[None])[None, None], (rows, 1, length, length))
  cases = {
    "xla": (diagonal, "xla"),
    "heads": (diagonal, "heads"),
    "cudnn, causal": (diagonal, "cudnn"),
    "cudnn, padded": (padded, "cudnn"),
    "cudnn, packed": (packed, "cudnn"),
    "xla, packed": (packed, "xla"),
  }
  has_cudnn = not cudnn.reason(q, k, diagonal, None, None, False)
  found: dict[str, Callable[[], Any]] = {}
  for name, (mask, backend) in cases.items():
    if name not in wanted or (backend == "cudnn" and not has_cudnn):
      continue

    def scored(q: Any, k: Any, v: Any, mask: Any, backend: str = backend) -> Any:
      return attention(q, k, v, mask, backend=backend, causal=True).astype(jnp.float32).sum()

    gradient = jax.jit(jax.grad(scored, argnums=(0, 1, 2)))
    found[name] = lambda gradient=gradient, mask=mask: gradient(q, k, v, mask)
  return found


def main() -> None:
  """Measures."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--lengths", default="")
  parser.add_argument("--tokens", type=int, default=0, help="in a batch")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--out", default="")
  flags = parser.parse_args()
  fast = is_accelerator()
  lengths = [int(one) for one in (flags.lengths or ("128,512,2048,8192" if fast else "128,256,512")).split(",")]
  tokens, dtype = flags.tokens or (16384 if fast else 1024), "bfloat16" if fast else "float32"
  heads, kv_heads = (32, 8) if fast else (8, 2)
  rows = []
  for length in lengths:
    wanted = {"xla", "heads", "cudnn, causal", "cudnn, padded", "cudnn, packed", "xla, packed"}
    if fast and length > 2048:
      wanted -= {"xla", "xla, packed"}  # all heads' weights at once: 32 GiB
    made = rivals(max(tokens // length, 1), length, heads, kv_heads, dtype, wanted)
    for run in made.values():
      jax.block_until_ready(run())
    times = in_turns(made, flags.rounds, 10 if fast else 1)
    flops = 3 * 4 * max(tokens // length, 1) * length**2 / 2 * heads * 64
    row = {"length": length, "rows": max(tokens // length, 1), "flops": flops}
    rows.append(row | {"seconds": {name: summary(values) for name, values in times.items()}})
    found = {"command": command_of("experiments.benchmarks.attention"), "dtype": dtype}
    found |= {"heads": heads, "kv_heads": kv_heads, "head_size": 64, "tokens": tokens, "rows": rows}
    record("attention", found, flags.out)
    print(length, {name: f"{summary(values)['median'] * 1e3:.3f} ms" for name, values in times.items()}, flush=True)
  record("attention", found | {"matmul_flops_per_second": matmul_peak(dtype)}, flags.out)


if __name__ == "__main__":
  main()
