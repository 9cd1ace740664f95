"""A run of Weights & Biases."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, ClassVar

from ml_collections import ConfigDict

from peftjax.train.writers.base import Begun, Writer, remember, remembered


class WandbRun(Writer):
  """A run of Weights & Biases; files of its own go below wandb/ in the run's folder. One that goes on keeps its id.

  Settings: project; mode: online, offline (`wandb sync` uploads later) or shared; entity: who owns it; group.
  """

  name: ClassVar[str] = "wandb"
  package: ClassVar[str] = "wandb"
  settings: ClassVar[Mapping[str, Any]] = {"project": "peftjax", "mode": "online", "entity": "", "group": ""}

  def __init__(self, begun: Begun, options: ConfigDict):
    super().__init__(begun, options)
    import wandb

    kept = begun.kept(self.name)
    identity = remembered(kept).get("id") or secrets.token_hex(4)
    self._run = wandb.init(
      id=identity,
      project=options.project,
      entity=options.entity or None,
      group=options.group or None,
      name=begun.folder.name,
      mode=options.mode,
      dir=str(begun.folder),
      config=dict(begun.config),
      resume="allow",
      reinit="create_new",  # several runs may be trained by one program
      settings=wandb.Settings(console="off", silent=True),
    )
    remember(kept, {"id": identity})
    self._run.define_metric("*", step_metric="step")  # its own count of steps never goes back, as a resumed run does

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Logs the numbers against "step"."""
    self._run.log({"step": step, **values})

  def close(self, failed: bool) -> None:
    """Ends the run; one that failed is marked so."""
    self._run.finish(exit_code=int(failed))
