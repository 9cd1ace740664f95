"""What a language model writes for the prompts of a split, and how that scores: `config.task.generate`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from peftjax.data.batching import subset
from peftjax.data.extra_sets import RETAINED
from peftjax.data.inputs.language import CausalCollate, Seq2SeqCollate
from peftjax.data.inputs.tokenizing import Tokenizer
from peftjax.data.sources import Example
from peftjax.errors import UserError
from peftjax.files import write_text
from peftjax.masks import Tree, combine
from peftjax.models.generate import rehearse
from peftjax.models.sampling import Sampling
from peftjax.tasks import text_metrics
from peftjax.text_generation import complete, end_ids
from peftjax.train.run import Run

Row = dict[str, Any]


def writes_for(run: Run, split: str) -> bool:
  """Whether a run writes for a split: where it is asked to, and never for retained text, which has no prompts."""
  return bool(run.config.task.generate) and split != RETAINED


def check(run: Run, splits: Sequence[str] = ()) -> None:
  """Raises a `UserError` where a run that is asked to generate cannot: before it trains, not after.

  Every split that it is to write for is read, and what its longest prompt would run is traced.

  Args:
    splits: to write for; empty: those of the run.
  """
  if not run.config.task.generate:
    return
  text_metrics.check_names(run.config.task.text_metrics)
  if run.task.name not in ("causal_lm", "seq2seq_lm"):
    raise UserError(f"task.generate: task {run.task.name!r} writes no text")
  if jax.process_count() > 1:
    raise UserError("task.generate: a run over several processes does not generate; use peftjax eval on one machine")
  before = run.eval_splits if run.config.train.eval_first else ()
  for split in dict.fromkeys(splits or (*before, *run.final_splits)):
    if not writes_for(run, split):
      continue
    _, prompts = prompts_of(run, split)
    collate = _collate(run, split)
    sampling = sampling_of(run, collate.tokenizer)
    longest = max((ids for ids, _, _ in prompts), key=len)
    try:
      rehearse(run.model, longest, sampling)
    except UserError as error:
      asked = f"split {split!r}, task.max_new_tokens={sampling.max_new_tokens}"
      raise UserError(f"task.generate: {asked}: {error}") from None


def generated(run: Run, trainable: Tree, frozen: Tree, split: str) -> tuple[dict[str, float], list[Row]]:
  """(metrics, rows) of what the model writes with these leaves.

  The examples are the first `task.generate_examples` of an order that no seed changes, so all runs on the data write
  for the same ones.

  Returns:
    The metrics that `task.text_metrics` names, and for every example {"index", "prompt", "target", "text"}.
  """
  collate = _collate(run, split)
  chosen, prompts = prompts_of(run, split)
  sampling = sampling_of(run, collate.tokenizer)
  model = run.model.with_params(combine(trainable, frozen))
  texts = [""] * len(prompts)
  order = np.argsort([len(ids) for ids, _, _ in prompts], kind="stable")
  size = run.config.train.eval_batch_size
  for start in range(0, len(order), size):
    part = order[start : start + size]
    for place, text in zip(part, complete(model, collate.tokenizer, [prompts[at][0] for at in part], sampling)):
      texts[place] = text.strip()
  rows: list[Row] = [
    {"index": int(index), "prompt": prompt, "target": target, "text": text}
    for index, (_, prompt, target), text in zip(chosen, prompts, texts, strict=True)
  ]
  return text_metrics.score(run.config.task.text_metrics, texts, [row["target"] for row in rows]), rows


def _collate(run: Run, split: str) -> Any:
  """What makes the rows of a language model's batches."""
  inputs: Any = run.loaders.evals[split].inputs
  return inputs.collate_rows


def sampling_of(run: Run, tokenizer: Tokenizer) -> Sampling:
  """How the run generates: greedily or by beams, up to the tokens that end a sequence."""
  own = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
  ends = {*end_ids(run.model.folder, run.model.hf_config), *own}
  return Sampling(
    max_new_tokens=run.config.task.max_new_tokens,
    num_beams=run.config.task.num_beams,
    eos_ids=tuple(sorted(ends)),
    pad_id=tokenizer.pad_id,
  )


def prompts_of(run: Run, split: str) -> tuple[np.ndarray, list[tuple[list[int], str, str]]]:
  """(ids of the examples that a run writes for, what `prompt_of` says of each).

  Raises:
    UserError: an example without a prompt.
  """
  loader = run.loaders.evals[split]
  collate = _collate(run, split)
  source, wanted = loader.source, run.config.task.generate_examples
  chosen = np.sort(subset(len(source), min(wanted, len(source))))
  found = []
  for index in chosen:
    example, where = source[int(index)], f"task.generate: split {split!r}, example {index}"
    if not {"source", "messages"} & set(example):
      raise UserError(f"{where}: a text without a prompt; what is written needs a source and a target")
    if "messages" in example and not any(message["role"] == "assistant" for message in example["messages"]):
      raise UserError(f"{where}: a conversation without an answer to compare with")
    prompt = prompt_of(collate, example)
    if not prompt[0]:
      raise UserError(f"{where}: an empty prompt")
    found.append(prompt)
  return chosen, found


def prompt_of(collate: CausalCollate | Seq2SeqCollate, example: Example) -> tuple[list[int], str, str]:
  """(ids to generate from, the same as text, what is wanted) of an example."""
  if isinstance(collate, Seq2SeqCollate):
    return collate.encode([example])[0][0], example["source"], example["target"]
  if "source" in example:
    return collate.form.prompt_ids(collate.tokenizer, example["source"]), example["source"], example["target"]
  messages = example["messages"]
  last = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
  assert collate.form.chat is not None
  text = collate.form.chat.render(messages[:last], asks_for_answer=True)
  return collate.tokenizer.encode_bare([text])[0], text, messages[last]["content"]


def save_texts(folder: Path, name: str, rows: list[Row]) -> None:
  """Writes ``generations-NAME.jsonl``."""
  lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
  write_text(folder / f"generations-{name}.jsonl", "".join(lines))
