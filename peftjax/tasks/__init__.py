"""Tasks: what a batch's loss is, what is predicted, and how predictions are scored."""

from __future__ import annotations

from collections.abc import Sequence

from peftjax.errors import UserError, nearest
from peftjax.tasks.base import Forward, Task
from peftjax.tasks.causal_lm import CausalLM
from peftjax.tasks.seq2seq_lm import Seq2SeqLM
from peftjax.tasks.text_classification import TextClassification
from peftjax.tasks.token_classification import TokenClassification

__all__ = ["TASKS", "CausalLM", "Forward", "Seq2SeqLM", "Task", "TextClassification", "TokenClassification", "make"]

TASKS: dict[str, type] = {
  "causal_lm": CausalLM,
  "seq2seq_lm": Seq2SeqLM,
  "text_classification": TextClassification,
  "token_classification": TokenClassification,
}


def make(name: str, label_names: Sequence[str], label_smoothing: float = 0.0) -> Task:
  """The task called `name` over the given labels; no labels means that a number is predicted.

  Raises:
    UserError: no such task.
  """
  if name not in TASKS:
    raise UserError(f"task.name: no task {name!r}; {nearest(name, TASKS)}")
  return TASKS[name](tuple(label_names), label_smoothing)
