"""What every method can do: one row a method, each cell computed, not claimed.

python -m tests.methods.matrix [METHOD ...]        writes docs/methods.md, or these rows of it, anew

A cell is "yes" or a figure where the thing was done and came out right, and otherwise the reason why not, as the user
would read it. `test_matrix.py` computes every row again and compares it with the page.
"""

from __future__ import annotations

import functools
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from peftjax import masks, methods, tasks
from peftjax.adapters import abilities
from peftjax.errors import UserError
from peftjax.loading import from_config, load
from peftjax.model import Model
from peftjax.train.checkpoint import Base, Checkpoints
from peftjax.train.flops import count_flops
from peftjax.train.state import TrainState, init_state
from peftjax.train.step import make_loss, make_train_step
from tests.methods import tiny

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"
COLUMNS = (
  "starts as the base", "trains", "FLOPs", "merge", "convert", "combine", "mixed batch", "sweep", "resume", "PEFT out",
  "PEFT in",
)  # fmt: skip
YES = "yes"

SETTINGS: dict[str, dict[str, Any]] = {  # on the tiny encoder; a method that is not named has none
  "last_k": {"k": 1},
  "patterns": {"train": ("query",)},
  "lora": {"rank": 3, "alpha": 5.0},
  "dora": {"rank": 3, "alpha": 5.0},
  "adalora": {"init_r": 3, "target_r": 2},
  "vera": {"rank": 3},
  "fourierft": {"n_frequency": 7},
  "vblora": {"rank": 3, "num_vectors": 5, "vector_length": 4},
  "loha": {"rank": 2},
  "lokr": {"rank": 2},
  "oft": {"oft_block_size": 4},
  "boft": {"boft_block_size": 4},
  "miss": {"rank": 3},
  "hra": {"rank": 4},
  "randlora": {"rank": 3, "alpha": 4.0},
  "shira": {"rank": 3},
  "c3a": {"block_size": 4},
  "hira": {"rank": 3},
  "gralora": {"rank": 4, "gralora_k": 2},
  "road": {"group_size": 4},
  "delora": {"rank": 3},
  "houlsby": {"bottleneck_dim": 5},
  "pfeiffer": {"bottleneck_dim": 5},
  "parallel_adapter": {"bottleneck_dim": 5},
  "compacter": {"bottleneck_dim": 6, "phm_dim": 3},
  "adapter_plus": {"bottleneck_dim": 5},
  "reft": {"rank": 2},
  "prompt": {"num_virtual_tokens": 4},
  "p_tuning": {"num_virtual_tokens": 4, "encoder_hidden_size": 5},
  "prefix": {"num_virtual_tokens": 4},
  "p_tuning_v2": {"num_virtual_tokens": 4},
  "llama_adapter": {"num_virtual_tokens": 4},
  "trainable_tokens": {"token_indices": (30, 11, 5, 17)},
  "mam": {"num_virtual_tokens": 4, "bottleneck_dim": 5},
  "unipelt": {"rank": 2, "num_virtual_tokens": 4, "bottleneck_dim": 5},
  "hybrid": {"methods": ("bitfit", "lora")},
}
WIDE: dict[str, dict[str, Any]] = {  # where FLOPs are counted: the method's defaults but for these
  name: SETTINGS[name] for name in ("last_k", "patterns", "trainable_tokens", "hybrid")
}
START: dict[str, str] = {  # why a method does not start as the base
  "prompt": "virtual tokens are attended to from the start",
  "p_tuning": "virtual tokens are attended to from the start",
  "prefix": "virtual tokens are attended to from the start",
  "p_tuning_v2": "virtual tokens are attended to from the start",
  "mam": "its prefix is attended to from the start",
  "unipelt": "its prefix is attended to from the start",
  "fourierft": "published with coefficients drawn at random; init=zeros starts as the base",
  "vblora": "published with a vector bank drawn at random",
  "c3a": "published with kernels drawn at random; init=zeros starts as the base",
}
NAMES = sorted(methods.METHODS)


def make(name: str, settings: dict[str, Any]) -> methods.Method:
  """The method with settings as a config gives them."""
  if name == "hybrid":
    return methods.Hybrid(methods=(methods.BitFit(), methods.LoRA(rank=2)))
  return methods.METHODS[name](**settings)


@functools.cache
def base() -> Model:
  return tiny.encoder()


@functools.cache
def added(name: str, seed: int) -> Model:
  """The tiny encoder with the method's fresh leaves; those that train moved a little, as after some training."""
  model = base().add(make(name, SETTINGS.get(name, {})), jax.random.key(seed))
  return tiny.replaced(model, tiny.noise_on(tiny.trainable(model), seed=seed + 1, scale=0.05))


def batch(seed: int) -> dict[str, jax.Array]:
  random = np.random.default_rng(seed)
  labels = {"labels": random.integers(tiny.LABELS, size=3), "weight": np.ones(3, np.float32), "index": np.arange(3)}
  return tiny.batch(seed) | {key: jnp.asarray(value) for key, value in labels.items()}


# Cells ------------------------------------------------------------------------------------------------------------


def starts_as_base(name: str) -> str:
  """Whether outputs with fresh leaves are the base's."""
  fresh = base().add(make(name, SETTINGS.get(name, {})), jax.random.key(3))
  ours, plain = (model(**tiny.batch())["logits"] for model in (fresh, base()))
  if np.array_equal(ours, plain):
    return "bitwise"
  if np.allclose(ours, plain, rtol=1e-5, atol=1e-5):
    return "to rounding"
  return f"no: {START[name]}"


def trained_leaves(name: str, state: TrainState, moved: TrainState, norms: dict[str, Any]) -> str:
  """The names of the leaves that train outside the head; each with a gradient has moved, and is the method's own."""
  model = added(name, 0)
  before, after = masks.flatten(state.trainable), masks.flatten(moved.trainable)
  live = {path for path, norm in norms.items() if norm > 1e-6}  # a key's bias has none: softmax does not see it
  stuck = [path for path in before if path in live and np.array_equal(before[path], after[path])]
  assert not stuck, f"{name}: {stuck} did not move"
  own = {path for path in before if not model.context.in_head(path)}
  adds = model.adapter_paths()
  if adds:
    foreign = own - adds
    assert not foreign or name in ("hybrid",), f"{name}: {foreign} train and are not its leaves"
    tails = sorted({path.rpartition(".")[2] for path in own & adds})
    return " ".join(f"`{tail}`" for tail in tails) + (" and the base's biases" if foreign else "")
  return "the head alone" if not own else f"{len(own)} of the base's leaves"


def flops(name: str) -> str:
  """FLOPs of a step's gradient over those of full fine-tuning: two of BERT-base's layers, 8 x 64 tokens."""
  return f"{_flops(name) / _flops('full'):.2f}"


@functools.cache
def _flops(name: str) -> int:
  config = tiny.config(hidden_size=768, num_attention_heads=12, intermediate_size=3072, max_position_embeddings=128)
  model = from_config(config, task="text_classification").add(make(name, WIDE.get(name, {})), jax.random.key(0))
  inputs = {key: jax.ShapeDtypeStruct((8, 64), jnp.int32) for key in ("input_ids", "attention_mask")}

  def gradient(flat: Any, rest: Any, inputs: Any) -> Any:
    return jax.grad(lambda leaves: jnp.sum(model.forward(masks.unflatten({**rest, **leaves}), inputs)["logits"]))(flat)

  return count_flops(gradient, tiny.trainable(model), tiny.rest_of(model), inputs)


def able(name: str, ability: str) -> str:
  """What the code answers, and its errors say; `tests/adapters` does each thing with every method and checks it."""
  answer = abilities.can(make(name, SETTINGS.get(name, {})), ability)
  return YES if answer is True else f"no: {str(answer).replace(name, 'it', 1)}"


def in_a_sweep(name: str, single: Any, optimizer: optax.GradientTransformation) -> str:
  """Two runs in one vmapped step over one base: each ends where it ends alone."""
  states, frozen = zip(*(start(added(name, seed), optimizer) for seed in (0, 1)))
  flat = [masks.flatten(tree) for tree in frozen]
  own = {path for path in flat[0] if not np.array_equal(flat[0][path], flat[1][path])}
  assert own <= added(name, 0).adapter_paths()
  joint = {path: jnp.stack([flat[0][path], flat[1][path]]) if path in own else leaf for path, leaf in flat[0].items()}
  axes = masks.unflatten({path: 0 if path in own else None for path in joint})
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
  batches = jax.tree.map(lambda *leaves: jnp.stack(leaves), batch(0), batch(1))
  step = jax.jit(jax.vmap(step_of(added(name, 0), optimizer), in_axes=(0, axes, 0)))
  together, _ = step(stacked, masks.unflatten(joint), batches)
  for index, (state, rest) in enumerate(zip(states, frozen)):
    alone, _ = single(state, rest, batch(index))
    for path, leaf in masks.flatten(alone.trainable).items():
      ours = masks.flatten(together.trainable)[path][index]
      np.testing.assert_allclose(ours, leaf, rtol=1e-4, atol=1e-5, err_msg=f"{name} {path}")
  return YES


def resumes(single: Any, state: TrainState, frozen: masks.Tree) -> str:
  """Saved after a step, restored and taken a step further: bit for bit the state that nobody saved."""
  unbroken, _ = single(state, frozen, batch(2))
  with tempfile.TemporaryDirectory() as folder, Checkpoints(Path(folder)) as checkpoints:
    checkpoints.save(state, {"step": 1}, Base("tiny", "0"))
    checkpoints.wait()
    found = checkpoints.restore(jax.tree.map(jnp.zeros_like, state), Base("tiny", "0"))
    assert found is not None
    resumed, _ = single(found[0], frozen, batch(2))
  jax.tree.map(np.testing.assert_array_equal, resumed, unbroken)
  return YES


def to_and_from_peft(name: str) -> tuple[str, str]:
  """Saved in Hugging Face PEFT's format, and read again: the same leaves, bitwise."""
  model = added(name, 0)
  with tempfile.TemporaryDirectory() as folder:
    try:
      model.save_adapter(f"{folder}/adapter")
    except UserError as error:
      return f"no: {str(error).partition(';')[0].replace(repr(name), 'it')}", "no: PEFT has no such method"
    base().save(f"{folder}/base")
    again = load(f"{folder}/base", f"{folder}/adapter", task="text_classification", num_labels=tiny.LABELS)
  ours, theirs = masks.flatten(model.params), masks.flatten(again.params)
  for path in model.adapter_paths():
    np.testing.assert_array_equal(theirs[path], ours[path], err_msg=f"{name} {path}")
  return YES, YES


def start(model: Model, optimizer: optax.GradientTransformation) -> tuple[TrainState, masks.Tree]:
  trainable, frozen = masks.partition(model.params, model.labels())
  return init_state(trainable, optimizer, 0), frozen


def step_of(model: Model, optimizer: optax.GradientTransformation) -> Any:
  task = tasks.make("text_classification", [str(label) for label in range(tiny.LABELS)])
  return make_train_step(make_loss(model.forward, task, model.penalty), optimizer)


def row(name: str) -> tuple[str, ...]:
  """A method's cells, in the order of `COLUMNS`."""
  optimizer = optax.sgd(0.1, momentum=0.9)
  single = jax.jit(step_of(added(name, 0), optimizer))
  state, frozen = start(added(name, 0), optimizer)
  moved, metrics = single(state, frozen, batch(0))
  return (
    starts_as_base(name),
    trained_leaves(name, state, moved, metrics["leaf_norms"]),
    flops(name),
    *(able(name, ability) for ability in abilities.ABILITIES),
    in_a_sweep(name, single, optimizer),
    resumes(single, moved, frozen),
    *to_and_from_peft(name),
  )


# The page ---------------------------------------------------------------------------------------------------------

INTRODUCTION = """# Methods

One row a method, with the settings of `tests/methods/matrix.py` on a tiny encoder. Every cell is computed by that file
and compared with this page by `tests/methods/test_matrix.py`; `python -m tests.methods.matrix` writes the page anew.

- *starts as the base*: outputs with fresh leaves against the base's.
- *trains*: the leaves that move in a step, beside the head; no other does.
- *FLOPs*: of a step's gradient, over full fine-tuning's: two layers of BERT-base, 8 x 64 tokens, default settings.
- *merge* (into the base's weights), *convert* (to LoRA), *combine* (several, weighted), *mixed batch* (every example
  names its adapter): each is done with every method, or refused with this reason, by `tests/adapters`; see
  [adapters.md](adapters.md).
- *sweep*: two runs in one vmapped step over one base end as they do alone.
- *resume*: a state saved, restored and taken a step further equals the unbroken one bit for bit.
- *PEFT out*, *PEFT in*: the adapter in Hugging Face PEFT's files, read again with bitwise equal leaves; that `peft`
  itself computes the same from them is checked in `tests/oracles/test_peft_adapters.py`.
"""


def page(rows: dict[str, tuple[str, ...]]) -> str:
  """The whole page; a reason stands below the table once, by number."""
  reasons: dict[str, int] = {}

  def cell(text: str) -> str:
    if not text.startswith("no: "):
      return text
    return f"no [{reasons.setdefault(text.removeprefix('no: '), len(reasons) + 1)}]"

  lines = [f"| method | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
  for name, cells in rows.items():
    link = f"[{name}](methods/{name}.md)" if (PAGE.parent / "methods" / f"{name}.md").is_file() else name
    lines.append(f"| {link} | {' | '.join(cell(text) for text in cells)} |")
  notes = [f"{number}. {reason}" for reason, number in reasons.items()]
  return "\n".join([INTRODUCTION, *lines, "", "Why not:", "", *notes, ""])


def rows_of(text: str) -> dict[str, tuple[str, ...]]:
  """The inverse of `page`."""
  notes = dict(line.split(". ", 1) for line in text.partition("Why not:")[2].strip().splitlines())
  rows = {}
  for line in text.splitlines():
    if line.startswith("| [") or (line.startswith("| ") and line.split(" ")[1] in NAMES):
      first, *cells = (part.strip() for part in line.strip("|").split("|"))
      name = first.partition("]")[0].removeprefix("[")
      rows[name] = tuple(f"no: {notes[one[4:-1]]}" if one.startswith("no [") else one for one in cells)
  return rows


if __name__ == "__main__":
  made = {}
  for each in NAMES if len(sys.argv) < 2 else sys.argv[1:]:
    made[each] = row(each)
    print(each, *made[each], sep=" | ", flush=True)
  kept = rows_of(PAGE.read_text()) if sys.argv[1:] else {}
  PAGE.write_text(page(dict(sorted({**kept, **made}.items()))))
