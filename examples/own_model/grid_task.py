"""A task: behaviour cloning, the expert's moves as a distribution over those that lead nearer to the goal."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.tasks import Metric, Task


class Cloning(Task):
  """Cross entropy to the expert, who takes each of the best moves equally often."""

  name = "grid_task:Cloning"
  head = ""
  fields = ("planes", "best", "label")
  input = "grid_input:Planes"
  main_metric = "optimal"
  specs = (
    Metric("loss", "per-example", value="loss", unit="nats", higher_is_better=False),
    Metric("optimal", "per-example", value="optimal", share=True),
  )

  def __init__(self, label_names):
    self.label_names, self.num_labels = label_names, len(label_names)

  @classmethod
  def make(cls, settings, header):
    del settings
    return cls(header.label_names)

  def outputs(self, batch):
    return {"": (*batch["weight"].shape, self.num_labels)}

  def _losses(self, forward, batch):
    logits = forward({"planes": batch["planes"]})
    expert = batch["best"] / jnp.maximum(batch["best"].sum(-1, keepdims=True), 1)
    return -(expert * jax.nn.log_softmax(logits)).sum(-1), logits

  def loss(self, forward, batch, key):
    del key
    losses, _ = self._losses(forward, batch)
    return (losses * batch["weight"]).sum(), batch["weight"].sum(), {}

  def predict(self, forward, batch):
    losses, logits = self._losses(forward, batch)
    return {"move": logits.argmax(-1), "best": batch["best"], "loss": losses, "weight": batch["weight"]}

  def per_example(self, predictions):
    move = predictions["move"]
    optimal = predictions["best"][np.arange(len(move)), move]
    return {"prediction": move, "label": predictions["best"].argmax(-1), "optimal": optimal.astype(np.int32)}

  def metrics(self, predictions):
    optimal = self.per_example(predictions)["optimal"]
    return {"loss": float(predictions["loss"].mean()), "optimal": float(optimal.mean())}
