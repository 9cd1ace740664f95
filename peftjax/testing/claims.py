"""More that authors of methods are told: what is done with a method beyond the page's columns, each compared."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax import adapters, masks
from peftjax.errors import UserError
from peftjax.model import Model
from peftjax.models.building import build
from peftjax.parallel.mesh import make_mesh, put_tree
from peftjax.parallel.sharding import layout_of
from peftjax.testing import bases, columns
from peftjax.testing.columns import YES, Subject, able, demand, off_by, outputs, score


def merges(one: Subject) -> str:
  """The merged model's outputs against the model's with the methods beside it."""
  if (answer := able(one, "merge")) != YES:
    return answer
  model = one.moved(0)
  off = off_by(outputs(model.merge(), one.inputs(0)), outputs(model, one.inputs(0)))
  demand(off < 1e-4, f"the merged model's outputs are off by {off:.2g}")
  return YES


def takes_out(one: Subject) -> str:
  """The base's leaves, from the merged model and the adapter."""
  if (answer := able(one, "merge")) != YES:
    return answer
  model = one.moved(0)
  if not model.adapter_paths():
    return "no: it trains the base's own leaves in place"
  with _refusal() as reason:
    found = masks.flatten(adapters.unmerge(model.merge(), adapters.take(model)).params)
    for path, leaf in masks.flatten(one.base.params).items():
      if not model.context.in_head(path):
        demand(np.allclose(found[path], leaf, rtol=1e-4, atol=1e-4), f"{path} does not come back")
  return f"no: {reason[0]}" if reason else YES


def converts(one: Subject) -> str:
  """Outputs of its LoRA of full rank against its own."""
  if (answer := able(one, "convert")) != YES:
    return answer
  with _refusal() as reason:
    off = off_by(outputs(adapters.to_lora(one.moved(0), energy=1.0).model, one.inputs(0)),
               outputs(one.moved(0), one.inputs(0)))  # fmt: skip
    demand(off < 1e-3, f"its LoRA of full rank is off by {off:.2g}")
  return f"no: {reason[0]}" if reason else YES


def combines(one: Subject) -> str:
  """Half of itself and half of itself, in the base's weights, is itself."""
  if (answer := able(one, "combine")) != YES:
    return answer
  with _refusal() as reason:
    twice = adapters.combine([one.moved(0)] * 2, (0.5, 0.5), "svd", into="base")
    off = off_by(outputs(twice, one.inputs(0)), outputs(one.moved(0), one.inputs(0)))
    demand(off < 1e-3, f"half and half of it is off by {off:.2g}")
  return f"no: {reason[0]}" if reason else YES


def mixes(one: Subject) -> str:
  """A batch in which every example names its adapter: each row is what that adapter gives alone."""
  if (answer := able(one, "mixed_batch")) != YES:
    return answer
  with _refusal() as reason:
    models = [one.moved(0), one.moved(1)]
    inputs = one.inputs(0)
    ids = jnp.arange(next(iter(inputs.values())).shape[0]) % 3 - 1
    together = adapters.mixed(one.base, [adapters.take(model) for model in models])
    found = outputs(together, inputs, adapter_ids=ids)
    alone = [outputs(model, inputs) for model in (*models, one.base)]
    for row, number in enumerate(ids):
      for name, leaf in found.items():
        wanted = alone[int(number)][name]
        same = leaf.ndim == 0 or leaf.shape != wanted.shape or np.allclose(leaf[row], wanted[row], rtol=1e-4, atol=1e-4)
        demand(same, f"row {row} of a batch of several adapters is not what its own gives alone ({name})")
  return f"no: {reason[0]}" if reason else YES


def stacked_as_unrolled(one: Subject) -> str:
  """Outputs of layers that are stored stacked and scanned against those of one subtree a layer."""
  if not one.fresh.layer_stacks:
    return "no: the model's layers are not stacked, or it treats them differently"
  off = off_by(outputs(one.moved(0).unrolled(), one.inputs(0)), outputs(one.moved(0), one.inputs(0)))
  demand(off < 1e-5, f"unrolled layers are off by {off:.2g}")
  key = jax.random.key(3)
  apart = masks.flatten(one.base.unrolled().add(one.method, key).params)
  whole = masks.flatten(one.fresh.unrolled().params)
  for path in one.fresh.unrolled().adapter_paths():
    demand(np.allclose(apart[path], whole[path], rtol=1e-5, atol=1e-6), f"{path} depends on how layers are stored")
  return YES


def with_remat(one: Subject) -> str:
  """Gradients with the backward pass recomputing every layer, against those without."""
  model = one.moved(0)
  runtime = dataclasses.replace(model.runtime, remat="full")
  module, *_ = build(model.family, model.architecture, model.config, runtime)

  def gradient(model: Model) -> Any:
    parts = masks.partition(model.params, model.labels())
    function = jax.jit(jax.grad(lambda own, rest: score(model.forward(masks.combine(own, rest), one.inputs(0)))))
    return masks.flatten(function(*parts))

  plain, again = (gradient(each) for each in (model, dataclasses.replace(model, module=module, runtime=runtime)))
  for path, leaf in plain.items():
    demand(np.allclose(again[path], leaf, rtol=1e-4, atol=1e-6), f"the gradient of {path} is another with remat")
  return YES


def drops_out(one: Subject) -> str:
  """With a key the method's dropout acts, the same way for the same key; without one it does not."""
  names = [field.name for field in dataclasses.fields(one.method) if field.name.endswith("dropout")]
  inputs, key = one.inputs(0), jax.random.key(5)
  if not names:
    same = off_by(outputs(one.moved(0), inputs, rng=key), outputs(one.moved(0), inputs))
    demand(same < 1e-5, "a key for dropout changes the outputs, and the method has no dropout")
    return "none"
  with _refusal() as reason:
    rate: dict[str, Any] = {names[0]: 0.5}
    changed = Subject(dataclasses.replace(one.method, **rate), one.base, one.inputs)
    model = changed.moved(0)
    plain = outputs(one.moved(0), inputs)
    demand(off_by(outputs(model, inputs), plain) < 1e-5, f"{names[0]} acts without a key")
    first, again, other = (outputs(model, inputs, rng=each) for each in (key, key, jax.random.key(6)))
    demand(off_by(first, again) == 0.0, f"{names[0]} draws otherwise from the same key")
    demand(off_by(first, plain) > 0.0 and off_by(first, other) > 0.0, f"{names[0]}=0.5 does nothing in training")
  return f"no: {reason[0]}" if reason else YES


def in_bfloat16(one: Subject) -> str:
  """Outputs over a base in bfloat16, relative to those in float32; the method's leaves are float32."""
  base = one.base
  runtime = dataclasses.replace(base.runtime, dtype=jnp.bfloat16)
  module, _, sites, stacks = build(base.family, base.architecture, base.config, runtime)
  halved = dataclasses.replace(
    base,
    module=module,
    sites=sites,
    stacks=stacks,
    runtime=runtime,
    params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), base.params),
  )
  model = halved.add(one.method, jax.random.key(3))
  flat = masks.flatten(model.params)
  own = {path: leaf for path, leaf in masks.flatten(one.moved(0).params).items() if path in model.adapter_paths()}
  floats = [path for path in own if jnp.issubdtype(flat[path].dtype, jnp.floating)]
  short = [path for path in floats if flat[path].dtype != jnp.float32]
  demand(not short, f"{short[:3]} are not float32")
  found = outputs(bases.replaced(model, own), one.inputs(0))
  demand(all(np.isfinite(leaf).all() for leaf in found.values()), "outputs are not finite over a base in bfloat16")
  plain, rounded = outputs(base, one.inputs(0)), outputs(halved, one.inputs(0))
  floor = off_by(rounded, plain)
  wanted = outputs(bases.replaced(one.base.add(one.method, jax.random.key(3)), own), one.inputs(0))
  off = off_by(found, wanted)
  demand(off < 0.05 + 4.0 * floor, f"over a base in bfloat16 outputs are off by {off:.2g}, the base's by {floor:.2g}")
  return f"off by {off:.0e}, the base by {floor:.0e}"


def over_quantized(one: Subject) -> str:
  """Outputs over int8 kernels against those over the arrays that they stand for."""
  with _refusal() as reason:
    codes = one.base.quantized("int8")
    model = codes.add(one.method, jax.random.key(3))
    floats = codes.dequantized().add(one.method, jax.random.key(3))
    noise = bases.noise_on(bases.trainable(model), scale=0.05)
    off = off_by(*(outputs(bases.replaced(each, noise), one.inputs(0)) for each in (model, floats)))
    demand(off < 1e-4, f"over a quantised base the outputs are off by {off:.2g}")
  return f"no: {reason[0].partition(':')[0]}" if reason else YES


def on_a_mesh(one: Subject) -> str:
  """The axes by which its leaves are split on a mesh, where they have names; the outputs there are the same."""
  model = one.moved(0)
  layout = layout_of(model, make_mesh({"data": -1, "fsdp": 1, "tensor": 1, "sequence": 1}))
  found: dict[str, set[str]] = {}
  flat = masks.flatten(model.params)
  for path in sorted(model.adapter_paths()):
    axes = layout.axes.get(path, ())
    demand(not axes or len(axes) == len(flat[path].shape), f"{path} has {len(axes)} names of axes")
    found.setdefault(path.rpartition(".")[2], set()).update(axis for axis in axes if axis)
  there = model.with_params(put_tree(model.params, layout.shardings(model.params)))
  off = off_by(outputs(there, one.inputs(0)), outputs(model, one.inputs(0)))
  demand(off < 1e-5, f"on a mesh the outputs are off by {off:.2g}")
  return " ".join(f"`{tail}` {' '.join(sorted(axes)) or '-'}" for tail, axes in sorted(found.items())) or "the base's"


@contextlib.contextmanager
def _refusal() -> Iterator[list[str]]:
  """Collects the line by which something is refused."""
  reason: list[str] = []
  try:
    yield reason
  except UserError as error:
    reason.append(str(error))


COLUMNS: dict[str, Callable[[Subject], str]] = {
  "starts as the base": columns.starts_as_base,
  "trains": columns.trains,
  "FLOPs": columns.flops,
  "merge": merges,
  "unmerge": takes_out,
  "convert": converts,
  "combine": combines,
  "mixed batch": mixes,
  "sweep": columns.in_a_sweep,
  "resume": columns.resumes,
  "stacked = unrolled": stacked_as_unrolled,
  "remat": with_remat,
  "dropout": drops_out,
  "bfloat16 base": in_bfloat16,
  "int8 base": over_quantized,
  "axes on a mesh": on_a_mesh,
  "PEFT out": columns.to_peft,
  "PEFT in": columns.from_peft,
}
"""All that `check_method` asks, in its order."""
