"""What every method can do: one row a method, each cell computed, not claimed.

python -m tests.methods.matrix [METHOD ...]        writes docs/methods.md, or these rows of it, anew

A cell is "yes" or a figure where the thing was done and came out right, and otherwise the reason why not, as the user
would read it. `test_matrix.py` computes every row again and compares it with the page.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any

from peftjax import methods
from peftjax.adapters import abilities
from peftjax.errors import UserError
from peftjax.loading import from_config
from peftjax.methods.base import Targeted
from peftjax.model import Model
from peftjax.testing import bases, columns
from tests.methods import linen_models

CONVOLUTIONS = ("1-D", "2-D", "3-D", "grouped", "transposed")
PAGE = Path(__file__).parents[2] / "docs" / "methods.md"
COLUMNS = (
  "starts as the base", "trains", "FLOPs", "conv", "merge", "convert", "combine", "mixed batch", "sweep", "resume",
  "PEFT out", "PEFT in",
)  # fmt: skip

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
  return bases.encoder()


@functools.cache
def subject(name: str) -> columns.Subject:
  """The method on the tiny encoder."""
  return columns.Subject(make(name, SETTINGS.get(name, {})), base())


def added(name: str, seed: int) -> Model:
  """The tiny encoder with the method's leaves; those that train moved a little, as after some training."""
  return subject(name).moved(seed)


def convolutions(name: str) -> str:
  """At which convolutions the method can be: the numbers of their axes, and whether of groups too."""
  parts = [part for part in make(name, SETTINGS.get(name, {})).parts if "linear" in part.kinds and part.leaf_names]
  if not parts or not isinstance(parts[-1], Targeted):
    return "-"
  found = [kind for kind in CONVOLUTIONS if _takes(dataclasses.replace(parts[-1], targets=(kind,)))]
  return ", ".join(found) or "no: it acts at no convolution, and says so when one is targeted"


def _takes(method: methods.Method) -> bool:
  try:
    convs().add(method)
  except UserError as error:
    if "cannot act on" not in str(error):
      raise
    return False
  return True


@functools.cache
def convs() -> Model:
  """Convolutions of all kinds, of shapes alone."""
  return from_config({"model_type": "mine"}, family=linen_models.CONVS)


def row(name: str) -> tuple[str, ...]:
  """A method's cells, in the order of `COLUMNS`; what can be done is done by `tests/adapters`, with every method."""
  one = subject(name)
  return (
    columns.starts_as_base(one, START.get(name, "")),
    columns.trains(one),
    columns.flops(one, make(name, WIDE.get(name, {}))),
    convolutions(name),
    *(columns.able(one, ability) for ability in abilities.ABILITIES),
    columns.in_a_sweep(one),
    columns.resumes(one),
    columns.to_peft(one),
    columns.from_peft(one),
  )


# The page ---------------------------------------------------------------------------------------------------------

INTRODUCTION = """# Methods

One row a method, with the settings of `tests/methods/matrix.py` on a tiny encoder. Every cell is computed by
`peftjax.testing.columns` and compared with this page by `tests/methods/test_matrix.py`;
`python -m tests.methods.matrix` writes the page anew. `peftjax.testing.check_method(MyMethod())` computes them, and
more, for a method of one's own.

The rows are those of a text encoder; what is another on pictures stands in [vision.md](vision.md#methods) and on sound
in [audio.md](audio.md#methods), and `tests/methods/test_vision.py` and `test_speech.py` have every method train there.

- *starts as the base*: outputs with fresh leaves against the base's, operation by operation; a compiler that fuses them
  otherwise with a method than without rounds the last digit otherwise too.
- *trains*: the leaves that move in a step, beside the head; no other does.
- *FLOPs*: of a step's gradient, over full fine-tuning's: two layers of BERT-base, 8 x 64 tokens, default settings.
- *conv*: the convolutions at which it acts, by the axes of their windows, and of several
  groups (`tests/oracles/test_conv_peft.py` compares with PEFT); "-" where it is not on such modules at all.
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
