"""Behaviour cloning in a small grid world, with a policy of one's own: a plain function.

peftjax train --config=examples/own_model/config.py --workdir=runs/walker
    full fine-tuning: 95.1 % of the moves in mazes that were not trained on lead nearer to the goal
peftjax train --config=examples/own_model/config.py:lora --workdir=runs/walker_lora
    LoRA on the fresh policy, its head trained whole: 95.5 %
peftjax train --config=examples/own_model/config.py --config.model.path=grid_nnx:make_model --workdir=runs/walker_nnx
    the same policy in NNX; grid_linen, grid_equinox and grid_haiku have it in these

288 updates of 64 positions, 3 minutes each on two shared cores.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from peftjax.config import default


def get_config(method: str = "full") -> ConfigDict:
  """The policy of grid_model.py by one method; the study sets LoRA beside full fine-tuning."""
  config = default()
  config.model.path = "grid_model:make_model"
  config.data.name = "grid_source:walks"
  config.task.name = "grid_task:Cloning"
  config.method.name = method
  if method == "lora":
    config.method.update({"rank": 8, "alpha": 16.0, "targets": ("layers.*", "see")})
  config.optim.learning_rate = 1e-2 if method == "lora" else 4e-3
  config.train.update({"batch_size": 64, "epochs": 12.0, "eval_batch_size": 128, "save_every": 144})
  config.train.final_splits = ("validation", "test")
  config.compare.methods = {
    "full": {},
    "lora": {
      "method": {"rank": 8, "alpha": 16.0, "targets": ("layers.*", "see")},
      "optim": {"learning_rate": 1e-2},
    },
  }
  config.compare.baseline = ""
  config.compare.timing_rounds = 0
  return config
