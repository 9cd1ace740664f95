"""Conversations as text and as token ids, by the chat template that a tokenizer's own config brings along."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from peftjax.data.inputs.base import IGNORED
from peftjax.data.inputs.tokenizing import Tokenizer
from peftjax.errors import UserError
from peftjax.files import read_json

Message = Mapping[str, str]
"""{"role": "system", "user" or "assistant", "content": text}"""


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
  """A Jinja template that makes one text of messages, as Hugging Face's tokenizers have it.

  Attributes:
    source: the template.
    variables: what it may use beside the messages: bos_token, eos_token, ...
  """

  source: str
  variables: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def render(self, messages: Sequence[Message], *, asks_for_answer: bool = False) -> str:
    """The text of a conversation, ending where the assistant's answer starts if `asks_for_answer`.

    Raises:
      UserError: the template refuses the messages.
    """
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _refuse
    try:
      template = environment.from_string(self.source)
      return template.render(
        messages=[dict(message) for message in messages], add_generation_prompt=asks_for_answer, **self.variables
      )
    except jinja2.TemplateError as error:
      raise UserError(f"the chat template refuses the messages: {error}") from None


def _refuse(message: str) -> None:
  raise jinja2.TemplateError(message)


def load_chat_template(folder: str | Path) -> ChatTemplate:
  """The template of a model folder: ``chat_template.jinja``, or in ``tokenizer_config.json``.

  Raises:
    UserError: there is none.
  """
  folder = Path(folder)
  path = folder / "tokenizer_config.json"
  settings = read_json(path) if path.is_file() else {}
  source: Any = settings.get("chat_template")
  if (folder / "chat_template.jinja").is_file():
    source = (folder / "chat_template.jinja").read_text(encoding="utf-8")
  if isinstance(source, list):  # several under names
    source = {one["name"]: one["template"] for one in source}.get("default")
  if not source:
    raise UserError(f"{folder} has no chat template; the model was not made for conversations")
  tokens = {name: value for name, value in settings.items() if name.endswith("_token") and value is not None}
  return ChatTemplate(source, {name: value["content"] if isinstance(value, dict) else str(value)
                               for name, value in tokens.items() if not isinstance(value, bool)})  # fmt: skip


def encode_chat(
  tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[Message]
) -> tuple[list[int], list[int]]:
  """(token ids, labels) of a conversation; the labels are the ids of what the assistant says, `IGNORED` elsewhere.

  Its end-of-turn token is part of what it says. Both are cut at the tokenizer's `max_length`.

  Raises:
    UserError: no answer in the messages, or the template does not put messages one after the other.
  """
  text = template.render(messages)
  spans = []
  for index, message in enumerate(messages):
    if message["role"] != "assistant":
      continue
    before = template.render(messages[:index], asks_for_answer=True)
    after = template.render(messages[: index + 1])
    if not text.startswith(before) or not text.startswith(after):
      raise UserError("the chat template changes what was said before when a message follows; answers cannot be found")
    spans.append((len(before), len(after)))
  if not spans:
    raise UserError("a conversation to train on needs a message of the role 'assistant'")
  ids, places = tokenizer.encode_with_places(text)
  labels = [
    token if any(first <= start < last for first, last in spans) else IGNORED for token, (start, _) in zip(ids, places)
  ]
  return ids, labels
