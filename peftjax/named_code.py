"""The user's own code that a config names: what was trained with one state of it does not go on with another.

A run keeps it in its checkpoints, a study with its trials, whose differences mean nothing unless they share it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from peftjax import own_digest, registry
from peftjax.errors import UserError

_NOT_RUN = ("compare", "guide", "writers", "train.writers")  # fields that decide nothing of a run's numbers
_SCORES = ("evaluators", "train.evaluators")  # and those that decide nothing of its updates


def code_of(config: ConfigDict, scores: bool = True) -> dict[str, str]:
  """The code of the user's own that a run's config and its task name: ``module:Name`` -> hex digest of all that it
  reaches.

  Args:
    config: one whose names this process has resolved; others have no digest.
    scores: whether the evaluators count, too; without, what the updates follow from.
  """
  left_out = _NOT_RUN if scores else (*_NOT_RUN, *_SCORES)
  texts = (*_texts(config.to_dict(), left_out), *_of_task(str(config.task.name), scores))
  names = {":".join(text.split(":")[:2]) for text in texts if ":" in text}
  return {name: own_digest.of_name(name) for name in sorted(names) if registry.is_named(name)}


def check_code(kept: Mapping[str, str], config: ConfigDict, place: Path) -> None:
  """Checks that what was trained was trained with the code that there is now.

  Args:
    kept: what `code_of` gave then; {} of earlier versions.
    config: of the run; `data.code_changed` lets a correction pass.
    place: its folder, for the error.

  Raises:
    UserError: the code has changed.
  """
  if not kept or config.data.get("code_changed", False):
    return
  changed = [name for name, digest in code_of(config).items() if digest != kept.get(name, digest)]
  if changed:
    raise UserError(
      f"{place} was trained with other code of {', '.join(changed)}: use another --workdir, or, where it was a "
      f"correction that changes no result, --config.data.code_changed=True"
    )


def _of_task(name: str, scores: bool) -> Iterator[str]:
  """The input that a task of the user's own names itself, and its evaluators."""
  where, _, attribute = name.rpartition(":")
  task = getattr(sys.modules.get(registry.module_of(where)), attribute, None) if registry.is_named(name) else None
  yield from _texts([getattr(task, "input", ""), getattr(task, "evaluators", ()) if scores else ()])


def _texts(value: Any, left_out: tuple[str, ...] = (), at: str = "") -> Iterator[str]:
  if isinstance(value, str):
    yield value
  elif isinstance(value, Mapping):
    for name, one in value.items():
      if (place := f"{at}{name}") not in left_out:
        yield from _texts(one, left_out, f"{place}.")
  elif isinstance(value, list | tuple):
    for one in value:
      yield from _texts(one)
