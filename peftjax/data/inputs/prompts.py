"""Prompts of examples: what a language model reads before it writes, and what it is wanted to write."""

from __future__ import annotations

from typing import NamedTuple

from peftjax.data.inputs.language import CausalCollate, Seq2SeqCollate
from peftjax.data.sources.types import Example
from peftjax.errors import UserError


class EncodedPrompt(NamedTuple):
  """The ids to generate from, the same as text, and what is wanted."""

  ids: list[int]
  text: str
  target: str


def prompt_of(collate: CausalCollate | Seq2SeqCollate, example: Example, where: str = "") -> EncodedPrompt:
  """The prompt of an example.

  Args:
    where: opens an error's line.

  Raises:
    UserError: the example has no prompt, an empty one, or no answer to compare with.
  """
  if not {"source", "messages"} & set(example):
    raise UserError(f"{where}: a text without a prompt; what is written needs a source and a target")
  if "messages" in example and not any(message["role"] == "assistant" for message in example["messages"]):
    raise UserError(f"{where}: a conversation without an answer to compare with")
  prompt = _prompt_of(collate, example)
  if not prompt.ids:
    raise UserError(f"{where}: an empty prompt")
  return prompt


def _prompt_of(collate: CausalCollate | Seq2SeqCollate, example: Example) -> EncodedPrompt:
  if isinstance(collate, Seq2SeqCollate):
    return EncodedPrompt(collate.encode([example])[0][0], example["source"], example["target"])
  if "source" in example:
    return EncodedPrompt(
      collate.form.prompt_ids(collate.tokenizer, example["source"]), example["source"], example["target"]
    )
  messages = example["messages"]
  last = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
  assert collate.form.chat is not None
  text = collate.form.chat.render(messages[:last], asks_for_answer=True)
  return EncodedPrompt(collate.tokenizer.encode_bare([text])[0], text, messages[last]["content"])
