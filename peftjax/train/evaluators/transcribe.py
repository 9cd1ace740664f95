"""The evaluator `transcribe`: what a model writes of the recordings of a split, and how that scores."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from peftjax.data.batching import subset
from peftjax.data.inputs.speech import Speech
from peftjax.data.loader import EvalLoader
from peftjax.errors import UserError
from peftjax.files import write_text
from peftjax.masks import combine
from peftjax.models.generate import rehearse
from peftjax.tasks import text_metrics
from peftjax.train.evaluators.base import Evaluated, Evaluator, Leaves, Moment
from peftjax.transcription import normalised, sampling_of, transcribe

if TYPE_CHECKING:
  from peftjax.train.run import Run

METRICS = ("word_error_rate", "character_error_rate")


def worst(row: Mapping[str, Any]) -> float:
  """What rows are sorted by: less the error rate, which is infinite where nothing is said and something written."""
  rate = row["word_error_rate"]
  return -(rate if rate is not None else math.inf if row["text"] else 0.0)


class Transcribe(Evaluator):
  """Writes for the first `evaluators.transcribe.examples` of a split (0: all), in an order that no seed changes.

  ``transcripts-SPLIT.jsonl`` holds {"index", "where", "target", "text", "word_error_rate"} of every example, the worst
  first, so that a person reads what went wrong; the rate is null where nothing is said.

  Settings beside that number: max_new_tokens, for a window of a recording, 0: what the model has positions for;
  num_beams; normalise, whether case and punctuation are left out of the comparison.
  """

  name = "transcribe"
  settings = {"examples": 64, "max_new_tokens": 0, "num_beams": 1, "normalise": True}
  specs = tuple(text_metrics.SPECS[name] for name in METRICS)

  def __init__(self, of: Run):
    super().__init__(of)
    for name, kind in (("examples", int), ("max_new_tokens", int), ("num_beams", int), ("normalise", bool)):
      value = self.options[name]
      if type(value) is not kind or (kind is int and value < (name == "num_beams")):
        raise UserError(f"evaluators.transcribe.{name}={value!r}: expected {kind.__name__}, none below "
                        f"{int(name == 'num_beams')}")  # fmt: skip
    if jax.process_count() > 1:
      raise UserError("evaluators.transcribe: a run over several processes does not transcribe; "
                      "use peftjax eval on one machine")  # fmt: skip

  def check(self, loader: EvalLoader) -> None:
    """Traces what a window would run."""
    inputs, model = self._inputs(loader), self.of.model
    features = jax.ShapeDtypeStruct(inputs.spec(1, 1)["input_features"].shape, np.dtype(np.float32))
    rehearse(model, inputs.form.first, self._sampling(inputs), {"input_features": features})

  def run(self, leaves: Leaves, loader: EvalLoader) -> Evaluated:
    inputs = self._inputs(loader)
    model = self.of.model.with_params(combine(leaves.trainable, leaves.frozen))
    count = len(loader.source)
    chosen = np.sort(subset(count, min(self.options.examples or count, count)))
    examples = [loader.source[int(at)] for at in chosen]
    texts = transcribe(
      model,
      [inputs.samples(one) for one in examples],
      inputs.form,
      self._sampling(inputs),
      min(self.of.config.train.eval_batch_size, 8),
    )
    compared = [(self._form(text), self._form(one["text"])) for text, one in zip(texts, examples, strict=True)]
    rows: list[dict[str, Any]] = [
      {
        "index": int(at),
        "where": str(one.get("where", "")),
        "target": one["text"],
        "text": text,
        "word_error_rate": text_metrics.word_error_rate([found], [wanted]) if wanted else None,
      }
      for at, one, text, (found, wanted) in zip(chosen, examples, texts, compared, strict=True)
    ]
    scores = text_metrics.score(METRICS, [found for found, _ in compared], [wanted for _, wanted in compared])
    return Evaluated(scores, sorted(rows, key=worst))

  def save(self, folder: Path, split: str, moment: Moment, rows: list[dict[str, Any]]) -> None:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    name = f"{split}-before" if moment == "before" else split
    write_text(folder / f"transcripts-{name}.jsonl", "".join(lines))

  def _form(self, text: str) -> str:
    return normalised(text) if self.options.normalise else text.strip()

  def _sampling(self, inputs: Speech) -> Any:
    options = self.options
    return sampling_of(self.of.model, inputs.form, options.max_new_tokens, options.num_beams)

  def _inputs(self, loader: EvalLoader) -> Speech:
    if not isinstance(loader.inputs, Speech):
      raise UserError(f"evaluators.transcribe: recordings come from the input speech, not from "
                      f"{type(loader.inputs).__name__}")  # fmt: skip
    return loader.inputs
