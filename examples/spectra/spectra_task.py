"""A task: the kind of light, learned from labels of which some are doubted."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.tasks import Metric, Task
from peftjax.tasks.base import cross_entropy, model_inputs, own_setting


class Kind(Task):
  """Cross entropy; in training, a label is replaced by any with the probability `task.doubt`."""

  name = "spectra_task:Kind"
  head = "text_classification"
  fields = ("spectrum", "label")
  input = "spectra_input:Levels"
  evaluators = ("predict", "spectra_evaluator:Far")
  settings = {"doubt": 0.0}
  main_metric = "accuracy"
  specs = (
    Metric("loss", "per-example", value="loss", unit="nats", higher_is_better=False),
    Metric("accuracy", "per-example", value="correct", share=True),
  )

  def __init__(self, label_names, doubt):
    self.label_names, self.num_labels, self.doubt = label_names, len(label_names), doubt

  @classmethod
  def make(cls, settings, header):
    return cls(header.label_names, own_setting(cls, settings, "doubt"))

  def loss(self, forward, batch, key):
    which, what = jax.random.split(key)
    doubted = jax.random.bernoulli(which, self.doubt, batch["labels"].shape)
    any_label = jax.random.randint(what, batch["labels"].shape, 0, self.num_labels)
    labels = jnp.where(doubted, any_label, batch["labels"])
    losses = cross_entropy(forward(model_inputs(batch))["logits"], labels)
    return (losses * batch["weight"]).sum(), batch["weight"].sum(), {}

  def predict(self, forward, batch):
    logits = forward(model_inputs(batch))["logits"]
    losses = cross_entropy(logits, batch["labels"])
    return {"found": logits.argmax(-1), "labels": batch["labels"], "loss": losses, "weight": batch["weight"]}

  def per_example(self, predictions):
    found, labels = predictions["found"], predictions["labels"]
    return {"prediction": found, "label": labels, "correct": (found == labels).astype(np.int32)}

  def metrics(self, predictions):
    correct = self.per_example(predictions)["correct"]
    return {"loss": float(predictions["loss"].mean()), "accuracy": float(correct.mean())}
