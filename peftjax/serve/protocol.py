"""OpenAI's requests, checked field by field, and its answers and errors, as JSON.

What would change what is written and is not computed here (`logprobs`, penalties, several answers, tools) is refused by
name; fields that change nothing of it, such as `user`, are passed over.
"""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Mapping
from typing import Any

from peftjax.errors import nearest

# Fields that are not computed here, with the values that ask for nothing.
REFUSED: dict[str, tuple[Any, ...]] = {
  "best_of": (1,),
  "echo": (False,),
  "frequency_penalty": (0, 0.0),
  "function_call": ("none",),
  "functions": ([],),
  "logit_bias": ({},),
  "logprobs": (False, 0),
  "n": (1,),
  "presence_penalty": (0, 0.0),
  "response_format": ({"type": "text"},),
  "suffix": ("",),
  "tool_choice": ("none",),
  "tools": ([],),
  "top_logprobs": (0,),
}
ROLES = ("assistant", "developer", "system", "user")
MOST_STOPS = 4


class ApiError(Exception):
  """A request that is refused.

  Args:
    message: what was wrong and what was expected, in one line.
    status: of HTTP.
    param: the field.
    code: OpenAI's word for it.
  """

  def __init__(self, message: str, status: int = 400, param: str | None = None, code: str | None = None):
    super().__init__(message)
    self.status, self.param, self.code = status, param, code

  @property
  def body(self) -> dict[str, Any]:
    """As OpenAI's servers say it."""
    kind = "invalid_request_error" if self.status < 500 and self.status != 429 else "server_error"
    kind = "rate_limit_error" if self.status == 429 else kind
    return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclasses.dataclass(frozen=True)
class Asked:
  """A request.

  Attributes:
    model: a name.
    prompt: the text to go on from; None in a conversation.
    messages: of the conversation, each {"role", "content"}.
    most: tokens of the answer; None: as many as the server allows.
    temperature, top_p, seed, stop: how it is written; seed None: a new one.
    streams: in parts, as they come.
    counts: a last part tells how many tokens there were.
  """

  model: str
  prompt: str | None
  messages: tuple[Mapping[str, str], ...]
  most: int | None
  temperature: float
  top_p: float
  seed: int | None
  stop: tuple[str, ...]
  streams: bool
  counts: bool

  @property
  def is_chat(self) -> bool:
    """Whether it is a conversation."""
    return self.prompt is None


def asked(body: Any, is_chat: bool) -> Asked:
  """A request's body, checked.

  Raises:
    ApiError: a field is missing, of another type, out of its range, or asks for what is not computed here.
  """
  if not isinstance(body, dict):
    raise ApiError("expected a JSON object")
  for name, neutral in REFUSED.items():
    if body.get(name) is not None and not any(type(body[name]) is type(one) and body[name] == one for one in neutral):
      raise ApiError(f"{name} is not computed here; leave it out", param=name, code="unsupported_parameter")
  longest = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
  options = body.get("stream_options") or {}
  if not isinstance(options, dict):
    raise ApiError("stream_options: expected an object", param="stream_options")
  return Asked(
    model=_text(body, "model"),
    prompt=None if is_chat else _prompt(body),
    messages=_messages(body) if is_chat else (),
    most=_number(body, longest, int, 1, 2**31 - 1),
    temperature=_or(_number(body, "temperature", float, 0, 2), 1.0),
    top_p=_or(_number(body, "top_p", float, 0, 1, above=True), 1.0),
    seed=_number(body, "seed", int, -(2**63), 2**63 - 1),
    stop=_stop(body),
    streams=_flag(body, "stream"),
    counts=_flag(options, "include_usage"),
  )


def _or(value: Any, default: Any) -> Any:
  return default if value is None else value


def _text(body: Mapping[str, Any], name: str) -> str:
  value = body.get(name)
  if not isinstance(value, str) or not value:
    raise ApiError(f"{name}: expected a text that is not empty", param=name)
  return value


def _prompt(body: Mapping[str, Any]) -> str:
  value = body.get("prompt")
  if isinstance(value, list) and len(value) == 1:
    value = value[0]
  if not isinstance(value, str) or not value:
    raise ApiError("prompt: expected one text that is not empty", param="prompt")
  return value


def _messages(body: Mapping[str, Any]) -> tuple[Mapping[str, str], ...]:
  given = body.get("messages")
  if not isinstance(given, list) or not given:
    raise ApiError("messages: expected a list of at least one message", param="messages")
  return tuple(_message(one, f"messages[{place}]") for place, one in enumerate(given))


def _message(one: Any, where: str) -> dict[str, str]:
  role = one.get("role") if isinstance(one, dict) else None
  if role not in ROLES:
    raise ApiError(f"{where}.role: expected one of {', '.join(ROLES)}", param=where)
  content = one.get("content")
  if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
    content = "".join(str(part.get("text", "")) for part in content)
  if not isinstance(content, str):
    raise ApiError(f"{where}.content: expected a text, or parts of the type text", param=where)
  return {"role": "system" if role == "developer" else role, "content": content}


def _number(body: Mapping[str, Any], name: str, kind: type, least: float, most: float, above: bool = False) -> Any:
  value = body.get(name)
  if value is None:
    return None
  is_number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
  if not is_number or not least <= value <= most or (above and value == least):
    what = "a whole number" if kind is int else "a number"
    raise ApiError(f"{name}: expected {what} {'above' if above else 'from'} {least} to {most}", param=name)
  return kind(value)


def _flag(body: Mapping[str, Any], name: str) -> bool:
  value = body.get(name)
  if value is not None and not isinstance(value, bool):
    raise ApiError(f"{name}: expected true or false", param=name)
  return bool(value)


def _stop(body: Mapping[str, Any]) -> tuple[str, ...]:
  value = body.get("stop")
  texts = [value] if isinstance(value, str) else value or []
  if not isinstance(texts, list) or len(texts) > MOST_STOPS or not all(isinstance(one, str) and one for one in texts):
    raise ApiError(f"stop: expected a text, or a list of at most {MOST_STOPS}", param="stop")
  return tuple(texts)


def unknown_model(name: str, known: tuple[str, ...]) -> ApiError:
  """That there is no model of this name, with the nearest that there is."""
  return ApiError(f"no model {name!r}; {nearest(name, known)}", 404, "model", "model_not_found")


@dataclasses.dataclass(frozen=True)
class Answering:
  """The answer to one request: what its parts and its whole are in JSON."""

  to: Asked
  identity: str = dataclasses.field(default_factory=lambda: secrets.token_hex(12))
  created: int = dataclasses.field(default_factory=lambda: int(time.time()))

  def whole(self, text: str, finish: str, prompt_tokens: int, tokens: int) -> dict[str, Any]:
    """The answer at once."""
    what: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if self.to.is_chat else {"text": text}
    return {
      **self._head(streams=False),
      "choices": [self._choice(what, finish)],
      "usage": _usage(prompt_tokens, tokens),
    }

  def first(self) -> dict[str, Any] | None:
    """What comes before the first part; a conversation's says who speaks."""
    return self._part({"delta": {"role": "assistant", "content": ""}}, None) if self.to.is_chat else None

  def part(self, text: str, finish: str | None) -> dict[str, Any]:
    """A part of the answer."""
    delta: dict[str, Any] = {"content": text} if text else {}
    return self._part({"delta": delta} if self.to.is_chat else {"text": text}, finish)

  def usage(self, prompt_tokens: int, tokens: int) -> dict[str, Any]:
    """The part without text that tells how many tokens there were."""
    return {**self._head(streams=True), "choices": [], "usage": _usage(prompt_tokens, tokens)}

  def _part(self, what: dict[str, Any], finish: str | None) -> dict[str, Any]:
    return {**self._head(streams=True), "choices": [self._choice(what, finish)]}

  def _choice(self, what: dict[str, Any], finish: str | None) -> dict[str, Any]:
    return {"index": 0, **what, "logprobs": None, "finish_reason": finish}

  def _head(self, streams: bool) -> dict[str, Any]:
    is_chat = self.to.is_chat
    kind = ("chat.completion.chunk" if streams else "chat.completion") if is_chat else "text_completion"
    prefix = "chatcmpl" if is_chat else "cmpl"
    return {"id": f"{prefix}-{self.identity}", "object": kind, "created": self.created, "model": self.to.model}


def _usage(prompt_tokens: int, tokens: int) -> dict[str, int]:
  return {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": prompt_tokens + tokens}
