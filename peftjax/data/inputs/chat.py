"""Conversations as text and as token ids, by the chat template that a model's folder brings along."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from peftjax.data.inputs.base import IGNORED
from peftjax.data.inputs.chat_bounds import conversation
from peftjax.data.inputs.chat_rendering import render
from peftjax.data.inputs.tokenizer_folder import special_tokens
from peftjax.data.inputs.tokenizing import Tokenizer
from peftjax.errors import UserError
from peftjax.files import read_json, read_text

Message = Mapping[str, Any]
"""{"role": "system", "user" or "assistant", "content": text}, and what else the template knows."""

_LOOK = 1000  # characters before an answer that are searched for the end of its header
_BOUNDARIES = ">]:\n "  # with which headers and endings of messages end

Span = tuple[int, int]  # the first character, and the one after the last

_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
_STAND_IN = "\ue000\ue001\ue002"  # for an answer, to see where a template puts it; for private use in Unicode


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
  """A Jinja template that makes one text of messages, as Hugging Face's tokenizers have it.

  Attributes:
    source: the template.
    variables: what it may use beside the messages: bos_token, eos_token, ...
    now: what strftime_now tells it, the moment at which it was loaded.
  """

  source: str
  variables: Mapping[str, str] = dataclasses.field(default_factory=dict)
  now: datetime = dataclasses.field(default_factory=datetime.now)

  @property
  def marks_answers(self) -> bool:
    """Whether it says itself what the assistant says, by {% generation %}."""
    return bool(_MARKED.search(self.source))

  @property
  def knows_the_date(self) -> bool:
    """Whether what it writes depends on the day."""
    return "strftime_now" in self.source

  def render(self, messages: Sequence[Message], *, asks_for_answer: bool = False) -> str:
    """The text of a conversation, ending where the assistant's answer starts if `asks_for_answer`.

    Raises:
      UserError: the template refuses the messages, fails, or goes on without end.
    """
    return self._rendered(messages, asks_for_answer)[0]

  def render_answers(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
    """(the text of a conversation, where in it the assistant speaks: from its header on, with what ends it).

    Where the template marks answers they are what it marks; else they are found by rendering parts of the conversation.

    Raises:
      UserError: no answer in the messages, or none that can be found in the text.
    """
    with conversation(len(messages)):
      text, spans = self._rendered(messages, False)
      if not self.marks_answers:
        spans = self._found(messages, text)
    spans = [(first, last) for first, last in spans if first < last]
    if not spans:
      raise UserError("a conversation to train on needs a message of the role 'assistant'")
    return text, spans

  def _rendered(self, messages: Sequence[Message], asks_for_answer: bool) -> tuple[str, list[Span]]:
    given = {**self.variables, "tools": None, "documents": None, "add_generation_prompt": asks_for_answer}
    return render(self.source, messages, given, self.now)

  def _found(self, messages: Sequence[Message], text: str) -> list[Span]:
    spans: list[Span] = []
    for index, message in enumerate(messages):
      if message["role"] == "assistant":
        span = self._between_prefixes(messages, index, text) or self._around_content(messages, index, text)
        if span is not None:
          spans.append(span)
    if any(first < before for (_, before), (first, _) in itertools.pairwise(spans)):
      raise UserError("the chat template does not put messages one after the other; answers cannot be found")
    return spans

  def _between_prefixes(self, messages: Sequence[Message], index: int, text: str) -> Span | None:
    """From where the conversation so far asks for the answer to where it ends with it, if both are as in `text`."""
    before = self._attempt(messages[:index], asks_for_answer=True)
    after = self._attempt(messages[: index + 1])
    if before is None or after is None or not text.startswith(before) or not text.startswith(after):
      return None
    return len(before), len(after)

  def _around_content(self, messages: Sequence[Message], index: int, text: str) -> Span | None:
    """The answer's own words in `text`, with what the template puts around them when the answer is the last message.

    For templates that write a message otherwise when another follows, as those do that keep only the last reasoning.
    None where the template leaves the answer out.
    """
    content = self._content_span(messages, index, text)
    if content is None:
      return None
    first, last = content
    start = self._end_of_header(messages[:index], text[:first])
    so_far = messages[: index + 1]
    alone = self._attempt(so_far)
    own = None if alone is None else self._content_span(so_far, index, alone)
    return start, last if alone is None or own is None else last + self._ending(alone[own[1] :], text[last:])

  def _end_of_header(self, messages: Sequence[Message], text: str) -> int:
    """Where in `text`, which ends before an answer's words, the header ends with which `messages` ask for it."""
    asking, silent = self._attempt(messages, asks_for_answer=True), self._attempt(messages)
    if asking is None or text.startswith(asking):
      return len(text) if asking is None else len(asking)
    header = asking[len(silent) :] if silent is not None and asking.startswith(silent) else ""
    # What a header has at its end may be missing in an answer of the past.
    for size in range(min(len(header), _LOOK), 0, -1):
      if header[size - 1] in _BOUNDARIES and (place := text.rfind(header[:size])) >= 0:
        return place + size
    nearest = range(len(text), max(len(text) - _LOOK, 0) - 1, -1)
    return max(nearest, key=lambda end: _shared(text[:end][: -_LOOK - 1 : -1], asking[: -_LOOK - 1 : -1]))

  def _ending(self, alone: str, text: str) -> int:
    """Characters of `text` that end an answer, where `alone` ends the same answer as the last message."""
    for token in ("", *self.variables.values()):
      if text.startswith(alone.removesuffix(token)):
        return len(alone.removesuffix(token))
    shared = alone[: _shared(alone, text)]
    if end := max(shared.rfind(boundary) for boundary in _BOUNDARIES) + 1:
      return end
    return next((size for size in range(min(len(alone), _LOOK), 0, -1) if text.startswith(alone[-size:])), 0)

  def _content_span(self, messages: Sequence[Message], index: int, text: str) -> Span | None:
    """Where `text`, the conversation, changes when one message says something else; None if it does not."""
    other = [{**one, "content": _STAND_IN} if number == index else one for number, one in enumerate(messages)]
    changed = self.render(other)
    if changed == text:
      return None
    if changed.count(_STAND_IN) != 1:
      raise UserError("the chat template changes an answer, or writes it more than once; it cannot be found")
    first = _shared(text, changed)
    return first, len(text) - _shared(text[first:][::-1], changed[first:][::-1])

  def _attempt(self, messages: Sequence[Message], *, asks_for_answer: bool = False) -> str | None:
    try:
      return self.render(messages, asks_for_answer=asks_for_answer)
    except UserError:  # many templates want a user's message first
      return None


def _shared(one: str, other: str) -> int:
  """How many first characters two texts share."""
  first, last = 0, min(len(one), len(other))
  while first < last:  # the first `first` are, and no more than `last` may be
    middle = (first + last + 1) // 2
    if one[first:middle] == other[first:middle]:
      first = middle
    else:
      last = middle - 1
  return first


def has_chat_template(folder: str | Path) -> bool:
  """Whether a model folder brings a chat template; raises `UserError` as `load_chat_template` does of a damaged one."""
  return bool(_sources(Path(folder)))


def load_chat_template(folder: str | Path) -> ChatTemplate:
  """The template of a model folder: ``chat_template.jinja``, or in ``tokenizer_config.json``.

  Of several under names the one called "default".

  Raises:
    UserError: there is none.
  """
  folder = Path(folder)
  sources = _sources(folder)
  if not sources:
    raise UserError(f"{folder} has no chat template; the model was not made for conversations")
  if "default" not in sources:
    raise UserError(f"{folder} has chat templates called {', '.join(sorted(sources))}, and none called default")
  return ChatTemplate(sources["default"], special_tokens(folder))


def _sources(folder: Path) -> dict[str, str]:
  """Name -> template. Files of their own take the place of what tokenizer_config.json says."""
  files = {"default": folder / "chat_template.jinja"}
  files |= {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
  found = {name: read_text(path) for name, path in files.items() if path.is_file()}
  path = folder / "tokenizer_config.json"
  stated: Any = None if found or not path.is_file() else read_json(path).get("chat_template")
  if isinstance(stated, str):
    return {"default": stated} if stated else {}
  if isinstance(stated, list):
    pairs = [(one.get("name"), one.get("template")) if isinstance(one, dict) else (None, None) for one in stated]
    stated = dict(pairs) if all(isinstance(name, str) for name, _ in pairs) else pairs
  if stated is not None and not (isinstance(stated, dict) and all(isinstance(one, str) for one in stated.values())):
    raise UserError(f"{path}: chat_template={stated!r:.60}, expected a template, or a list of name and template")
  return found or stated or {}


def encode_chat(
  tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[Message]
) -> tuple[list[int], list[int]]:
  """(token ids, labels) of a conversation; the labels are the ids of what the assistant says, `IGNORED` elsewhere.

  Its end-of-turn token is part of what it says, and so is a token that joins the end of its header with its first
  character. Both are cut at the tokenizer's `max_length`.

  Raises:
    UserError: see `ChatTemplate.render_answers`.
  """
  text, spans = template.render_answers(messages)
  ids, places = tokenizer.encode_with_places(text)
  labels = [IGNORED] * len(ids)
  for first, last in spans:
    inside = [number for number, (start, end) in enumerate(places) if start < last and end > first]
    for number in range(inside[0], inside[-1] + 1) if inside else ():
      labels[number] = ids[number]
  return ids, labels
