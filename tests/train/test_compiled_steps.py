"""What is exact of the compiled training steps: FLOPs, bytes, compilations, donated arguments, transposed copies.

The models are the benchmarks' tiny ones, with a wide middle, so that an array's size says what it is.
"""

from __future__ import annotations

import copy
import dataclasses
import functools

import jax
import numpy as np
import pytest

from experiments.benchmarks.ours import Ours
from experiments.benchmarks.shapes import find
from peftjax import optim
from peftjax.parallel.mesh import put_batch
from peftjax.train.loop import make_run
from tests.train.copies import transposed_copies

SHAPES = ("tiny-bert", "tiny-gpt2", "tiny-llama", "tiny-t5", "tiny-vit", "tiny-whisper")
WIDE = 528  # and no other array is of so many elements a token
_MIDDLE = {"gpt2": ("n_inner",), "t5": ("d_ff",), "whisper": ("encoder_ffn_dim", "decoder_ffn_dim")}


@functools.cache
def compiled(name: str, method: str) -> Ours:
  """The compiled step; LoRA stands on all linear modules of the layers."""
  shape = find(name)
  middle = _MIDDLE.get(str(shape.hf_config["model_type"]), ("intermediate_size",))
  shape = dataclasses.replace(shape, hf_config={**shape.hf_config, **dict.fromkeys(middle, WIDE)})
  settings = {"name": "lora", "rank": 3, "targets": shape.targets_of_lora} if method == "lora" else {"name": method}
  ours = Ours(shape, settings, "float32", attention="xla")
  ours.compile()
  return ours


def slow_but(quick, names):
  return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", SHAPES)
def test_lora_copies_no_wide_array_transposed(name):
  """Neither a layer's wide activations nor their gradients."""
  check_copies(compiled(name, "lora"))


@pytest.mark.parametrize("name", slow_but(["tiny-llama"], SHAPES))
def test_full_fine_tuning_copies_no_wide_array_transposed(name):
  check_copies(compiled(name, "full"))


def check_copies(ours):
  wide = {ours.shape.rows * tokens * WIDE for tokens in (ours.shape.length, ours.shape.targets) if tokens}
  assert wide.isdisjoint(transposed_copies(ours.text()).values())


@pytest.mark.parametrize("name", slow_but(["tiny-llama"], SHAPES))
def test_lora_takes_fewer_flops_and_bytes_than_full_fine_tuning(name):
  lora, full = (compiled(name, method).cost for method in ("lora", "full"))
  assert lora.flops <= 0.80 * full.flops
  assert lora.temp_bytes <= full.temp_bytes


@pytest.mark.parametrize("name", slow_but(["tiny-llama"], SHAPES))
def test_state_is_donated(name):
  ours = compiled(name, "lora")
  ours.start()
  given = jax.tree.leaves(ours._state)
  for _ in range(2):
    ours.run()
  assert all(leaf.is_deleted() for leaf in given)
  assert "input_output_alias" in ours.text()


def test_another_rate_warm_up_number_of_updates_or_seed_is_the_same_program(config, tmp_path):
  def programs(**changes):
    changed = copy.deepcopy(config)
    for name, value in changes.items():
      changed.update_from_flattened_dict({name.replace("__", "."): value})
    run = make_run(changed)
    state = run.start()
    batch = put_batch(run.mesh, next(run.loaders.train))
    return jax.jit(run.step()).lower(state, run.frozen, batch).as_text(), state

  text, state = programs()
  other, moved = programs(train__steps=31, optim__learning_rate=3e-4, optim__warmup=0.2, seed=5)
  assert text == other
  groups = [
    next(iter(one.values())) for one in (optim._rate_states(state.opt_state), optim._rate_states(moved.opt_state))
  ]
  assert [(float(np.float32(one.peak)), int(one.rising), int(one.falling)) for one in groups] == [
    (float(np.float32(2e-2)), 1, 11), (float(np.float32(3e-4)), 6, 25)
  ]  # fmt: skip
  assert programs(optim__schedule="cosine")[0] != text
