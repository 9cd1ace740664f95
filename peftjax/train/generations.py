"""What a language model writes for the prompts of a split, and how that scores: `config.task.generate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from peftjax.data.batching import subset
from peftjax.data.inputs.language import CausalCollate, Seq2SeqCollate
from peftjax.data.sources import Example
from peftjax.errors import UserError
from peftjax.files import write_text
from peftjax.masks import Tree, combine
from peftjax.models.sampling import Sampling
from peftjax.tasks import text_metrics
from peftjax.text_generation import complete, end_ids
from peftjax.train.run import Run

Row = dict[str, Any]


def check(run: Run) -> None:
  """Raises a `UserError` where a run that is asked to generate cannot: before it trains, not after."""
  if not run.config.task.generate:
    return
  text_metrics.check_names(run.config.task.text_metrics)
  if run.task.name not in ("causal_lm", "seq2seq_lm"):
    raise UserError(f"task.generate: task {run.task.name!r} writes no text")
  if not {"source", "messages"} & set(run.loaders.dataset.split("train")[0]):
    raise UserError(
      f"task.generate: {run.loaders.dataset.name} has texts without prompts; it needs a source and a target"
    )
  if jax.process_count() > 1:
    raise UserError("task.generate: a run over several processes does not generate; use peftjax eval on one machine")


def generated(run: Run, trainable: Tree, frozen: Tree, split: str) -> tuple[dict[str, float], list[Row]]:
  """(metrics, rows) of what the model writes with these leaves.

  The examples are the first `task.generate_examples` of an order that no seed changes, so all runs on the data write
  for the same ones.

  Returns:
    The metrics that `task.text_metrics` names, and for every example {"index", "prompt", "target", "text"}.
  """
  settings, loader = run.config.task, run.loaders.evals[split]
  collate: Any = loader.collate
  source = run.loaders.dataset.split(split)
  chosen = np.sort(subset(len(source), min(settings.generate_examples, len(source))))
  examples = [source[int(index)] for index in chosen]
  prompts = [prompt_of(collate, one) for one in examples]
  model = run.model.with_params(combine(trainable, frozen))
  ends = set(end_ids(model.folder, model.hf_config)) | {collate.tokenizer.eos_id} - {None}
  sampling = Sampling(
    max_new_tokens=settings.max_new_tokens,
    num_beams=settings.num_beams,
    eos_ids=tuple(sorted(ends)),
    pad_id=collate.tokenizer.pad_id,
  )
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
  return text_metrics.score(settings.text_metrics, texts, [row["target"] for row in rows]), rows


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
