"""Steps of single methods at BERT-base's layer size, 8 rows of 64 tokens, as compiled. From shapes alone."""

from __future__ import annotations

import functools
from typing import Any

import jax
import pytest

from peftjax import methods
from tests.train.test_cost import step_of

TARGETS = ("query", "value", "intermediate.dense")


@functools.cache
def full_flops() -> float:
  return compiled(methods.Full())[0]


def compiled(method: methods.Method) -> tuple[float, int]:
  """(FLOPs, temporary bytes) of one layer, unrolled, as XLA counts a loop's body once."""
  step, arguments, _ = step_of(method, layers=1, scan=False, accumulate=2)
  found: Any = jax.jit(step, donate_argnums=0).lower(*arguments).compile()
  return found.cost_analysis()["flops"], found.memory_analysis().temp_size_in_bytes


def test_dora_next_to_lora():
  (flops, temp), (lora_flops, lora_temp) = (
    compiled(method(rank=8, targets=TARGETS)) for method in (methods.DoRA, methods.LoRA)
  )
  assert flops <= 1.15 * lora_flops
  assert temp <= lora_temp + 4 * 768 * 3072  # one kernel's worth, over all sites and both passes
  print(f"dora/lora: FLOPs {flops / lora_flops:.3f}, temp {temp / lora_temp:.3f}")


@pytest.mark.parametrize(
  "method",
  [methods.OFT(oft_block_size=32, targets=TARGETS), methods.BOFT(boft_block_size=4, targets=TARGETS),
   methods.HRA(rank=8, targets=TARGETS)],
  ids=lambda method: method.name,
)  # fmt: skip
def test_orthogonal_methods_cost_less_than_full_fine_tuning(method):
  flops = compiled(method)[0]
  print(f"{method.name}/full: FLOPs {flops / full_flops():.3f}")
  assert flops < full_flops()
