"""A figure for each method: one layer of BERT-base, its leaves to scale, and which of them train.

python -m experiments.pages.method_figures [METHOD ...]      writes docs/images/methods/METHOD.svg

Everything in a figure is read off the model that the method was added to, by its defaults but for `SETTINGS`: names,
shapes, groups. A leaf [in, out] is a box `in` high and `out` wide.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import jax

from peftjax import masks, methods
from peftjax.files import write_text
from peftjax.loading import from_config
from peftjax.model import Model

FOLDER = Path(__file__).parents[2] / "docs" / "images" / "methods"
SETTINGS: Mapping[str, Mapping[str, Any]] = {  # of methods that have to be told what they act on
  "patterns": {"train": ("query",)},
  "trainable_tokens": {"token_indices": (30520, 30521)},
  "hybrid": {"methods": ("bitfit", "lora")},
}
BERT_BASE: Mapping[str, Any] = {
  "model_type": "bert",
  "vocab_size": 30522,
  "hidden_size": 768,
  "num_hidden_layers": 12,
  "num_attention_heads": 12,
  "intermediate_size": 3072,
  "max_position_embeddings": 512,
  "type_vocab_size": 2,
  "pad_token_id": 0,
  "num_labels": 2,
}
LAYER = "bert.encoder.layer"
# Modules in the order in which they act, and what the figure calls them; a row without leaves is left out.
BEFORE = {"from_embeds": "before the input", "bert.embeddings.word_embeddings": "word embeddings"}
WITHIN = {
  "attention.self.query": "query",
  "attention.self.key": "key",
  "attention.self.value": "value",
  "attention.self.attend": "attention",
  "attention.output.dense": "attention's output",
  "attention_branch": "attention's branch",
  "attention.output.LayerNorm": "normalisation",
  "intermediate.dense": "feed-forward, up",
  "output.dense": "feed-forward, down",
  "mlp_branch": "feed-forward's branch",
  "output.LayerNorm": "normalisation",
  "": "after the layer",
}
AFTER = {"bert.pooler.dense": "pooler", "classifier": "the task's head"}
WIDTH, LABEL, NOTE = 860, 168, 380  # pixels: the figure, the names of modules, the notes' start
SCALE = 30 / 768  # pixels a unit of an axis
THINNEST, LARGEST = 2.0, 121.0  # pixels of a side
COLOURS = {"trains": ("#2a9d8f", "#1d6f65"), "frozen": ("#e4e4e4", "#b5b5b5"), "drawn": ("#f6d8ae", "#d09a4e")}


@dataclasses.dataclass(frozen=True)
class Leaf:
  """A leaf of one layer: its name, its shape there, whether it trains, and whether the method added it."""

  name: str
  shape: tuple[int, ...]
  trains: bool
  added: bool

  @property
  def kind(self) -> str:
    """Which of `COLOURS` it has."""
    return "trains" if self.trains else "drawn" if self.added else "frozen"

  @property
  def size(self) -> int:
    """Values in it."""
    return math.prod(self.shape)

  @property
  def box(self) -> tuple[float, float, bool]:
    """(width, height, whether a side was cut), in pixels; axes but the last are one, a vector lies."""
    high = math.prod(self.shape[:-1]) if len(self.shape) > 1 else 1
    sides = [SCALE * side for side in ((*self.shape, 1)[len(self.shape) - 1 if self.shape else 0], high)]
    width, height = (min(max(side, THINNEST), LARGEST) for side in sides)
    return width, height, max(sides) > LARGEST


@dataclasses.dataclass(frozen=True)
class Row:
  """A module of the figure."""

  name: str
  leaves: tuple[Leaf, ...]

  @property
  def height(self) -> float:
    """In pixels."""
    return max([20.0, *(leaf.box[1] + 8 for leaf in self.leaves)])


def model_of(name: str, base: Model | None = None) -> Model:
  """BERT-base, as shapes, with the method of this name."""
  settings = {"name": name, **SETTINGS.get(name, {})}
  base = base or from_config(dict(BERT_BASE), task="text_classification")
  return base.add(methods.build(settings), jax.random.key(0))


def rows_of(model: Model) -> tuple[list[Row], list[Row], list[Row]]:
  """The rows before a layer, of one layer (the last, where they differ), and after it."""
  found: dict[str, list[Leaf]] = {}
  groups, added = masks.flatten(model.labels()), set(model.adapter_paths())
  for path, leaf in masks.flatten(model.params).items():
    shape = tuple(leaf.shape)
    if path.startswith(LAYER + ".") and LAYER in model.stacks:
      shape = shape[1:]
    module, _, name = path.replace(f"{LAYER}.{BERT_BASE['num_hidden_layers'] - 1}.", f"{LAYER}.").rpartition(".")
    found.setdefault(module, []).append(Leaf(name, shape, groups[path] != masks.FROZEN, path in added))

  def rows(names: Mapping[str, str], within: str = "") -> Iterator[Row]:
    for name, title in names.items():
      module = f"{within}.{name}".strip(".")
      if leaves := found.get(module):
        yield Row(title, tuple(sorted(leaves, key=lambda leaf: (leaf.added, leaf.name == "bias"))))

  known = {*BEFORE, *AFTER, *(f"{LAYER}.{name}".strip(".") for name in WITHIN)}
  shared = {name: "shared by all layers" for name in found if name not in known and any(x.added for x in found[name])}
  return [*rows(BEFORE)], [*rows(WITHIN, LAYER), *rows(shared)], [*rows(AFTER)]


def draw(name: str, model: Model) -> str:
  """The figure as SVG."""
  groups = masks.flatten(model.labels())
  counts = {path: math.prod(leaf.shape) for path, leaf in masks.flatten(model.params).items()}
  trains = sum(count for path, count in counts.items() if groups[path] != masks.FROZEN)
  total = sum(counts.values())
  title = f"{name} on BERT-base: {trains:,} of {total:,} values train ({100 * trains / total:.3g} %)"
  parts = [_text(16, 26, title, 15, "bold")]
  left = 16.0
  for kind, text in (("trains", "trains"), ("frozen", "frozen, of the base"), ("drawn", "frozen, of the method")):
    parts += [_box(left, 38, 12, 12, kind), _text(left + 17, 48, text)]
    left += 32 + 6.2 * len(text)
  parts.append(_text(left + 12, 48, "boxes to scale, input axis downwards; dashed where one is cut", colour="#666"))
  top = 64.0
  which = f"{'one' if LAYER in model.stacks else 'the last'} of {BERT_BASE['num_hidden_layers']} layers"
  before, within, after = rows_of(model)
  for rows, title in ((before, ""), (within, which), (after, "")):
    bottom = top + sum(row.height + 4 for row in rows)
    if title:
      size = f'width="{WIDTH - 16}" height="{bottom - top + 24:g}"'
      parts.append(f'<rect x="8" y="{top:g}" {size} rx="6" fill="#fafafa" stroke="#ccc"/>')
      parts.append(_text(WIDTH - 20, top + 16, title, colour="#666", anchor="end"))
      top += 22
    for row in rows:
      parts += _drawn(row, top)
      top += row.height + 4
    top += 12
  head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top:g}" font-family="sans-serif">'
  back = f'<rect width="{WIDTH}" height="{top:g}" rx="8" fill="white"/>'
  return "\n".join([head, back, *parts, "</svg>", ""])


def _drawn(row: Row, top: float) -> Iterator[str]:
  middle = top + row.height / 2
  yield _text(LABEL - 8, middle + 4, row.name, anchor="end")
  left = float(LABEL)
  for leaf in row.leaves:
    width, height, cut = leaf.box
    yield _box(left, middle - height / 2, width, height, leaf.kind, cut)
    left += width + 6
  told = [leaf for leaf in row.leaves if leaf.trains or leaf.added]
  if not told:
    return
  note = ", ".join(f"{leaf.name} {'×'.join(map(str, leaf.shape)) or 'scalar'}" for leaf in told)
  count = sum(leaf.size for leaf in told if leaf.trains)
  start = max(left + 6, NOTE)
  room = int((WIDTH - 16 - start) / 5.6)
  lines = _wrapped(note + (f": {count:,}" if count else ""), room)
  for at, line in enumerate(lines):
    yield _text(start, middle + 4 + 12 * (at - (len(lines) - 1) / 2), line, colour="#1d6f65" if count else "#9a6a1f")


def _wrapped(text: str, room: int) -> list[str]:
  lines = [""]
  for word in text.split(" "):
    if len(lines[-1]) + len(word) > room and lines[-1]:
      lines.append("")
    lines[-1] = f"{lines[-1]} {word}".strip()
  return lines


def _box(left: float, top: float, width: float, height: float, kind: str, cut: bool = False) -> str:
  fill, line = COLOURS[kind]
  more = ' stroke-dasharray="3 3"' if cut else ""
  return (
    f'<rect x="{left:g}" y="{top:.4g}" width="{width:.4g}" height="{height:.4g}" fill="{fill}" stroke="{line}" '
    f'stroke-width="0.6"{more}/>'
  )


def _text(
  x: float, y: float, text: str, size: int = 11, weight: str = "", colour: str = "#222", anchor: str = ""
) -> str:
  more = (f' font-weight="{weight}"' if weight else "") + (f' text-anchor="{anchor}"' if anchor else "")
  return f'<text x="{x:g}" y="{y:.4g}" font-size="{size}" fill="{colour}"{more}>{escape(text)}</text>'


def main(names: list[str]) -> None:
  """Writes the figures of these methods, or of all."""
  base = from_config(dict(BERT_BASE), task="text_classification")
  FOLDER.mkdir(parents=True, exist_ok=True)
  for name in names or methods.METHODS:
    write_text(FOLDER / f"{name}.svg", draw(name, model_of(name, base)))


if __name__ == "__main__":
  main(sys.argv[1:])
