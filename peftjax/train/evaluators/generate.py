"""The evaluator `generate`: what a language model writes for the prompts of a split, and how that scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from peftjax.data.extra_sets import RETAINED
from peftjax.data.inputs.tokens import Tokens
from peftjax.data.loader import EvalLoader
from peftjax.errors import UserError
from peftjax.files import write_text
from peftjax.masks import combine
from peftjax.models.generate import rehearse
from peftjax.tasks import text_metrics
from peftjax.text_generation import answers, prompts_of, sampling_for
from peftjax.train.evaluators.base import Evaluated, Evaluator, Leaves, Moment

if TYPE_CHECKING:
  from peftjax.train.run import Run

Row = dict[str, Any]


class Generate(Evaluator):
  """Writes for the first `task.generate_examples` of a split, in an order that no seed changes, so that all runs on the
  data write for the same ones. The metrics are those of `task.text_metrics`; ``generations-SPLIT.jsonl`` holds
  {"index", "prompt", "target", "text"} of every example.
  """

  name = "generate"

  def __init__(self, of: Run):
    super().__init__(of)
    settings = of.config.task
    text_metrics.check_names(settings.text_metrics)
    self.specs = tuple(text_metrics.SPECS[name] for name in settings.text_metrics)
    if not of.task.writes_text:
      raise UserError(f"task.generate: task {of.task.name!r} writes no text")
    if jax.process_count() > 1:
      raise UserError("task.generate: a run over several processes does not generate; use peftjax eval on one machine")

  def takes(self, loader: EvalLoader) -> bool:
    return loader.name != RETAINED  # retained text has no prompts

  def check(self, loader: EvalLoader) -> None:
    """Reads every prompt, and traces what the longest would run."""
    inputs, settings = self._inputs(loader), self.of.config.task
    longest = max((one.ids for _, one in prompts_of(loader, inputs, settings.generate_examples)), key=len)
    try:
      rehearse(self.of.model, longest, sampling_for(self.of.model, inputs, settings))
    except UserError as error:
      asked = f"split {loader.name!r}, task.max_new_tokens={settings.max_new_tokens}"
      raise UserError(f"task.generate: {asked}: {error}") from None

  def run(self, leaves: Leaves, loader: EvalLoader) -> Evaluated:
    inputs, settings = self._inputs(loader), self.of.config.task
    model = self.of.model.with_params(combine(leaves.trainable, leaves.frozen))
    chosen = prompts_of(loader, inputs, settings.generate_examples)
    sampling = sampling_for(model, inputs, settings)
    texts = answers(model, inputs, [one for _, one in chosen], sampling, self.of.config.train.eval_batch_size)
    rows: list[Row] = [
      {"index": index, "prompt": one.text, "target": one.target, "text": text}
      for (index, one), text in zip(chosen, texts, strict=True)
    ]
    return Evaluated(text_metrics.score(settings.text_metrics, texts, [row["target"] for row in rows]), rows)

  def save(self, folder: Path, split: str, moment: Moment, rows: list[Row]) -> None:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    name = f"{split}-before" if moment == "before" else split
    write_text(folder / f"generations-{name}.jsonl", "".join(lines))

  def _inputs(self, loader: EvalLoader) -> Tokens:
    if not isinstance(loader.inputs, Tokens):
      raise UserError(f"task.generate: prompts come from the input tokens, not from {type(loader.inputs).__name__}")
    return loader.inputs
