"""What `peftjax sample` does: pictures in a folder, with the prompts in metadata.csv and all of them in one sheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from peftjax.adapters import Bank
from peftjax.composite import components
from peftjax.data.inputs.pipeline import Pipeline
from peftjax.errors import UserError
from peftjax.image_generation import Plan, make_sampling, plan_of, sample
from peftjax.image_sheets import sheet
from peftjax.kinds import whole_of_text
from peftjax.loading import folder_of, load
from peftjax.model import Model
from peftjax.outputs import check, written

TABLE, SHEET = "metadata.csv", "sheet.png"
_SHOWN = 64  # pictures in the sheet


def from_flags(flags: Any, trained: tuple[Model, str] | None = None) -> dict[str, Any]:
  """{"out", "files", "prompts", "seeds"}: what was written.

  Args:
    flags: the command line's, all of them texts: model, adapter, prompt, negative, count, seed, steps, guidance,
      sampler, size, batch, out; and the switches before and overwrite.
    trained: the model of a run and the folder that it began from, in place of `flags.model` and `flags.adapter`.

  Raises:
    UserError: a folder, an adapter or a flag is not what was expected.
  """
  count, seed = _whole(flags, "count", 1, 10_000), _whole(flags, "seed", 0, 2**32 - 1)
  steps, size = _whole(flags, "steps", 1, 10_000), _whole(flags, "size", 0, 2**13)
  batch = _whole(flags, "batch", 1, 2**16)
  if trained is None:
    folder = folder_of(flags.model)
    plan = _plan(folder, flags, steps, size)
    base = load(folder)
    model = with_adapters(base, flags.adapter)
  else:
    model, path = trained
    folder = folder_of(path)
    plan, base = _plan(folder, flags, steps, size), load(folder) if flags.before else model
  prompts = [one for one in flags.prompt.split("|") if one.strip()]
  if not prompts:
    raise UserError("sample --prompt is empty; several prompts are divided by |")
  texts = [prompt for prompt in prompts for _ in range(count)]
  seeds = [(seed + number) % 2**32 for _ in prompts for number in range(count)]
  names = [f"{place:05}.png" for place in range(len(texts))]
  files = [*names, TABLE, SHEET]
  check(flags.out, files, flags.overwrite)
  pictures = _sampled(model, plan, folder, texts, seeds, flags.negative, min(batch, len(texts)))
  shown = [place for place in range(len(texts)) if place % count < max(1, _SHOWN // len(prompts))]
  before = None
  if flags.before:
    own, numbers = [texts[place] for place in shown], [seeds[place] for place in shown]
    before = _sampled(base, plan, folder, own, numbers, flags.negative, min(batch, len(own)))
  with written(flags.out, files, "pictures", overwrite=flags.overwrite) as temporary:
    for name, picture in zip(names, pictures, strict=True):
      Image.fromarray(picture).save(temporary / name, "PNG")
    (temporary / TABLE).write_text(_table(names, texts, seeds), encoding="utf-8")
    rows = []
    for prompt in dict.fromkeys(texts):
      places = [place for place in shown if texts[place] == prompt]
      lines = [pictures[places]]
      if before is not None:
        lines.insert(0, before[[shown.index(place) for place in places]])
      rows.append((prompt, lines))
    sheet(rows).save(temporary / SHEET, "PNG")
  return {"out": str(flags.out), "files": names, "prompts": prompts, "seeds": seeds[:count]}


def with_adapters(base: Model, spec: str) -> Model:
  """The model with the adapters of ``FOLDER`` or ``FOLDER=WEIGHT``, several divided by commas, which act at once.

  Raises:
    UserError: a weight is no number; as `peftjax.load` and `Bank.use`.
  """
  bank, weights = Bank(base), []
  for one in filter(None, spec.split(",")):
    path, _, weight = one.rpartition("=") if "=" in one else (one, "", "1")
    try:
      weights.append(float(weight))
    except ValueError:
      path = ""
    if not path:
      raise UserError(f"sample --adapter={one!r}: expected FOLDER or FOLDER=WEIGHT")
    bank = bank.add(path, _one_adapter(base, path))
  return bank.use(*bank.names, weights=weights if any(one != 1.0 for one in weights) else ())


def _one_adapter(base: Model, path: str) -> Model:
  family: Any = base.family
  if not components(base) or family.folder is None:
    raise UserError("sample: expected a pipeline's folder, with model_index.json")
  return load(family.folder, path)


def _sampled(
  model: Model, plan: Plan, folder: Path, texts: Sequence[str], seeds: Sequence[int], negative: str, batch: int
) -> np.ndarray:
  run = make_sampling(model.forward, plan)
  return sample(run, model.params, plan, Pipeline(folder), texts, seeds, negative, batch)


def _plan(folder: Path, flags: Any, steps: int, size: int) -> Plan:
  try:
    guidance = float(flags.guidance or 7.5)
  except ValueError:
    raise UserError(f"sample --guidance={flags.guidance!r}: expected a number") from None
  return plan_of(folder, flags.sampler, steps, guidance, size)


_DEFAULTS = {"count": 1, "seed": 0, "steps": 50, "size": 0, "batch": 4}


def _whole(flags: Any, name: str, least: int, most: int) -> int:
  text = getattr(flags, name)
  if not text:
    return _DEFAULTS[name]
  found = whole_of_text(text, least, most)
  if found is None:
    raise UserError(f"sample --{name}={text!r}: expected a whole number from {least} to {most:,}")
  return found


def _table(names: Sequence[str], texts: Sequence[str], seeds: Sequence[int]) -> str:
  lines = io.StringIO()
  writer = csv.writer(lines, lineterminator="\n")
  writer.writerow(["file_name", "text", "seed"])
  writer.writerows(zip(names, texts, seeds, strict=True))
  return lines.getvalue()
