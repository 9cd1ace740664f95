"""What tasks say of their metrics: each follows from the rows of the examples as its `Metric` says."""

from __future__ import annotations

import numpy as np
import pytest

from peftjax import tasks
from peftjax.data.sources.types import Header
from peftjax.errors import UserError
from peftjax.tasks.metric import Metric


def from_rows(spec: Metric, rows: dict[str, np.ndarray]) -> float:
  """A metric by its own description; None where only all examples at once give it."""
  if spec.kind == "per-example":
    return float(np.mean(rows[spec.value], dtype=np.float64))
  above, below = (
    sum(rows[name].sum(dtype=np.float64) for name in names) for names in (spec.numerator, spec.denominator)
  )
  return spec.sign * float(above / below)


def predictions(kind: str, rows: int = 9) -> dict[str, np.ndarray]:
  random = np.random.default_rng(0)
  loss, logits = random.random(rows, "f4"), random.normal(size=(rows, 3)).astype("f4")
  labels = {
    "one": random.integers(3, size=rows),
    "several": random.integers(2, size=(rows, 3)),
    "number": random.normal(size=rows).astype("f4"),
  }
  if kind in labels:
    given = {"logits": logits, "labels": labels[kind], "loss": loss, "weight": np.ones(rows, "f4")}
    return given | ({"loss": (logits[:, 0] - labels["number"]) ** 2} if kind == "number" else {})
  if kind == "answers":
    f1, answered = random.random(rows), random.integers(2, size=rows)
    counted = {"losses": loss.astype("f8"), "windows": np.ones(rows), "exact_match": (f1 > 0.5).astype(int), "f1": f1}
    return {**counted, "loss": loss, "answered": answered}
  if kind == "pairs":
    vectors = random.normal(size=(2, rows, 5))
    text, pair = (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype("f4")
    ids = {"text_id": np.arange(rows), "pair_id": rows + np.arange(rows)}
    return {"text": text, "pair": pair, **ids, "labels": labels["number"], "loss": loss,
            "weight": (labels["number"] > 0).astype("f4")}  # fmt: skip
  if kind == "noise":
    return {"loss": loss, "losses": loss[:, None], "latent_square": random.random(rows), "weight": np.ones(rows, "f4")}
  if kind == "tags":
    tags = random.integers(5, size=(2, rows, 4))
    return {"found": tags[0], "labels": tags[1], "loss": loss, "weight": np.full(rows, 4.0, "f4")}
  tokens = random.integers(2, 6, rows).astype("f4")
  return {"loss": loss, "weight": tokens, "hits": np.minimum(tokens, random.integers(0, 6, rows)).astype("f4")}


TASKS = {
  "one": tasks.make("text_classification", "abc"),
  "several": tasks.task_class("text_classification").make(
    tasks.config_lib.default().task, Header("", label_names=("a", "b", "c"), label_kind="classes")
  ),
  "number": tasks.make("text_classification"),
  "tags": tasks.make("token_classification", ("O", "B-X", "I-X", "B-Y", "I-Y")),
  "causal": tasks.make("causal_lm"),
  "seq2seq": tasks.make("seq2seq_lm"),
  "masked": tasks.make("masked_lm"),
  "answers": tasks.task_class("question_answering")(may_be_empty=True),
  "pairs": tasks.task_class("contrastive")(scored=True),
  "noise": tasks.make("denoising"),
}


@pytest.mark.parametrize("kind", TASKS)
def test_every_metric_is_described_and_follows_from_the_rows(kind):
  task, given = TASKS[kind], predictions(kind)
  metrics = task.metrics(given)
  rows = {"loss": given["loss"], **task.per_example(given)}
  assert [spec.name for spec in task.specs] == list(metrics)
  assert task.main_metric in metrics
  for spec in task.specs:
    if spec.kind != "corpus":
      assert from_rows(spec, rows) == pytest.approx(metrics[spec.name], rel=1e-6), spec.name
    assert 0 <= metrics[spec.name] <= 1 or not spec.share


def test_fields_of_a_task():
  with pytest.raises(UserError, match="did you mean 'class_weights'"):
    tasks.make("text_classification", "ab", class_weight=(1, 2))
  with pytest.raises(UserError, match="expected a number for each of a, b"):
    tasks.make("text_classification", "ab", class_weights=(1, 2, 3))
  for wrong in ((1, -1), (0, 0), (float("inf"), 1), (float("nan"), 1), (1, "2")):
    with pytest.raises(UserError, match="expected a number for each of a, b"):
      tasks.make("text_classification", "ab", class_weights=wrong)
  with pytest.raises(UserError, match="no such field of task causal_lm"):
    tasks.make("causal_lm", class_weights=(1, 2))
  with pytest.raises(UserError, match="label_smoothing=0.1: expected 0 where a number is predicted"):
    tasks.make("text_classification", label_smoothing=0.1)
