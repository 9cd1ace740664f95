"""What tasks and evaluators give as scores and their specs do not say: one line each."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from peftjax.errors import UserError
from peftjax.tasks import Metric
from peftjax.train import scored

LOSS = Metric("loss", "per-example", value="loss", higher_is_better=False)
RIGHT = Metric("right", "per-example", value="right", share=True)
F1 = Metric("f1", "ratio", share=True, numerator=("hits", "hits"), denominator=("found", "true"))
ERRORS = Metric("errors", "ratio", share=True, higher_is_better=False, numerator=("wrong",), denominator=("words",))
LOGS = Metric("logs", "ratio", numerator=("wrong",), denominator=("words",), sign=-1.0)
MCC = Metric("mcc", "corpus")


@pytest.mark.parametrize(
  ("specs", "said"),
  [
    ({"task t": (LOSS,), "the evaluator 'far'": (LOSS,)}, "evaluator 'far' has a metric 'loss' and task t has one too"),
    ({"the evaluator 'far'": (MCC, MCC)}, "'mcc' twice: one would replace the other"),
    ({"task t": (Metric("step", "corpus"),)}, "'step', which rows of metrics.jsonl hold already"),
    ({"task t": "loss"}, r"specs='loss'; expected a tuple of peftjax.tasks.Metric"),
  ],
)
def test_names_that_clash(specs, said):
  with pytest.raises(UserError, match=said):
    scored.check_names(specs)


@pytest.mark.parametrize(
  ("specs", "metrics", "said"),
  [
    ((MCC,), {"mmc": 0.3}, r"t gives mmc; its specs name 'mcc' too \(nan where there is no value\)"),
    ((MCC,), {"mcc": 0.3, "mc": 0.3}, "t gives 'mc', which none of its specs names; did you mean 'mcc'"),
    ((), {"mcc": 0.3}, "which none of its specs names"),
    ((MCC,), {"mcc": np.zeros(3)}, r"'mcc': an array \[3\]; expected a number"),
    ((MCC,), {"mcc": None}, "'mcc': None; expected a number"),
    ((MCC,), {"mcc": 1j}, "'mcc': 1j; expected a number"),
    ((RIGHT,), {"right": 1.71}, "'right': 1.71; its spec says share=True, which is a number from 0 to 1"),
    ((ERRORS,), {"errors": -0.1}, "share=True, which is a number of at least 0"),
  ],
)
def test_metrics_that_are_none(specs, metrics, said):
  with pytest.raises(UserError, match=said):
    scored.numbers("t", metrics, specs)


def test_metrics_become_numbers():
  """Of numpy and JAX too; what is not finite stays, a share may be off by rounding, an error rate above 1."""
  specs = (MCC, RIGHT, ERRORS, LOSS)
  given = {"mcc": np.float32(0.5), "right": 1.0000001, "errors": 1.8, "loss": jnp.float32("nan")}
  found = scored.numbers("t", given, specs)
  assert {type(value) for value in found.values()} == {float} and np.isnan(found.pop("loss"))
  assert found == {"mcc": 0.5, "right": 1.0000001, "errors": 1.8}


ROWS = {"index": np.arange(4), "right": np.array([1, 0, 1, 1]), "loss": np.array([0.1, 0.2, 0.3, np.nan], np.float32),
        "hits": np.array([1, 0, 2, 1]), "found": np.array([1, 1, 2, 1]), "true": np.array([1, 0, 3, 1]),
        "wrong": np.array([0.0, 3.0, 1.0, 0.0]), "words": np.array([1, 1, 1, 1])}  # fmt: skip


@pytest.mark.parametrize(
  ("change", "said"),
  [
    ({"what": np.array([{"a": 1}] * 4, object)}, "t gives 'what' as Python objects; expected an array of numbers or"),
    ({"what": [[1], [1, 2], [], []]}, "'what' as Python objects"),
    ({"right": np.array([0, 1, 3, 1])}, "'right' from 0 to 3, and 'right' is its mean; its spec says share=True"),
    ({"right": np.zeros((4, 2))}, r"'right' float64\[4, 2\]; 'right' follows from it, and needs a number for each"),
    ({"hits": np.array(["a"] * 4)}, r"'hits' <U1\[4\]; 'f1' follows from it"),
    ({"words": np.zeros(3)}, r"'words' \[3\] for 4 examples"),
    ({"words": np.float32(3)}, r"'words' \[\] for 4 examples"),
  ],
)
def test_rows_that_are_none(change, said):
  specs = (RIGHT, F1, ERRORS, LOSS)
  scored.check_rows("t", ROWS, specs)
  with pytest.raises(UserError, match=said):
    scored.check_rows("t", ROWS | change, specs)


@pytest.mark.parametrize(
  ("spec", "value"), [(RIGHT, 0.75), (F1, 2 * 4 / 10), (ERRORS, 1.0), (LOGS, -1.0)], ids=lambda one: str(one)[:12]
)
def test_a_metric_is_what_its_rows_say(spec, value):
  for given in (value, value * (1 + 1e-6), float("nan")):
    scored.check_agreement("t", {spec.name: given}, ROWS, (spec,))
  with pytest.raises(UserError, match=rf"t: metrics gives '{spec.name}': 0.123, and the .* is {value:.6g}; studies"):
    scored.check_agreement("t", {spec.name: 0.123}, ROWS, (spec,))


def test_what_rows_do_not_say_is_not_held_against_a_metric():
  none = {**ROWS, "words": np.zeros(4)}
  scored.check_agreement("t", {"mcc": 0.3, "loss": 0.2}, ROWS, (MCC, LOSS))  # one row is not finite
  scored.check_agreement("t", {"errors": 0.3}, none, (ERRORS,))
  half = {"right": np.asarray(jnp.array([0.1, 0.2, 0.7], jnp.bfloat16))}
  scored.check_agreement("t", {"right": float(half["right"].mean())}, half, (RIGHT,))
