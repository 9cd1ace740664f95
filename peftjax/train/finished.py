"""What is done with a run after training: its model, its evaluation on other splits, its export."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from peftjax import masks, outputs, tasks, textual_inversion
from peftjax.composite import components
from peftjax.data.inputs import INPUTS, input_class, input_name
from peftjax.data.packages import cache_folder
from peftjax.errors import UserError, nearest
from peftjax.files import write_text
from peftjax.interop import lora_files
from peftjax.model import Model
from peftjax.parallel.mesh import make_mesh, put_tree
from peftjax.parallel.sharding import Layout, layout_of
from peftjax.quantize_model import summary
from peftjax.registry import only_trusted
from peftjax.stored import plain
from peftjax.train import assemble
from peftjax.train import evaluators as evaluators_lib
from peftjax.train import folder as folder_lib
from peftjax.train.best import WHICH, best_step
from peftjax.train.checkpoint import Base, Checkpoints
from peftjax.train.compiling import use_cache
from peftjax.train.loop import make_run
from peftjax.train.run import Run, base_hash
from peftjax.train.splits import score_split
from peftjax.wrap import files as wrapped_files
from peftjax.wrap.family import is_wrapped

FORMATS = {"peft": "adapter", "merged": "model", "diffusers": lora_files.KIND, "embeds": textual_inversion.KIND}


def load_model(workdir: str | Path, trust: Collection[str] = (), checkpoint: str = "") -> tuple[ConfigDict, int, Model]:
  """(config, step, model) of a run's checkpoint; the base is loaded from where the run found it.

  Args:
    checkpoint: "last", the newest, or "best"; "": what the run's `train.result` says.
    trust: the ``module:Name`` of own code that the run's config.json may name; see docs/security.md.

  Raises:
    UserError: no run, no checkpoint, the base is not the one that the run was trained on, or the run names own code
      that is neither in `trust` nor was named in this process.
  """
  with only_trusted(workdir, trust):
    return _load_model(Path(workdir), checkpoint)


def _load_model(folder: Path, checkpoint: str) -> tuple[ConfigDict, int, Model]:
  config, resolved = folder_lib.read_config(folder)
  mesh = make_mesh(on_these_devices(config).mesh)
  head = assemble.Head(resolved.head, resolved.label_names, resolved.num_labels)
  is_own = assemble.is_own(config.model.path)
  model = assemble.setting(config).model() if is_own else assemble.stored(config, head).model(mesh=mesh)
  trainable, frozen = masks.partition(model.params, model.labels())
  layout = layout_of(model, mesh)
  base = Base(str(config.model.path), base_hash(model))
  step, trainable = _restore(folder, config, trainable, base, layout, checkpoint)
  return config, step, model.with_params(masks.combine(trainable, frozen))


def evaluate_run(
  workdir: str | Path, splits: Sequence[str] = (), trust: Collection[str] = (), checkpoint: str = ""
) -> dict[str, Any]:
  """Evaluates a run's checkpoint, and writes ``eval.json`` and ``predictions-SPLIT.npz`` beside it.

  Args:
    splits: of its data; empty: all but the training split.
    trust: as of `load_model`.
    checkpoint: as of `load_model`.

  Returns:
    {"step", "metrics": {split: {name: value}}}; None in place of a value that is not finite.

  Raises:
    UserError: as `load_model`; no such split.
  """
  with only_trusted(workdir, trust):
    return _evaluate_run(Path(workdir), splits, checkpoint)


def _evaluate_run(folder: Path, splits: Sequence[str], checkpoint: str) -> dict[str, Any]:
  config = on_these_devices(folder_lib.read_config(folder)[0])
  use_cache(str(cache_folder("compiled")))
  run = make_run(config)
  for split in splits:
    if split not in run.loaders.evals:
      raise UserError(f"no split {split!r} to evaluate; {nearest(split, run.loaders.evals)}")
  chosen = tuple(splits) or tuple(split for split in run.loaders.evals if split != "train")
  evaluators = evaluators_lib.make(run)
  evaluators_lib.check(evaluators, run.loaders.evals, chosen)
  step, trainable = _restore(folder, config, run.trainable, run.base, run.layout, checkpoint)
  leaves = evaluators_lib.Leaves(trainable, run.frozen, step)
  writes = folder if jax.process_index() == 0 else None
  metrics = {}
  for split in chosen:
    metrics[split] = score_split(run, evaluators, split, leaves, writes, "eval")
  result = {"step": step, "metrics": plain(metrics)}
  if writes:
    write_text(folder / "eval.json", json.dumps(result, indent=2) + "\n")
  return result


def restored(workdir: str | Path, run: Run) -> masks.Tree:
  """The trained leaves of the run in a folder, laid on its mesh; raises as `load_model`."""
  return _restore(Path(workdir), run.config, run.trainable, run.base, run.layout)[1]


def export(
  workdir: str | Path,
  form: str,
  out: str | Path,
  overwrite: bool = False,
  trust: Collection[str] = (),
  check: bool = True,
  checkpoint: str = "",
) -> dict[str, Any]:
  """Writes a run's adapter ("peft", or as a LoRA file "diffusers"), its merged model ("merged"), or the embeddings of
  tokens that were learned ("embeds", `peftjax.textual_inversion`).

  Args:
    overwrite: replace files of the same names that were not written here.
    trust: as of `load_model`.
    checkpoint: as of `load_model`.
    check: of `Model.merge`.

  Returns:
    {"out", "format", "step", "bytes", "quantization", "merging"}: "quantization" are the relative errors
    (`quantize_model.summary`) of a quantised base, {} without one; a merged model has them too, as it is made of what
    the base stands for. "merging" is the same of the shares of the change that rounding took, {} in float32.

  Raises:
    UserError: an unknown format; as `load_model` and `outputs.written`; the method cannot be written so.
  """
  if form not in FORMATS:
    raise UserError(f"--format={form}: {nearest(form, FORMATS)}")
  _, step, model = load_model(workdir, trust, checkpoint)
  model = _as_pipelines_read_it(Path(workdir), model)
  losses: Mapping[str, float] = {}
  if form == "peft":
    model.save_adapter(out, overwrite)
  elif form == "diffusers":
    lora_files.save(model, out, overwrite)
  elif form == "embeds":
    textual_inversion.save(model, out, overwrite)
  else:
    merged = model.merge(check)
    merged.save(out, overwrite)
    losses = merged.merge_errors
  kept = wrapped_files.KIND if is_wrapped(model) else FORMATS[form]
  size = sum(outputs.size_of(folder, kept) for folder in (Path(out), *(Path(out) / name for name in components(model))))
  return {
    "out": str(out),
    "format": form,
    "step": step,
    "bytes": size,
    "quantization": summary(model.quantization_errors),
    "merging": summary(losses),
  }


def _as_pipelines_read_it(folder: Path, model: Model) -> Model:
  """The model with what transformers' pipelines take from config.json: the kind of labels, and what its input says."""
  if not model.head:
    return model
  config, known = folder_lib.read_config(folder)
  found: dict[str, Any] = {"problem_type": known.problem_type} if known.problem_type else {}
  asked = tasks.task_class(known.task).input if known.task in tasks.TASKS else ""
  kind = input_name(config, known.fields or ("text",), asked)  # earlier versions read text alone, and wrote no fields
  if model.folder is not None and kind in INPUTS:
    said = input_class(kind).exported(model.folder)
    found |= {name: one for name, one in said.items() if model.hf_config.get(name) is None}
  return dataclasses.replace(model, hf_config={**model.hf_config, **found})


def on_these_devices(config: ConfigDict) -> ConfigDict:
  """The config with its own mesh if that is of as many devices as there are here, else with all of these as `data`."""
  sizes = [int(size) for size in config.mesh.values()]
  if -1 not in sizes and math.prod(sizes) != jax.device_count():
    config = copy.deepcopy(config)
    config.mesh.update({axis: -1 if axis == "data" else 1 for axis in config.mesh})
  return config


def _restore(
  folder: Path, config: ConfigDict, trainable: masks.Tree, base: Base, layout: Layout, checkpoint: str = ""
) -> tuple[int, masks.Tree]:
  which = checkpoint or config.train.result
  if which not in WHICH:
    raise UserError(f"--checkpoint={which}: {nearest(which, WHICH)}")
  if not folder_lib.has_checkpoints(folder):
    raise UserError(f"{folder} holds no checkpoint; train first")
  like = put_tree(trainable, layout.shardings(trainable))
  with Checkpoints(folder / "checkpoints", reads=True) as checkpoints:
    step = best_step(folder) if which == "best" else 0
    return checkpoints.restore_trainable(like, base, step, config.train.ema > 0)
