"""Where each method acts in a function of one's own: one row a method, one column a kind of leaf, each cell computed.

python -m tests.wrap.kinds        writes the table of docs/your_own_model.md anew

"acts": on what goes in and comes out; "W + Δ": on the weight itself, whose change is formed. Either was compared with
the weights that merging makes, outputs and gradients. "trains": a mask frees the leaf. Otherwise the reason, as the
user reads it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import peftjax
from peftjax import masks, methods
from peftjax.errors import UserError
from peftjax.methods import Method
from peftjax.model import Model
from tests.wrap import grid, models

PAGE = Path(__file__).parents[2] / "docs" / "your_own_model.md"
START, END = "<!-- python -m tests.wrap.kinds -->\n", "<!-- end -->"
ROWS, INPUT, OUTPUT = 8, 12, 10
TARGETS = ("leaf.*",)
MASKS: dict[str, Method] = {
  "bitfit": methods.BitFit(), "layernorm": methods.LayerNormTuning(), "full": methods.Full(),
  "patterns": methods.Patterns(train=TARGETS),
}  # fmt: skip
TOKENS = {"trainable_tokens": methods.TrainableTokens(token_indices=(1, 5), targets=TARGETS)}
NAMES = (*grid.METHOD_SETTINGS, *TOKENS, *MASKS)
NAMED_PLACES = tuple(
  name for name, method in methods.METHODS.items()
  if method.kinds and not set(method.kinds) & {"linear", "embedding"}
)  # fmt: skip


def _convolved(x: jax.Array, kernel: jax.Array, groups: int = 1, strides: int = 2) -> jax.Array:
  axes = "HW"[: kernel.ndim - 2]
  numbers = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
  return jax.lax.conv_general_dilated(
    x, kernel, (strides,) * len(axes), "SAME", dimension_numbers=numbers, feature_group_count=groups
  )


def _scanned(params: Any, x: jax.Array) -> jax.Array:
  layer = lambda h, own: (jnp.tanh(_convolved(h, own["kernel"], strides=1)), None)  # noqa: E731
  return jax.lax.scan(layer, x, params["leaf"])[0]


def _tied(params: Any, x: jax.Array) -> jax.Array:
  return params["leaf"]["table"][x] @ params["leaf"]["table"].T


def _normed(params: Any, x: jax.Array) -> jax.Array:
  return models.norm(x, params["leaf"]["scale"], params["bias"]) @ params["w"]


def leaves() -> dict[str, tuple[Callable[..., Any], dict[str, Any], tuple[int, ...]]]:
  """Kind -> (function, the leaf that is acted on beside others, shape of the input; of a table's that of the ids)."""
  draw = models.Draw(3)
  bias = draw(OUTPUT)
  of_product = lambda params, x: x @ params["leaf"]["kernel"] + params["bias"]  # noqa: E731
  of_window = lambda params, x: _convolved(x, params["leaf"]["kernel"]) + params["bias"]  # noqa: E731
  return {
    "linear": (of_product, {"leaf": {"kernel": draw(INPUT, OUTPUT)}, "bias": bias}, (3, INPUT)),
    "conv, 1-D": (of_window, {"leaf": {"kernel": draw(3, INPUT, OUTPUT)}, "bias": bias}, (3, 5, INPUT)),
    "conv, 2-D": (of_window, {"leaf": {"kernel": draw(3, 2, INPUT, OUTPUT)}, "bias": bias}, (3, 5, 4, INPUT)),
    "conv in a scan": (_scanned, {"leaf": {"kernel": draw(2, 3, INPUT, INPUT)}}, (3, 5, INPUT)),
    "conv, grouped": (
      lambda params, x: _convolved(x, params["leaf"]["kernel"], 2),
      {"leaf": {"kernel": draw(3, INPUT // 2, OUTPUT)}}, (3, 5, INPUT),
    ),
    "table": (lambda params, x: params["leaf"]["table"][x], {"leaf": {"table": draw(ROWS, OUTPUT)}}, (3, 5)),
    "tied table": (_tied, {"leaf": {"table": draw(ROWS, OUTPUT)}}, (3, 5)),
    "norm's scale": (
      _normed, {"leaf": {"scale": draw(INPUT)}, "bias": draw(INPUT), "w": draw(INPUT, OUTPUT)}, (3, INPUT),
    ),
    "bias": (lambda params, x: x @ params["w"] + params["leaf"]["bias"], {"w": draw(INPUT, OUTPUT),
                                                                          "leaf": {"bias": bias}}, (3, INPUT)),
  }  # fmt: skip


COLUMNS = tuple(leaves())


@functools.cache
def wrapped(kind: str) -> tuple[Model, dict[str, Any]]:
  """(the model, inputs)."""
  function, params, shape = leaves()[kind]
  x = jax.random.randint(jax.random.key(1), shape, 0, ROWS) if "table" in kind else models.Draw(4)(*shape, scale=1.0)
  return peftjax.wrap(function, params, {"x": x}), {"x": x}


def cell(name: str, kind: str) -> str:
  """What the method does at the leaf."""
  model, inputs = wrapped(kind)
  if name in MASKS:
    try:
      groups = masks.flatten(model.add(MASKS[name]).labels())
    except UserError as error:
      return f"no: {error}"
    trains = any(group != masks.FROZEN for path, group in groups.items() if path.startswith("leaf."))
    return "trains" if trains else "no: it is a mask of other leaves"
  more: dict[str, Any] = {"ensure_weight_tying": True} if name == "lora" and kind == "tied table" else {}
  method = TOKENS[name] if name in TOKENS else grid.make(name, TARGETS, **more)
  try:
    added = grid.adapted(model, method)
  except UserError as error:
    return f"no: {str(error).replace(f'{name}.targets', 'targets').replace(f'and {name} acts', 'and it acts')}"
  try:
    grid.compare(added, inputs, 5e-5 if name == "fourierft" else 1e-5)
  except UserError as error:
    return f"acts, but: {error}"
  return "W + Δ" if added.bound[0].sites[0].in_weights else "acts"


def row(name: str) -> tuple[str, ...]:
  """The method's cells."""
  return tuple(cell(name, kind) for kind in COLUMNS)


def table(rows: dict[str, tuple[str, ...]]) -> str:
  """The table; a reason stands below it once, by number."""
  reasons: dict[str, int] = {}

  def short(text: str) -> str:
    said, _, reason = text.partition(": ")
    return f"{said} [{reasons.setdefault(reason, len(reasons) + 1)}]" if reason else text

  lines = [f"| method | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
  lines += [f"| {name} | {' | '.join(map(short, cells))} |" for name, cells in rows.items()]
  notes = [f"{number}. {reason}" for reason, number in reasons.items()]
  return "\n".join(["", *lines, "", *notes, "", ""])


def rows_of(text: str) -> dict[str, tuple[str, ...]]:
  """The inverse of `table`, from the page."""
  lines = text.partition(START)[2].partition(END)[0].splitlines()
  notes = dict(line.split(". ", 1) for line in lines if line[:1].isdigit())

  def long(text: str) -> str:
    said, _, number = text.rstrip("]").partition(" [")
    return f"{said}: {notes[number]}" if number else text

  rows = [[part.strip() for part in line.strip("|").split("|")] for line in lines if line.startswith("| ")][1:]
  return {name: tuple(map(long, cells)) for name, *cells in rows}


if __name__ == "__main__":
  made = {}
  for each in NAMES:
    made[each] = row(each)
    print(each, *made[each], sep=" | ", flush=True)
  text = PAGE.read_text()
  before, is_there, rest = text.partition(START)
  assert is_there and END in rest, PAGE
  PAGE.write_text(f"{before}{START}{table(made)}{END}{rest.partition(END)[2]}")
