"""The user's own code that a config names: what was trained with one state of it does not go on with another.

A run keeps it in its checkpoints, with that of a position in the data, a study with its trials, whose differences mean
nothing unless they share it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
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
  return digests(text for text in texts if registry.is_named(_without_rest(text)))


def digests(names: Iterable[str]) -> dict[str, str]:
  """``module:Name`` -> hex digest of all that it reaches; of sources without the rest, of empty names nothing."""
  return {name: own_digest.of_name(name) for name in sorted({_without_rest(one) for one in names if one})}


def name_of(kind: type) -> str:
  """``module:Name`` of a class of the user's own; "" of one of this package."""
  return "" if own_digest.is_packaged(kind) else f"{kind.__module__}:{kind.__qualname__.partition('.')[0]}"


def check_code(kept: Mapping[str, str], now: Mapping[str, str], what: object, code_changed: bool) -> None:
  """Checks that what was made was made with the code that there is now.

  Args:
    kept: what `code_of` gave then; {} of earlier versions, which lets all pass, as a name that it lacks does.
    now: what it gives now.
    what: was made, such as a run's folder, for the error.
    code_changed: `config.data.code_changed`, which lets a correction pass.

  Raises:
    UserError: the code has changed.
  """
  changed = [name for name, digest in now.items() if digest != kept.get(name, digest)]
  if changed and not code_changed:
    raise UserError(
      f"{what} comes from other code of {', '.join(changed)}: use another --workdir, or, where it was a "
      f"correction that changes no result, --config.data.code_changed=True"
    )


def _without_rest(name: str) -> str:
  return ":".join(name.split(":")[:2])


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
