"""Tasks: what a batch's loss is, what is predicted, and how predictions are scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from peftjax import config as config_lib
from peftjax import own_digest
from peftjax.data.sources.types import Header
from peftjax.errors import UserError, nearest
from peftjax.registry import resolve
from peftjax.tasks.base import Forward, Task, check_read, check_settings
from peftjax.tasks.metric import Metric

__all__ = ["TASKS", "Forward", "Metric", "Task", "check_fields", "from_config", "make", "task_class"]

# config.task.name -> class
TASKS: dict[str, str] = {
  "audio_classification": "peftjax.tasks.classification:Classification",
  "autoencoding": "peftjax.tasks.autoencoding:Autoencoding",
  "causal_lm": "peftjax.tasks.causal_lm:CausalLM",
  "contrastive": "peftjax.tasks.contrastive:Contrastive",
  "ctc": "peftjax.tasks.ctc:CTC",
  "denoising": "peftjax.tasks.denoising:Denoising",
  "image_classification": "peftjax.tasks.classification:Classification",
  "image_text_contrastive": "peftjax.tasks.image_text:ImageTextContrastive",
  "masked_lm": "peftjax.tasks.masked_lm:MaskedLM",
  "object_detection": "peftjax.tasks.object_detection:ObjectDetection",
  "question_answering": "peftjax.tasks.question_answering:QuestionAnswering",
  "seq2seq_lm": "peftjax.tasks.seq2seq_lm:Seq2SeqLM",
  "speech_recognition": "peftjax.tasks.speech_recognition:SpeechRecognition",
  "text_classification": "peftjax.tasks.classification:Classification",
  "token_classification": "peftjax.tasks.token_classification:TokenClassification",
  "zero_shot_image_classification": "peftjax.tasks.image_text:ZeroShotClassification",
}


def task_class(name: str) -> type[Task]:
  """The class of a task, by its name in `TASKS` or as ``module:Name``.

  Raises:
    UserError: no such task.
  """
  found: type[Task] = resolve("task.name", name, TASKS)
  if not isinstance(found, type) or not callable(getattr(found, "make", None)):
    raise UserError(f"task.name={name!r}: expected a class derived from peftjax.tasks.Task")
  return found


def check_fields(settings: ConfigDict) -> None:
  """Raises `UserError` for a field of `config.task` that no task without settings of its own has."""
  check_settings("none", None, settings, config_lib.default().task)


def from_config(name: str, settings: ConfigDict, header: Header) -> Task:
  """The task called `name`, by `config.task` and over the data that `header` describes.

  Raises:
    UserError: no such task, or a setting or the data does not suit it.
  """
  found = task_class(name)
  known = config_lib.default().task
  check_settings(name, found, settings, known)
  task = found.make(ConfigDict({**settings.to_dict(), "name": name}), header)
  check_read(name, found, settings, known)  # last: data of another task are the greater mistake
  if name not in TASKS:
    _check_own(name, task, header)
  return task


def _check_own(name: str, task: Task, header: Header) -> None:
  if task is None:
    raise UserError(f"task.name={name!r}: its `make` gave None; expected the task")
  lacking = [one for one in ("head", "label_names", "num_labels", "specs", "main_metric") if not hasattr(task, one)]
  functions = ("loss", "predict", "per_example", "metrics")
  lacking += [one for one in functions if getattr(type(task), one, None) in (None, getattr(Task, one))]
  if lacking:
    raise UserError(f"task.name={name!r}: the task lacks {', '.join(lacking)}; see peftjax.tasks.Task")
  if not all(isinstance(one, Metric) for one in task.specs):
    raise UserError(f"task.name={name!r}: specs={task.specs!r:.80}; expected peftjax.tasks.Metric for each")
  for field in ("fields", "target_fields", "evaluators", "label_names"):
    if isinstance(given := getattr(task, field, ()), str):
      raise UserError(f"task.name={name!r} has {field}={given!r}; expected a tuple of texts, such as ({given!r},)")
  own = [one for one in type(task).__mro__ if not own_digest.is_packaged(one)]
  says = any("fields" in vars(one) for one in own)  # what a class of the package reads depends on the input
  missing = [one for one in task.fields if says and one not in header.fields]
  if header.name and missing:
    held = ", ".join(header.fields) or "nothing that its `fields` name"
    raise UserError(
      f"task.name={name!r} reads {', '.join(task.fields)}; {header.name!r} holds {held}: no {missing[0]!r}"
    )
  for one in task.target_fields if header.name else ():
    if one not in header.fields:
      near = nearest(one, header.fields)
      raise UserError(f"task.name={name!r} has {one!r} in target_fields, and {header.name!r} has no such field; {near}")


def make(name: str, label_names: Sequence[str] = (), label_smoothing: float = 0.0, **settings: Any) -> Task:
  """The task called `name` over the given labels; no labels means that a number is predicted.

  Args:
    settings: other fields of `config.task`.

  Raises:
    UserError: as `from_config`.
  """
  given = config_lib.default().task
  with given.unlocked():
    given.update({"label_smoothing": label_smoothing, **settings})
  return from_config(name, given, Header("", task=name, label_names=tuple(label_names)))
