"""How Hugging Face PEFT chooses modules by name, restated so that what is written here means the same there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from peftjax import masks
from peftjax.patterns import full_match

# Modules that PEFT adds to modules_to_save by itself for a task type; a model has one of them.
TASK_HEADS: dict[str, tuple[str, ...]] = {
  "SEQ_CLS": ("classifier", "score"),
  "TOKEN_CLS": ("classifier", "score"),
  "QUESTION_ANS": ("qa_outputs",),
}


def is_targeted(config: Mapping[str, Any], name: str) -> bool:
  """Whether PEFT puts an adapter on the module called `name`.

  Args:
    config: adapter_config.json; `target_modules`, `exclude_modules`, `target_parameters`, `layers_to_transform`,
      `layers_pattern` and `modules_to_save` are read.
  """
  exclude, targets = config.get("exclude_modules"), config.get("target_modules")
  if exclude and _names(exclude, name):
    return False
  if any(full_match(rf"(^|.*\.){entry}($|\..*)", name) for entry in config.get("modules_to_save") or ()):
    return False
  if _names(config.get("target_parameters") or (), f"{name}.weight"):
    return True
  if not targets or not _names(targets, name):
    return False
  layers = config.get("layers_to_transform")
  if isinstance(targets, str) or name in targets or layers is None or layers == []:
    return True
  index = _layer_index(config.get("layers_pattern"), name)
  return index is not None and index in ([layers] if isinstance(layers, int) else layers)


def _names(entries: str | Iterable[str], name: str) -> bool:
  if isinstance(entries, str):
    return full_match(entries, name)
  return any(name == entry or name.endswith("." + entry) for entry in entries)


def _layer_index(patterns: str | list[str] | None, name: str) -> int | None:
  if not patterns:
    match = re.match(r".*?\.[^.]*\.(\d+)\.", name)
    return int(match[1]) if match else None
  for pattern in [patterns] if isinstance(patterns, str) else patterns:
    for number in re.finditer(r"\.(\d+)(?=\.)", name):
      if full_match(rf"(?:^|.*?\.){pattern}", name[: number.start()]):
        return int(number[1])
  return None


def is_saved(entries: Iterable[str], module: str) -> bool:
  """Whether `modules_to_save` covers a module: an entry is the end of its name, or of a module's that it lies in."""
  parts = module.split(".")
  ancestors = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
  return any(one.endswith(entry) for entry in entries for one in ancestors)


def exact_patterns(chosen: set[str], names: Iterable[str]) -> masks.Patterns:
  """Patterns that match `chosen` and nothing else among `names`: the names themselves where that is enough."""
  entries = tuple(sorted(chosen))
  if {name for name in names if masks.matches(entries, name)} == chosen:
    return entries
  return "|".join(re.escape(entry) for entry in entries)
