"""`peftjax predict`: what a trained model says of new examples."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from scipy.special import softmax

from peftjax import data as data_lib
from peftjax import masks, tasks
from peftjax.data.inputs.masked_tokens import MaskedTokens
from peftjax.data.inputs.prompts import EncodedPrompt, prompt_of
from peftjax.data.inputs.speech import Speech
from peftjax.data.inputs.tokens import Tokens
from peftjax.data.packages import cache_folder
from peftjax.data.sources.types import Example, WrongExample
from peftjax.errors import UserError
from peftjax.loading import folder_of, inputs_folder
from peftjax.model import Model
from peftjax.new_examples import example_of, holds_boxes, of_lists, rows_of, told
from peftjax.parallel.activations import on_mesh
from peftjax.parallel.mesh import make_mesh
from peftjax.registry import only_trusted
from peftjax.stored import plain
from peftjax.text_generation import answers, sampling_for
from peftjax.train import assemble, finished
from peftjax.train import folder as folder_lib
from peftjax.train.compiling import use_cache
from peftjax.train.evaluate import make_predict, predicted
from peftjax.transcription import sampling_of, transcribe

Row = dict[str, Any]
LIKELIEST = 5  # tokens named for a hidden one


def predict(
  workdir: str | Path,
  texts: Sequence[str] = (),
  files: Sequence[str] = (),
  trust: Collection[str] = (),
  checkpoint: str = "",
) -> list[Row]:
  """What a checkpoint of a run says of new examples.

  Args:
    texts: of one example each.
    files: see `new_examples.rows_of`.
    trust: as of `finished.load_model`.
    checkpoint: as of `finished.load_model`.

  Returns:
    One dict an example, in their order, ready for JSON, with null for a number that is not finite: its texts, its file
    or where it stands, and what `Task.answers` says; of models that write "text", of hidden tokens "tokens", the
    likeliest first.

  Raises:
    UserError: as `finished.load_model` and `new_examples.rows_of`; an example lacks what the task reads.
  """
  with only_trusted(workdir, trust):
    rows = list(rows_of(texts, files))
    if not rows:
      raise UserError("peftjax predict: name examples by --text or --file")
    config, _, model = finished.load_model(workdir, trust, checkpoint)
    use_cache(str(cache_folder("compiled")))
    header = _header(Path(workdir))
    path = config.model.path
    folder = None if assemble.is_own(path) else inputs_folder(folder_of(path))
    task = tasks.from_config(header.task, config.task, header).of_model(folder)
    inputs = data_lib.make_input(config, header, task, folder)
    inputs.check(model)
    examples = [example_of(row, where, header, config.data, task.target_fields) for row, where in rows]
    if isinstance(inputs, Speech):
      said = _transcribed(config, model, inputs, examples)
    elif isinstance(inputs, MaskedTokens):
      said = _filled(model, inputs, examples)
    elif task.writes_text and isinstance(inputs, Tokens):
      said = _written(config, model, inputs, examples)
    else:
      said = _said(config, model, task, inputs, examples, [where for _, where in rows])
    if len(said) != len(examples):
      raise UserError(f"{type(task).__name__}.answers gave {len(said)} rows for {len(examples)} examples")
    return [plain(told(example, where) | dict(one)) for example, (_, where), one in zip(examples, rows, said)]


def _header(folder: Path) -> data_lib.Header:
  """Of the data that the run was trained on, as its config.json says."""
  _, known = folder_lib.read_config(folder)
  fields = known.fields or tasks.task_class(known.task).fields
  names = known.label_names if known.data_label_names is None else known.data_label_names
  kind = "classes" if known.problem_type.startswith("multi_label") else "class" if names else "number"
  kind = known.label_kind or ("tags" if "tags" in fields else kind if "label" in fields else "")
  boxes = int(holds_boxes(fields))  # room for one, of which there is none
  return data_lib.Header("new examples", known.task, names, fields=fields, label_kind=kind, most_boxes=boxes)


def _said(
  config: ConfigDict,
  model: Model,
  task: tasks.Task,
  inputs: data_lib.Input,
  examples: list[Example],
  places: Sequence[str],
) -> list[Row]:
  """By the task's own predictions."""
  mesh = make_mesh(finished.on_these_devices(config).mesh)
  rows = config.train.eval_batch_size
  if mesh.size == 1:
    rows = min(rows, 2 ** (len(examples) - 1).bit_length())
  dataset = data_lib.Dataset(
    **vars(inputs.header) | {"splits": {"new": len(examples)}},
    identity={},
    read=lambda split: cast(data_lib.Source, examples),
  )
  trainable, frozen = masks.partition(model.params, model.labels())
  loader = data_lib.EvalLoader(dataset, "new", inputs, rows)
  run = make_predict(on_mesh(model.forward, model, mesh), task, mesh)
  try:
    found = predicted(run, trainable, frozen, loader, task, mesh)
  except WrongExample as error:
    raise UserError(f"{places[error.number]}{error.what}{of_lists(examples[error.number])}") from error
  return task.answers(found, loader.source)


def _written(config: ConfigDict, model: Model, inputs: Tokens, examples: list[Example]) -> list[Row]:
  """What a language model goes on with; of plain texts, where they end."""
  collate = cast(Any, inputs.collate_rows)
  plain = data_lib.Form(separator="")
  prompts = [
    EncodedPrompt(plain.prompt_ids(inputs.tokenizer, one["text"]), one["text"], "")
    if "text" in one
    else prompt_of(collate, one, "peftjax predict")
    for one in examples
  ]
  sampling = sampling_for(model, inputs, config.task)
  texts = answers(model, inputs, prompts, sampling, config.train.eval_batch_size)
  return [{"prompt": one.text, "text": text} for one, text in zip(prompts, texts, strict=True)]


def _transcribed(config: ConfigDict, model: Model, inputs: Speech, examples: list[Example]) -> list[Row]:
  """What is said in recordings."""
  samples, rows = [inputs.samples(one) for one in examples], min(config.train.eval_batch_size, 8)
  texts = transcribe(model, samples, inputs.form, sampling_of(model, inputs.form), rows)
  return [{"text": text} for text in texts]


def _filled(model: Model, inputs: MaskedTokens, examples: list[Example]) -> list[Row]:
  """The likeliest tokens, with their probabilities, in the place of each mask token."""
  said = []
  for example in examples:
    ids, type_ids, _ = inputs.tokenizer.encode_apart(example["text"])
    places = np.flatnonzero(ids == inputs.mask_id)
    if not len(places):
      mask = inputs.tokenizer.token_of(inputs.mask_id)
      raise UserError(f"peftjax predict: no {mask} in {example['text']!r:.80}; write it where a token is to be found")
    arrays = {"input_ids": ids[None], "attention_mask": np.ones_like(ids)[None]}
    arrays |= {"token_type_ids": type_ids[None]} if inputs.gives_type_ids else {}
    logits = np.asarray(model(**arrays)["logits"][0, jnp.asarray(places)], np.float64)
    chances = softmax(logits, axis=-1)
    best = np.argsort(-chances, axis=-1, kind="stable")[:, :LIKELIEST]
    found = [{inputs.tokenizer.token_of(int(at)): float(row[at]) for at in order} for row, order in zip(chances, best)]
    said.append({"tokens": found})
  return said
