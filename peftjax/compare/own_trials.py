"""The user's own code that a trial runs: the trials of a study share it, or their differences mean nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from peftjax import own_digest, registry
from peftjax.errors import UserError

_NOT_RUN = ("compare", "guide", "writers")  # sections that decide nothing of a trial's numbers


def code_of(config: ConfigDict) -> dict[str, str]:
  """The code of the user's own that a trial's config names: ``module:Name`` -> hex digest of all that it reaches.

  Args:
    config: one whose names this process has resolved; others have no digest.
  """
  sections = {name: one for name, one in config.to_dict().items() if name not in _NOT_RUN}
  names = {":".join(text.split(":")[:2]) for text in _texts(sections) if ":" in text}
  return {name: own_digest.of_name(name) for name in sorted(names) if registry.is_named(name)}


def check_code(kept: Mapping[str, str], config: ConfigDict, place: Path) -> None:
  """Checks that a finished trial was trained with the code that there is now.

  Args:
    kept: what `code_of` gave then; {} of earlier versions.
    config: the trial's; `data.code_changed` lets a correction pass.
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


def _texts(value: Any) -> Iterator[str]:
  if isinstance(value, str):
    yield value
  elif isinstance(value, Mapping):
    for one in value.values():
      yield from _texts(one)
  elif isinstance(value, list | tuple):
    for one in value:
      yield from _texts(one)
