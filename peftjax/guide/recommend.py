"""`peftjax guide`: which method, from what a user has and wants, with the evidence and with what speaks against it.

What is exact comes from shapes: parameters, files, arguments. Memory of the candidates that are worth it comes from
`plan`, which compiles their step. Accuracy and forgetting are ranges with their sources: the user's own studies first,
then published figures of one model and task, which may not carry over. Nothing is a score of everything.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from peftjax import config as config_lib
from peftjax import masks, methods
from peftjax.adapters import abilities
from peftjax.compare import formatting as fmt
from peftjax.errors import UserError
from peftjax.guide import evidence, experiment, rules_of_thumb
from peftjax.guide.evidence import Range
from peftjax.model import Model
from peftjax.parallel.topology import limit_bytes, topology_devices
from peftjax.registry import only_trusted
from peftjax.train import assemble, inspection, plan

CANDIDATES: tuple[tuple[str, dict[str, Any]], ...] = (  # name, fields of the method
  ("full", {}),
  ("lora", {"rank": 16, "alpha": 32.0, "targets": "all-linear"}),
  ("dora", {"rank": 16, "alpha": 32.0, "targets": "all-linear"}),
  ("ia3", {}),
  ("houlsby", {"bottleneck_dim": 64}),
  ("oft", {}),
  ("gralora", {"rank": 32}),
  ("shira", {"rank": 32}),
  ("bitfit", {}),
  ("layernorm", {}),
  ("prefix", {"num_virtual_tokens": 20}),
  ("prompt", {"num_virtual_tokens": 20}),
)
MOMENTS = {"adamw": 2, "lion": 1, "sgd": 0, "adafactor": 0, "galore": 0}  # copies of what trains, at the least


@dataclasses.dataclass
class Candidate:
  """A method on the user's model: exact sizes, and what is known of its results.

  Attributes:
    row: its name in the study it is from, or the method's.
    method: fields of `config.method`.
    trainable: parameters; adapter: those outside the head.
    file_bytes: on disk for one task.
    held_bytes: of weights, gradients and the optimizer's moments, over all devices: what a step cannot do without.
    flops: of one step.
    accuracy, forgetting: ranges, best evidence first.
    plan: `plan`'s figures, where it was compiled.
    notes: what a user should know.
  """

  row: str
  method: dict[str, Any]
  trainable: int
  adapter: int
  file_bytes: int
  held_bytes: int
  flops: int
  accuracy: list[Range]
  forgetting: list[Range]
  plan: dict[str, Any] | None = None
  notes: list[str] = dataclasses.field(default_factory=list)

  @property
  def overrides(self) -> str:
    """The method as flags of the command line, `--config.method...`."""
    return " ".join(f"--config.method.{name}={value}" for name, value in self.method.items())


def recommend(config: ConfigDict, words: Sequence[str] = ()) -> dict[str, Any]:
  """Ranked methods for a config's model, with what `config.guide` says of devices, task and wishes.

  The standing candidates, the rows of own studies, and the config's own method where it is not the default.

  Args:
    config: as for `train`.
    words: of the command line, `--config=FILE` and `--config.a.b=value`, that made the config: the command of
      `experiment` repeats those that a study reads.

  Returns:
    `ranked`, best first: {"row", "method", "flags", "trainable", "adapter", "adapter_bytes", "bytes_for_all_tasks",
    "held_bytes", "step_flops", "training_flops" (of one pass), "fits" (None where it was not compiled),
    "bytes_per_device", "accuracy", "forgetting" (ranges with sources), "notes"}; `rejected`: {"row", "reason"};
    `rules`, `conflicts`; `experiment`: the cheapest study that would settle the choice between the first two;
    `device` {"limit_bytes", "count"}.

  Raises:
    UserError: nothing fits, or a field that makes no sense.
  """
  own = _paths(config.guide.results)
  # Rows of a study that somebody else may have made name no code, but what the user names as the config's method.
  named = [one for one in (str(config.method.name),) if ":" in one]
  with only_trusted(own[0], named) if own else contextlib.nullcontext():
    return _guide(config, words)


def _guide(config: ConfigDict, words: Sequence[str]) -> dict[str, Any]:
  if config.model.adapter:
    raise UserError(
      f"model.adapter={config.model.adapter!r}: peftjax guide says which method to train on a base; leave it out"
    )
  wants, devices, setting = _wants(config), _devices(config), setting_of(config)
  limit, count = _limit(config, devices), config.guide.devices or len(devices)
  steps = math.ceil(wants.examples / config.train.batch_size) if wants.examples else 1
  own = [evidence.own_study(Path(one)) for one in _paths(config.guide.results)]
  ranked, rejected = [], []
  for row, method in _candidates(own, _asked(config)):
    try:
      one = assessed(setting, row, method, own)
    except UserError as error:  # such as a default target list that does not know the architecture
      if method.get("name") == "full" and not config.model.quantize:
        raise  # which fits every model: the fault is not the method's
      rejected.append({"row": row, "reason": str(error)})
      continue
    reason = _refused(one, wants, limit * count, steps)
    if reason:
      rejected.append({"row": row, "reason": reason})
    else:
      ranked.append(one)
  ranked.sort(key=lambda one: _order(one, own))
  if count == len(devices):
    ranked, too_big = _compiled(config, ranked, devices, limit)
  else:  # a step of so many devices cannot be compiled here
    too_big = []
    for one in ranked:
      one.notes.append(f"not compiled for {count} devices; name their slice by guide.topology, such as v5e:4x4")
  for one in ranked[1:]:
    if one.accuracy and ranked[0].accuracy and one.accuracy[0].high >= ranked[0].accuracy[0].low:
      one.notes.append("may be as good as the first")
  rejected += too_big
  if not ranked:
    first = "; ".join(f"{one['row']}: {one['reason']}" for one in rejected[:4])
    raise UserError(f"nothing fits: {first}")
  applying = rules_of_thumb.applying(wants)
  return {
    "ranked": [_as_json(one, wants, steps) for one in ranked],
    "rejected": rejected,
    "rules": [{"favours": one.favours, "says": one.says, "source": one.source} for one in applying],
    "conflicts": [[one.says, other.says] for one, other in rules_of_thumb.conflicts(applying)],
    "experiment": experiment.experiment(
      {one.row: one.method for one in ranked[:2]},
      next((study.spread for study in own if study.spread), None),
      sum(one.flops for one in ranked[:2]) * steps,
      config,
      words,
    ),
    "device": {"limit_bytes": limit, "count": count},
  }


def _wants(config: ConfigDict) -> rules_of_thumb.Wants:
  section = config.guide
  if section.domain not in ("", "near", "far"):
    raise UserError(f"guide.domain={section.domain!r}: expected near or far, or nothing")
  if section.latency not in ("", "same"):
    raise UserError(f"guide.latency={section.latency!r}: expected same (as the base's), or nothing")
  fields = {field.name: section[field.name] for field in dataclasses.fields(rules_of_thumb.Wants)}
  for name, value in fields.items():
    if not isinstance(value, str) and value < 0:
      raise UserError(f"guide.{name}={value}: expected 0 (nothing said) or more")
  return rules_of_thumb.Wants(**fields)


def _devices(config: ConfigDict) -> list[Any]:
  return topology_devices(config.guide.topology) if config.guide.topology else jax.devices()


def _limit(config: ConfigDict, devices: Sequence[Any]) -> int:
  if config.guide.device_gib < 0:
    raise UserError(f"guide.device_gib={config.guide.device_gib}: expected the memory of one device in GiB, or 0")
  return int(config.guide.device_gib * 2**30) or limit_bytes(devices[0])


def _paths(given: Any) -> list[str]:
  return list(given) if isinstance(given, tuple) else [given] if given else []


def _asked(config: ConfigDict) -> dict[str, dict[str, Any]]:
  """The config's method under its row; nothing where nobody asked for one."""
  method = config.method.to_dict()
  if method == config_lib.default().method.to_dict():
    return {}
  return {_row_name(str(methods.build(config.method).name)): method}


def _row_name(name: str) -> str:
  """A row's name, which names a folder.

  >>> _row_name("mine:Scale"), _row_name("lora")
  ('mine-Scale', 'lora')
  """
  return re.sub(r"[^A-Za-z0-9._+-]+", "-", name).strip("-") or "own"


def _candidates(
  own: Sequence[evidence.OwnStudy], asked: Mapping[str, dict[str, Any]]
) -> list[tuple[str, dict[str, Any]]]:
  """The rows of own studies with their settings, the method that is `asked` for, then the standing candidates that
  these do not hold."""
  found: dict[str, dict[str, Any]] = {}
  for study in own:
    found |= {row: dict(method) for row, method in study.settings.items()}
  for row, method in asked.items():
    if method not in found.values():
      found[experiment.free(row, found)] = method
  known = {method["name"] for method in found.values()}
  return [*found.items(), *((name, {"name": name, **fields}) for name, fields in CANDIDATES if name not in known)]


def assessed(
  setting: assemble.Setting, row: str, method: Mapping[str, Any], own: Sequence[evidence.OwnStudy] = ()
) -> Candidate:
  """A method on a config's model, by shapes, with what is known of it.

  Args:
    setting: see `setting_of`.
    row: its name.
    method: fields of `config.method`.
    own: studies of one's own.

  Raises:
    UserError: the method does not fit the model.
  """
  config = _with_method(setting.config, method)
  model = dataclasses.replace(setting, config=config).model(abstract=True)
  counts = inspection.report(model)
  trainable, frozen = (masks.count(tree) for tree in masks.partition(model.params, model.labels()))
  name = str(method["name"])
  accuracy = [study.accuracy[row] for study in own if row in study.accuracy]
  accuracy += [one for one in (evidence.published_accuracy(name),) if one]
  forgetting = [study.forgetting[row] for study in own if row in study.forgetting]
  forgetting += [one for one in (evidence.published_forgetting(name),) if one]
  notes = []
  if name != "full" and not accuracy:
    notes.append("no figure of its accuracy is at hand")
  if any(row == study.reference for study in own) or name == "full":
    notes.append("differences are to this method")
  notes += [note for study in own for note in study.notes.get(row, ())]
  return Candidate(
    row,
    dict(method),
    int(counts["trainable"]),
    int(counts["adapter"]),
    trainable.bytes,
    trainable.bytes * (2 + _moments(config)) + frozen.bytes,
    _step_flops(setting, model, trainable.parameters),
    accuracy,
    forgetting,
    notes=notes,
  )


def _moments(config: ConfigDict) -> int:
  """Copies of what trains that the optimizer keeps; of those that keep less than whole ones, none are counted."""
  return MOMENTS.get(config.optim.name, 0) + (config.optim.name == "sgd" and config.optim.momentum > 0)


def setting_of(config: ConfigDict) -> assemble.Setting:
  """What the config means; a bare encoder gets a head for the default data.

  Raises:
    UserError: as `assemble.setting`.
  """
  found = assemble.setting(config)
  bare = found.task is None and config.task.name == "auto"
  return assemble.setting(config, trains=True) if bare else found


def _with_method(config: ConfigDict, method: Mapping[str, Any]) -> ConfigDict:
  changed = copy.deepcopy(config)
  with changed.unlocked():
    changed.method = ConfigDict(dict(method))
  return changed


def _step_flops(setting: assemble.Setting, model: Model, trainable: int) -> int:
  """FLOPs of a step by the usual count: 2 a parameter and token forwards, 2 for its input's gradient, 2 for its own."""
  tokens, used = setting.config.train.batch_size * _tokens(setting, model), multiplied(model)
  return int(tokens * (4 * used + 2 * min(trainable, used)))


def _tokens(setting: assemble.Setting, model: Model) -> int:
  """Of an example: what the guide is told, else the greatest length of its input; of inputs of one size, the places of
  its integers, or else the most rows of a linear module."""
  config = setting.config
  if config.guide.tokens:
    return int(config.guide.tokens)
  if setting.task is None:
    return int(config.input.get("max_length", config.data.max_length))
  inputs = setting.inputs()
  if inputs.buckets:
    return max(inputs.buckets)
  integers = [one for name, one in inputs.spec(1, 0).items()
              if name in model.example_inputs and jnp.issubdtype(one.dtype, jnp.integer)]  # fmt: skip
  if integers:
    return max(math.prod(one.shape[1:]) for one in integers)
  seen = [next(iter(site.example.arguments.values())) for site in model.sites if site.kind == "linear" and site.example]
  return max((math.prod(one.shape[1:-1]) for one in seen), default=1)


def multiplied(model: Model) -> int:
  """Parameters that every token is multiplied with: an embedding counts where it is the output layer, too."""
  outputs = {".".join((*site.path, "embedding")) for site in model.sites if site.kind == "unembedding"}
  flat = masks.flatten(model.params)
  return sum(math.prod(leaf.shape) for path, leaf in flat.items() if not path.endswith("embedding") or path in outputs)


def _refused(one: Candidate, wants: rules_of_thumb.Wants, memory: int, steps: int) -> str:
  """Why a candidate is out, or nothing.

  Args:
    memory: of all devices.
    steps: of one pass over the examples.
  """
  name = str(one.method["name"])
  if one.held_bytes > memory:
    return f"weights, gradients and optimizer alone are {fmt.size(one.held_bytes)} of {fmt.size(memory)}"
  if wants.adapter_bytes and one.file_bytes > wants.adapter_bytes:
    return f"its file is {fmt.size(one.file_bytes)}; at most {fmt.size(wants.adapter_bytes)} is wanted"
  if wants.latency == "same" and (reason := abilities.can(methods.build(ConfigDict(one.method)), "merge")) is not True:
    return f"inference costs more than the base's: {reason}"
  if wants.mixed_batches and name == "full":
    return "every task would need its own model, so a batch cannot mix tasks"
  training = one.flops * steps
  if wants.budget_flops and training > wants.budget_flops:
    return f"one pass over the examples takes {training:.2g} FLOPs; the budget is {wants.budget_flops:.2g}"
  if wants.retention and one.forgetting and one.forgetting[0].low > wants.retention:
    best, source = one.forgetting[0].low, one.forgetting[0].source
    tolerated = f"at most {wants.retention:g} is tolerated"
    return f"at best it raised the loss on pretraining text by {best:.3f}; {tolerated} ({source})"
  return ""


def _order(one: Candidate, own: Sequence[evidence.OwnStudy]) -> tuple[Any, ...]:
  """First what an own study holds and did not find worse, then the rest; each by the middle of its best range.

  Figures of another model and task may not carry over, so that they do not overtake the user's own. Methods of which
  nothing is known are last, by size.
  """
  full = one.method["name"] == "full"
  if not (one.accuracy or full):
    return (2, one.trainable)
  first = one.accuracy[0] if one.accuracy and not full else Range(0.0, 0.0, "", 0)
  tried = any(one.row in study.accuracy or one.row == study.reference for study in own)
  return (0 if tried and first.high >= 0 else 1, -(first.low + first.high) / 2)


def _compiled(
  config: ConfigDict, ranked: Sequence[Candidate], devices: list[Any], limit: int
) -> tuple[list[Candidate], list[dict[str, str]]]:
  """The candidates with `plan`'s figures of the first `guide.compile` that fit; those that do not are rejected."""
  kept, rejected, wanted = [], [], config.guide.compile
  for one in ranked:
    if wanted <= 0:
      kept.append(one)
      continue
    found = plan.compiled_for(_with_method(config, one.method), devices)
    total = found["bytes_per_device"]["total"]
    if total > limit:
      rejected.append(
        {"row": one.row, "reason": f"a step needs {fmt.size(total)} a device of {fmt.size(limit)} (plan)"}
      )
      continue
    wanted -= 1
    kept.append(dataclasses.replace(one, plan=found))
  return kept, rejected


def _as_json(one: Candidate, wants: rules_of_thumb.Wants, steps: int) -> dict[str, Any]:
  return {
    "row": one.row,
    "method": one.method,
    "flags": one.overrides,
    "trainable": one.trainable,
    "adapter": one.adapter,
    "adapter_bytes": one.file_bytes,
    "bytes_for_all_tasks": one.file_bytes * wants.tasks,
    "held_bytes": one.held_bytes,
    "step_flops": one.flops,
    "training_flops": one.flops * steps,
    "fits": True if one.plan else None,
    "bytes_per_device": one.plan["bytes_per_device"] if one.plan else None,
    "accuracy": [known.as_json() for known in one.accuracy],
    "forgetting": [known.as_json() for known in one.forgetting],
    "notes": one.notes,
  }


# For people -------------------------------------------------------------------------------------------------------


def show(result: Mapping[str, Any], console: Console) -> None:
  """The table, the rejected, the conflicts and the experiment."""
  table = Table("method", "", "trainable", "file", "weights + gradients + optimizer", "a device (plan)",
                "accuracy, to full", "forgetting", box=None, header_style="bold")  # fmt: skip
  for one in result["ranked"]:
    each = one["bytes_per_device"]
    table.add_row(
      one["row"],
      "≈" if "may be as good as the first" in one["notes"] else "",
      fmt.short(one["trainable"]),
      fmt.size(one["adapter_bytes"]),
      fmt.size(one["held_bytes"]),
      fmt.size(each["total"]) if each else "not compiled",
      _ranges(one["accuracy"], 100.0),
      _ranges(one["forgetting"], 1.0),
    )
  console.print(table)
  console.print("  ≈: its range reaches the first one's, so that nothing known tells them apart")
  for source in dict.fromkeys(known["source"] for one in result["ranked"] for known in one["accuracy"]):
    console.print(f"  accuracy in points: {source}")
  for one in result["ranked"]:
    told = [note for note in one["notes"] if note != "may be as good as the first"]
    if told:
      console.print(f"  {one['row']}: {'; '.join(told)}", highlight=False)
  for one in result["rejected"]:
    console.print(f"  without {one['row']}: {one['reason']}", highlight=False)
  for rule in result["rules"]:
    console.print(f"  rule for {rule['favours']}: {rule['says']} ({rule['source']})", highlight=False)
  for one, other in result["conflicts"]:
    console.print(f"  in conflict: “{one}” and “{other}”", highlight=False)
  if result["experiment"]:
    console.print(f"To settle it: {result['experiment']['command']}", highlight=False)
    console.print(f"  {result['experiment']['says']}", highlight=False)


def _ranges(known: Sequence[Mapping[str, Any]], scale: float) -> str:
  if not known:
    return fmt.NONE
  first, digits = known[0], 1 if scale > 1 else 3
  return f"{scale * first['low']:+.{digits}f} to {scale * first['high']:+.{digits}f}".replace("-", fmt.MINUS)
