"""What a PEFT step of an encoder of BERT-base's shape costs against full fine-tuning's. From shapes alone."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest

from peftjax import config as config_lib
from peftjax import loading, masks, methods, optim, tasks
from peftjax.models.layers import Runtime
from peftjax.train.flops import count_flops
from peftjax.train.run import group_rates
from peftjax.train.state import init_state
from peftjax.train.step import make_loss, make_train_step

BERT_BASE = {"model_type": "bert", "architectures": ["BertModel"], "vocab_size": 1000}


def step_of(method, layers, scan, accumulate=2):
  """(step, its arguments as shapes, optimizer state's shapes, trainable shapes); the norm is logged, clipping is on."""
  model = loading.from_config(
    {**BERT_BASE, "num_hidden_layers": layers},
    task="text_classification",
    num_labels=2,
    runtime=Runtime(scan_layers=scan),
  )
  model = model.add(method)
  labels = model.labels()
  trainable, frozen = masks.partition(model.params, labels)
  config = config_lib.default().optim
  assert config.clip_norm > 0
  groups = masks.partition(labels, labels)[0]
  optimizer = optim.make_optimizer(config, groups, 10, group_rates(model), stacks=model.stacks)
  task = tasks.make("text_classification", ("a", "b"))
  step = make_train_step(make_loss(model.forward, task), optimizer, accumulate)
  state = jax.eval_shape(functools.partial(init_state, optimizer=optimizer, seed=0), trainable)
  rows, length = 4 * accumulate, 64
  batch = {name: jax.ShapeDtypeStruct((rows, length), jnp.int32) for name in ("input_ids", "attention_mask")}
  batch |= {name: jax.ShapeDtypeStruct((rows,), jnp.int32) for name in ("labels", "index")}
  batch["weight"] = jax.ShapeDtypeStruct((rows,), jnp.float32)
  return step, (state, frozen, batch), trainable


LORA = methods.LoRA(rank=8, targets=("query", "value"))


def test_compiled_flops_of_lora_against_full():
  """XLA's count, which takes a loop's body once: layers are unrolled, and of the micro-batches it sees one in both."""
  cost = {}
  for name, method in {"lora": LORA, "full": methods.Full()}.items():
    step, arguments, _ = step_of(method, layers=2, scan=False)
    compiled = jax.jit(step, donate_argnums=0).lower(*arguments).compile()
    cost[name] = compiled.cost_analysis()["flops"]
  assert cost["lora"] <= 0.70 * cost["full"]


@pytest.mark.parametrize("accumulate", [1, 4])
def test_traced_flops_of_all_12_layers(accumulate):
  cost = {}
  for name, method in {"lora": LORA, "full": methods.Full()}.items():
    step, arguments, _ = step_of(method, layers=12, scan=True, accumulate=accumulate)
    cost[name] = count_flops(step, *arguments)
  tokens = 4 * accumulate * 64
  matrices = 12 * (4 * 768 * 768 + 2 * 768 * 3072)
  assert cost["full"] == pytest.approx(6 * tokens * matrices, rel=0.05)
  assert cost["lora"] <= 0.70 * cost["full"]


@pytest.mark.parametrize("method", [LORA, methods.IA3(), methods.BitFit(), methods.Head()])
def test_state_is_that_of_the_trainable_leaves(method):
  _, (state, _, _), trainable = step_of(method, layers=2, scan=True)
  assert optim.optimizer_bytes(state.opt_state) == 2 * masks.count(trainable).bytes
  moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape]
  assert sorted(leaf.shape for leaf in moments) == sorted(2 * [leaf.shape for leaf in jax.tree.leaves(trainable)])
