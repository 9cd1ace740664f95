"""The user's own code that a config names: what was trained with one state of it does not go on with another.

A run keeps it in its checkpoints, with that of a position in the data, and in its summary; a study with its trials,
whose differences mean nothing unless they share it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from peftjax import own_digest, registry
from peftjax.errors import UserError

_NOT_RUN = ("compare", "guide", "writers", "train.writers")  # fields that decide nothing of a run's numbers
_SCORES = ("evaluators", "train.evaluators")  # and those that decide nothing of its updates


def code_of(config: ConfigDict) -> dict[str, str]:
  """The code of the user's own that a run's config and its task name: ``module:Name`` -> hex digest of all that it
  reaches.

  Args:
    config: one whose names this process has resolved; others have no digest.
  """
  return digests(names_of(config))


def names_of(config: ConfigDict, scores: bool = True) -> list[str]:
  """The names of `code_of`.

  Args:
    scores: whether the evaluators count, too; without, what the updates follow from. The one that decides what is best
      is the run's to add.
  """
  return _plain(name for _, name in _named(config, scores) if registry.is_named(name))


def digests(names: Iterable[str]) -> dict[str, str]:
  """``module:Name`` -> hex digest of all that it reaches; of sources without the rest, of empty names nothing."""
  return {name: own_digest.of_name(name) for name in _plain(names)}


def _plain(names: Iterable[str]) -> list[str]:
  return sorted({_without_rest(one) for one in names if one})


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
  if not code_changed and (changed := _changed(kept, now)):
    raise UserError(
      f"{what} comes from other code of {', '.join(changed)}: use another --workdir, or, where it was a "
      f"correction that changes no result, --config.data.code_changed=True"
    )


def check_finished(kept: Mapping[str, str], config: ConfigDict, place: Path) -> None:
  """Checks that the summary of a finished run is that of the code that there is now, which is imported for it.

  Args:
    kept: what `code_of` gave when the run was trained; {} of earlier versions, which lets all pass.
    config: of the run; `data.code_changed` asks for the summary as it is.
    place: the run's folder, for the error.

  Raises:
    UserError: the code has changed, or cannot be imported.
  """
  if config.data.code_changed:
    return
  for field, name in _named(config, scores=True):  # a task's own names once it is imported
    if name in kept:
      registry.resolve(field, name, {})
  if changed := _changed(kept, code_of(config)):
    raise UserError(
      f"{place} is finished, but the code of {', '.join(changed)} has changed since, and its summary is that of the "
      f"old code: use another --workdir to train anew, or --config.data.code_changed=True for the old summary"
    )


def _changed(kept: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
  return [name for name, digest in now.items() if digest != kept.get(name, digest)]


def _without_rest(name: str) -> str:
  return ":".join(name.split(":")[:2])


def _named(config: ConfigDict, scores: bool) -> Iterator[tuple[str, str]]:
  """(field, what may be a ``module:Name`` in it) of a config, then of its task, if that is the user's own."""
  left_out = _NOT_RUN if scores else (*_NOT_RUN, *_SCORES)
  yield from _texts(config.to_dict(), left_out)
  name = str(config.task.name)
  where, _, attribute = name.rpartition(":")
  task = getattr(sys.modules.get(registry.module_of(where)), attribute, None) if registry.is_named(name) else None
  yield from _texts(getattr(task, "input", ""), at=f"{name}.input")
  yield from _texts(getattr(task, "evaluators", ()) if scores else (), at=f"{name}.evaluators")


def _texts(value: Any, left_out: tuple[str, ...] = (), at: str = "") -> Iterator[tuple[str, str]]:
  if isinstance(value, str):
    if ":" in value:
      yield at, _without_rest(value)
  elif isinstance(value, Mapping):
    for name, one in value.items():
      if (place := f"{at}.{name}" if at else name) not in left_out:
        yield from _texts(one, left_out, place)
  elif isinstance(value, list | tuple):
    for one in value:
      yield from _texts(one, at=at)
