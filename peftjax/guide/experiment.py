"""The cheapest study that would settle a choice between methods, and its whole command."""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict


def experiment(
  chosen: Mapping[str, Mapping[str, Any]], spread: float | None, flops: int, config: ConfigDict, words: Sequence[str]
) -> dict[str, Any] | None:
  """Seeds for a difference of two points at 80% power; None where there is nothing to choose between.

  Args:
    chosen: row -> its fields of `config.method`, the best one first.
    spread: of the differences over seeds, where it is known; one point without.
    flops: of one pass over the examples, of all rows.
    config: of the user; words: of the command line that made it, which the command repeats.

  Returns:
    `rows`, `seeds`, `spread_of_differences`, `spread_is_assumed`, `training_flops` of these rows, `command`, `says`.
  """
  if len(chosen) < 2:
    return None
  rows = _study_rows(chosen, config)
  deviation = 0.01 if spread is None else spread
  seeds = max(3, math.ceil(2 + ((1.96 + 0.84) * deviation / 0.02) ** 2))
  is_part = bool(config.compare.rows) or not set(config.compare.methods) <= set(rows)
  flags = [*_repeated(words), *_flags(dict(zip(rows, chosen.values())), seeds, is_part)]
  return {
    "rows": rows,
    "seeds": seeds,
    "spread_of_differences": deviation,
    "spread_is_assumed": spread is None,
    "training_flops": flops * seeds,
    "command": " ".join(["peftjax compare --workdir=runs/decide", *map(shlex.quote, flags)]),
    "says": f"tells {rows[0]} from {rows[1]} by two points in four of five studies"
    + (", if seeds spread by one point" if spread is None else ""),
  }


def free(name: str, taken: Collection[str]) -> str:
  """A name that is not taken yet.

  >>> free("lora", ("lora", "lora-2"))
  'lora-3'
  """
  numbered = (f"{name}-{number}" for number in itertools.count(2))
  return next(one for one in itertools.chain([name], numbered) if one not in taken)


def _study_rows(chosen: Mapping[str, Mapping[str, Any]], config: ConfigDict) -> list[str]:
  """A row of the study for each that is chosen.

  A row of `compare.methods` is taken where it is the same method and nothing more, and none of them is changed.
  """
  held, rows = config.compare.methods.to_dict(), list[str]()
  for row, method in chosen.items():
    same = [name for name, overrides in held.items()
            if set(overrides) <= {"method"} and {"name": name, **overrides.get("method", {})} == method]  # fmt: skip
    rows.append(same[0] if same else free(row, held))
  return rows


def _repeated(words: Sequence[str]) -> list[str]:
  """The words that a study reads: each of its rows has a method of its own, and `_flags` says what is compared."""
  left_out = ("guide.", "method.", *(f"compare.{name}=" for name in ("rows", "reference", "baseline", "seeds")))
  return [word for word in words if not word.startswith(tuple(f"--config.{one}" for one in left_out))]


def _flags(methods: Mapping[str, Mapping[str, Any]], seeds: int, is_part: bool) -> list[str]:
  """What is compared; `is_part`: of the rows that the config has."""
  fields: dict[str, Any] = {"rows": tuple(methods)} if is_part else {}
  fields |= {"reference": next(iter(methods)), "baseline": "", "seeds": tuple(range(seeds))}
  for row, method in methods.items():
    fields |= {f"methods.{row}.method.{field}": value for field, value in sorted(method.items())}
  return [f"--config.compare.{name}={str(value).replace(' ', '')}" for name, value in fields.items()]
