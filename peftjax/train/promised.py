"""What a config says of scores, held against what task and evaluators promise, before anything is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ml_collections import ConfigDict

from peftjax.data.extra_sets import RETAINED
from peftjax.errors import UserError, nearest
from peftjax.tasks import Metric, Task
from peftjax.train import best, scored
from peftjax.train.evaluators.base import Evaluator
from peftjax.train.evaluators.predict import Predict


def check(config: ConfigDict, task: Task, evaluators: Iterable[type[Evaluator]], splits: Mapping[str, int]) -> None:
  """Refuses in every verb what training would.

  Args:
    evaluators: the run's; of one that says its `specs` only as it is made nothing is claimed.
    splits: of the data, with their sizes; {}: nobody knows.

  Raises:
    UserError: `main_metric` names no metric, two metrics have one name; as `best.check` and `best.wanted`.
  """
  best.check(config)
  promised = {one: _specs(one, task) for one in evaluators}
  known = {_called(one, task): specs for one, specs in promised.items() if specs is not None}
  scored.check_names(known)
  names = [spec.name for specs in known.values() for spec in specs]
  if task.main_metric not in names and None not in promised.values():
    raise no_main(task, names)
  during = [specs for one, specs in promised.items() if "during" in one.moments]
  found = {spec.name: spec for specs in during for spec in specs or ()}
  split, _, name = config.train.best.partition("/")
  if None not in during or (name or task.main_metric) in found:
    best.wanted(config, found, task.main_metric, _evaluated(config, splits) if splits else (split,))


def no_main(task: Task, names: Iterable[str]) -> UserError:
  """The error of a task whose main metric nobody gives."""
  main = task.main_metric
  return UserError(f"task {task.name} has main_metric={main!r}, which is the name of none of its specs; "
                   f"{nearest(str(main), names)}")  # fmt: skip


def _specs(one: type[Evaluator], task: Task) -> Sequence[Metric] | None:
  if issubclass(one, Predict):
    return task.specs
  return one.specs if one.specs or one.__init__ is Evaluator.__init__ else None


def _called(one: type[Evaluator], task: Task) -> str:
  return f"task {task.name}" if issubclass(one, Predict) else f"the evaluator {one.name!r}"


def _evaluated(config: ConfigDict, splits: Mapping[str, int]) -> tuple[str, ...]:
  found = (*(["validation"] if "validation" in splits else ()), *([RETAINED] if config.data.retained else ()))
  return found or ("train",)
