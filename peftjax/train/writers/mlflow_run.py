"""A run of MLflow."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, ClassVar

from ml_collections import ConfigDict

from peftjax.masks import flatten
from peftjax.train.writers.base import Begun, Writer, remember, remembered

_LONGEST = 500  # characters of a parameter that every version stores
_AT_ONCE = 100  # parameters of a request


class MlflowRun(Writer):
  """A run of MLflow, on the server or in the store of `tracking_uri`; one that goes on keeps its id.

  Settings: tracking_uri, such as http://127.0.0.1:5000; empty: what MLFLOW_TRACKING_URI says. experiment.
  """

  name: ClassVar[str] = "mlflow"
  package: ClassVar[str] = "mlflow"
  settings: ClassVar[Mapping[str, Any]] = {"tracking_uri": "", "experiment": "peftjax"}

  def __init__(self, begun: Begun, options: ConfigDict):
    super().__init__(begun, options)
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    self._metric = Metric
    self._client = MlflowClient(tracking_uri=options.tracking_uri or None)
    self._last: dict[str, int] = {}  # number -> the last step that it was logged of before this process
    kept = begun.kept(self.name)
    self._id = remembered(kept).get("id", "")
    if self._id:
      self._client.set_terminated(self._id, "RUNNING")
      return
    found = self._client.get_experiment_by_name(options.experiment)
    experiment = found.experiment_id if found else self._client.create_experiment(options.experiment)
    self._id = self._client.create_run(experiment, run_name=begun.folder.name).info.run_id
    remember(kept, {"id": self._id})
    fields = flatten({name: one for name, one in begun.config.items() if name != "resolved"})
    params = [Param(name, str(value)[:_LONGEST]) for name, value in fields.items() if str(value)]
    for start in range(0, len(params), _AT_ONCE):
      self._client.log_batch(self._id, params=params[start : start + _AT_ONCE])

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Logs the numbers, but for those of steps that the run has logged before it was interrupted."""
    now = int(1000 * time.time())
    fresh = {name: value for name, value in values.items() if step > self._logged(name)}
    metrics = [self._metric(name, float(value), now, step) for name, value in fresh.items()]
    if metrics:
      self._client.log_batch(self._id, metrics=metrics)

  def close(self, failed: bool) -> None:
    """Ends the run; one that failed is marked so."""
    self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")

  def _logged(self, name: str) -> int:
    if name not in self._last:
      history = self._client.get_metric_history(self._id, name) if self.begun.start else []
      self._last[name] = max((one.step for one in history), default=-1)
    return self._last[name]
