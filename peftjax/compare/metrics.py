"""The metrics of a study as its task describes them: `Metric` by name, "metrics_spec" in runs' and studies' files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftjax.stored import made
from peftjax.tasks.metric import Metric

SHARE = Metric("share", "per-example", share=True)  # of what is counted by a study itself

NATS = "nats a token"  # of language models' losses

# Of records and summaries that were written before runs described their metrics.
EARLIER = {
  one.name: one
  for one in (
    Metric("accuracy", "per-example", share=True, value="correct"),
    *(Metric(name, "corpus", share=True) for name in ("f1", "macro_f1", "micro_f1", "precision", "recall")),
    Metric("exact_match", "corpus", share=True),
    Metric("log_likelihood", "ratio", NATS, numerator=("losses",), denominator=("tokens",), sign=-1.0),
    *(Metric(name, "corpus", higher_is_better=False) for name in ("loss", "perplexity", "mse")),
  )
}


def specs_in(found: Mapping[str, Any], main: str) -> dict[str, Metric]:
  """The metrics of a summary or a record, as JSON; of an earlier version, by their names.

  Args:
    main: the main metric, which there always is.
  """
  held = found.get("metrics_spec")
  if held:
    return {name: made(Metric, one) for name, one in held.items()}
  names = dict.fromkeys([main, *(name for scores in (found.get("metrics") or {}).values() for name in scores)])
  specs = {name: spec_of(name, {}) for name in names}
  if "log_likelihood" in names:
    specs["loss"] = Metric("loss", "corpus", NATS, higher_is_better=False)
  return specs


def spec_of(name: str, specs: Mapping[str, Metric]) -> Metric:
  """A metric by its name; one that no task described is a plain number of which more is better."""
  return specs.get(name) or EARLIER.get(name) or Metric(name, "corpus")
