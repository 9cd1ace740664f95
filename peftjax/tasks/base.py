"""The protocol of a task, and the arithmetic that tasks share.

A batch is a dict of arrays whose first axis is the example. `weight` [B] float32 is 0 for rows that only fill the
batch; `labels` and `index` go to the task, everything else to the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from peftjax.config.checking import own_settings
from peftjax.data.sources.types import CAUSAL_LM, OTHER_LABELS, OWN_SHARE, Header, Source
from peftjax.errors import UserError
from peftjax.tasks.metric import Metric

Batch = Mapping[str, Any]
# The model's inputs -> its outputs; parameters are bound. `forward(inputs, key)` draws dropout from a key of its own,
# for a loss of several passes; outside training there is no dropout.
Forward = Callable[..., Mapping[str, jax.Array]]
Arrays = dict[str, Any]
Row = dict[str, Any]

# Fields that `config.task` has for all tasks -> what is said of a task that does not read them
NOT_READ = {
  "num_labels": "has no number of classes to set",
  "label_smoothing": "trains without it",
  **dict.fromkeys(
    GENERATION := ("generate", "generate_examples", "max_new_tokens", "num_beams", "text_metrics"), "writes no text"
  ),
}
NOT_INPUTS = ("labels", "weight", "index", OTHER_LABELS, OWN_SHARE)


class Task(Protocol):
  """What training and evaluation ask of a task; `loss` and `predict` are traced, the rest runs on the host.

  Attributes:
    name: as `config.task.name` has it.
    head: what the model computes, as a family's architectures name it: the head that is built.
    label_names, num_labels: of the head.
    specs: what `metrics` gives, one `Metric` for each.
    main_metric: the metric that stands for the task where one number is wanted.
    fields: what an example holds that it can be trained on (`Header.fields`), where no data is there to say; of a task
      of the user's own, what the data must hold.
    target_fields: those of `fields` that only the loss and the scores read, beside `label`: new examples may lack them,
      and the input's `encode` is then given none.
    settings: fields of `config.task` that are the task's own -> their defaults.
    reads: fields of `NOT_READ` that mean something to it, beside those of generation where it `writes_text`; other
      values than the default of the others are refused.
    input: the kind of input that it needs (`peftjax.data.inputs.INPUTS`); empty: what reads the data's examples.
    collate: of the input `tokens`, how examples stand in rows (`peftjax.data.inputs.tokens.COLLATES`).
    needs_no_labels: any example has a loss, whatever it is labelled with.
    writes_text: the model can write what it is trained to: the evaluator `generate` scores that.
    evaluators: those that every evaluation runs (`peftjax.train.evaluators.EVALUATORS`).
  """

  name: str
  head: str
  label_names: tuple[str, ...]
  num_labels: int
  specs: tuple[Metric, ...]
  main_metric: str
  fields: tuple[str, ...] = ()
  target_fields: tuple[str, ...] = ()
  settings: ClassVar[Mapping[str, Any]] = {}
  reads: ClassVar[tuple[str, ...]] = ("num_labels",)
  input: str = ""
  collate: str = "text"
  needs_no_labels: bool = False
  writes_text: bool = False
  evaluators: tuple[str, ...] = ("predict",)

  @classmethod
  def make(cls, settings: ConfigDict, header: Header) -> Task:
    """The task over a data set.

    Args:
      settings: `config.task`.
      header: of the data; its label names may have been extended by `task.num_labels`.

    Raises:
      UserError: a setting or the data does not suit the task.
    """
    raise NotImplementedError

  def of_model(self, folder: Path | None) -> Task:
    """The task for the model in a folder, of which it may read what no module holds, such as a pipeline's noise.

    Args:
      folder: None of a model of the user's own.

    Raises:
      UserError: the folder does not suit the task.
    """
    del folder
    return self

  def outputs(self, batch: Batch) -> dict[str, tuple[int, ...]]:
    """The shapes of what `loss` reads of the model's outputs, by name: a model of the user's own is held against them.

    Args:
      batch: of shapes.

    Returns:
      Under "" the shape of an output that is one array; {}: nothing is known of them.
    """
    del batch
    return {}

  def loss(self, forward: Forward, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, Arrays]:
    """(sum of weighted losses, sum of weights, extra sums): float32 scalars, so that micro-batches add up exactly.

    Args:
      key: for what the loss itself draws (noise, masks, time steps); dropout has another.
    """
    raise NotImplementedError

  def encode(self, forward: Forward, name: str, raw: jax.Array) -> Arrays:
    """What a frozen part of the model gives of some examples, to be kept in place of what it reads; traceable.

    Args:
      name: of what is kept, as `input.cache` has it.
      raw: what is encoded, its first axis the example.

    Raises:
      UserError: the task keeps nothing.
    """
    raise UserError(f"input.cache: task {self.name!r} trains what would be kept of {name}")

  def predict(self, forward: Forward, batch: Batch) -> Arrays:
    """Arrays whose first axis is the example, with "loss" [B] among them, and "weight" where the metrics weigh by it
    (rows that only fill a batch are left out without it); what is drawn for an example must follow from its `index`, so
    that evaluations repeat."""
    raise NotImplementedError

  def inputs(self, batch: Batch) -> dict[str, Any]:
    """The part of a batch that the model reads, in one of its passes if the task has several."""
    return model_inputs(batch)

  def finish(self, predictions: dict[str, np.ndarray], source: Source) -> dict[str, np.ndarray]:
    """The predictions with what the examples as they are stored add to them on the host: texts of spans, sizes of
    images. Where examples give several rows, one prediction an example is made of theirs.

    Args:
      predictions: what `predict` gave, and "index" [N], in its order.
      source: the split's examples by that index.

    Returns:
      What `per_example` and `metrics` take, with "index" and "loss", one of each for every example.
    """
    del source
    return predictions

  def per_example(self, predictions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the metrics are computed from, one row an example: a study resamples these. Arrays of numbers or texts whose
    first axis is the example; what a metric's `value`, `numerator` or `denominator` names is one number for each."""
    raise NotImplementedError

  def answers(self, predictions: Mapping[str, np.ndarray], source: Source) -> list[Row]:
    """What a user is told of each of some new examples, ready for JSON, from what `finish` gave; their labels, and with
    them "loss" and "labels", mean nothing. By default every other array."""
    del source
    names = [name for name in predictions if name not in ("index", "loss", "weight", "labels")]
    return [{name: predictions[name][row].tolist() for name in names} for row in range(len(predictions["index"]))]

  def metrics(self, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Metrics over all examples, from what `predict` and `finish` gave: a number for each of `specs`, NaN where there
    is none. One of kind "per-example" or "ratio" is the mean or the ratio of its rows of `per_example`."""
    raise NotImplementedError


def own_setting(task: type[Task], settings: Mapping[str, Any], name: str) -> Any:
  """A task's own field of `config.task`, or its default."""
  return settings.get(name, task.settings[name])


def check_read(name: str, task: type[Task], settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
  """Raises `UserError` for a field of `NOT_READ` that the task does not read, with another value than its default."""
  read = (*task.reads, *(GENERATION if task.writes_text else ()))
  for field, why in NOT_READ.items():
    if field not in read and settings.get(field, defaults[field]) != defaults[field]:
      raise UserError(f"task.{field}={settings[field]!r}: task {name!r} {why}")


def check_settings(name: str, task: type[Task] | None, settings: Mapping[str, Any], known: Mapping[str, Any]) -> None:
  """Raises `UserError` for a field of `config.task` that is neither the task's own nor in the default config, and for
  one of its own that is of another type than its default."""
  own_settings("task", settings, task.settings if task else {}, task or Task, f"task {name}", known)


def check_data(name: str, header: Header) -> None:
  """Raises `UserError` if the data is for another task than `name`, of those that text data is told apart for."""
  if header.task == CAUSAL_LM:
    raise UserError(
      f"{header.name} has no label column that is known by its name; set data.label_column to one of "
      f"{', '.join(header.columns)}, or data.source_column and data.target_column, or task.name=causal_lm"
    )
  if header.task not in ("", name):
    raise UserError(f"task.name={name!r}, but {header.name} holds data for {header.task!r}")


def model_inputs(batch: Batch) -> dict[str, Any]:
  """The part of a batch that the model reads."""
  return {name: array for name, array in batch.items() if name not in NOT_INPUTS}


def cross_entropy(
  logits: jax.Array, labels: jax.Array, smoothing: float = 0.0, class_weights: Sequence[float] = ()
) -> jax.Array:
  """-sum_c w_c q_c log softmax(logits)_c in float32, q = (1 - smoothing) onehot(labels) + smoothing / C.

  Args:
    logits: [..., C].
    labels: [...] integers in [0, C).
    class_weights: w, [C]; all 1 without.

  Returns:
    [...] float32.
  """
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
  if class_weights:
    log_probs = log_probs * jnp.asarray(class_weights, jnp.float32)
  chosen = jnp.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0]
  return -(1.0 - smoothing) * chosen - smoothing * log_probs.mean(axis=-1)


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> float:
  """The mean in float64; NaN if all weights are 0."""
  total = np.sum(weights, dtype=np.float64)
  return float(np.sum(values.astype(np.float64) * weights) / total) if total else float("nan")
