"""Chat templates as transformers renders them: Jinja in a sandbox, with the functions and tags that templates use."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from peftjax.data.inputs import chat_bounds as bounds
from peftjax.errors import UserError

MAX_TEMPLATE = 200_000  # characters of a template; the longest published ones have 30,000
_REASONING = ("reasoning_content", "thinking", "reasoning")  # a message's field for it, the usual one first


def render(
  source: str, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any], now: datetime
) -> tuple[str, list[tuple[int, int]]]:
  """(the text of a conversation, the characters within {% generation %}: first, and one after the last).

  Args:
    source: the template.
    messages: JSON objects; fields that are null count as missing.
    variables: what the template may use beside them.
    now: the time that strftime_now knows.

  Raises:
    UserError: the template is none, refuses the messages, fails, or goes on without end.
  """
  messages = [_message(one) for one in messages]
  try:
    template = _compiled(source)
    with bounds.rendering(bounds.extent_of(messages)) as running:
      pieces = []
      for piece in template.generate(messages=messages, **variables, strftime_now=_clock(now)):
        pieces.append(piece)
        running.wrote(len(piece))
      return "".join(pieces), running.answers
  except jinja2.TemplateSyntaxError as error:
    raise UserError(f"the chat template is no Jinja: {error.message} in line {error.lineno}") from None
  except jinja2.TemplateError as error:
    raise UserError(f"the chat template refuses the messages: {error}") from None
  except RecursionError:
    raise UserError("the chat template calls itself without end, or its parts stand too deep in each other") from None
  except MemoryError:
    raise UserError("the chat template needs too much memory") from None
  except Exception as error:  # whatever a stranger's program can raise
    raise UserError(f"the chat template fails: {type(error).__name__}: {error}") from None


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
  """A message as templates expect it: without nulls, its reasoning under the names they know."""
  given = {name: value for name, value in message.items() if value is not None}
  reasoning = next((given[name] for name in _REASONING if name in given), None)
  return given if reasoning is None else {"thinking": reasoning, **given, "reasoning_content": reasoning}


class _Answers(Extension):
  """{% generation %}: notes where the assistant's text starts and ends."""

  tags = {"generation"}

  def parse(self, parser: Parser) -> nodes.CallBlock:
    """Reads the block up to its {% endgeneration %}."""
    line = next(parser.stream).lineno
    body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
    return nodes.CallBlock(self.call_method("_noted"), [], [], body, lineno=line)

  def _noted(self, caller: Callable[[], str]) -> str:
    text = caller()
    running = bounds.running()
    running.answers.append((running.length, running.length + len(text)))
    return text


class _Namespace(jinja2.utils.Namespace):
  """Jinja's, without names that start with an underscore."""

  def __init__(*args: Any, **kwargs: Any):
    self, *rest = args
    fields = dict(*rest, **kwargs)
    for name in fields:
      _check_name(name)
    jinja2.utils.Namespace.__init__(self, fields)

  def __setitem__(self, name: str, value: Any) -> None:
    _check_name(name)
    super().__setitem__(name, bounds.counted(value))


def _check_name(name: Any) -> None:
  if isinstance(name, str) and name.startswith("_"):
    raise jinja2.exceptions.SecurityError(f"a namespace has no field {name!r}")


class _Sandbox(ImmutableSandboxedEnvironment):
  """The sandbox with its loops, calls, operators, filters and output counted."""

  intercepted_binops = frozenset(["+", "*", "**", "%"])

  def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
    """An operator between two values."""
    bounds.check_operator(operator, left, right)
    return bounds.counted(super().call_binop(context, operator, left, right))

  def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
    """A call in the template."""
    own = getattr(function, "__wrapped__", function)  # of str.format, which the sandbox wraps
    bounds.check_call(getattr(own, "__name__", ""), getattr(own, "__self__", None), (*args, *kwargs.values()))
    return bounds.counted(super().call(context, function, *args, **kwargs))

  def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
    for loop in source.find_all(nodes.For):
      step = _filtered(nodes.Const(None, lineno=loop.lineno), "_step")
      loop.body.insert(0, nodes.ExprStmt(step, lineno=loop.lineno))
    _count_literals(source)
    return super()._generate(source, *args, **kwargs)


def _filtered(value: nodes.Expr, name: str) -> nodes.Filter:
  return nodes.Filter(value, name, [], [], None, None, lineno=value.lineno)


def _count_literals(node: nodes.Node) -> None:
  """Lists, objects and texts joined by ~ are counted where they are made."""
  for field, value in node.iter_fields():
    if isinstance(value, list):
      for index, child in enumerate(value):
        if isinstance(child, nodes.Node):
          _count_literals(child)
          value[index] = _counted(child)
    elif isinstance(value, nodes.Node):
      _count_literals(value)
      setattr(node, field, _counted(value))


def _counted(node: nodes.Node) -> nodes.Node:
  if isinstance(node, nodes.Concat):
    return _filtered(nodes.List(node.nodes, lineno=node.lineno), "_joined")
  if isinstance(node, nodes.List | nodes.Dict) or (isinstance(node, nodes.Tuple) and node.ctx == "load"):
    return _filtered(node, "_made")
  return node


def _refuse(message: Any) -> None:
  raise jinja2.TemplateError(str(message))


def _tojson(
  value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
  return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _clock(now: datetime) -> Callable[[str], str]:
  def strftime_now(format: str) -> str:  # noqa: A002 - as templates call it
    bounds.check_format(format, [])
    return now.strftime(format)

  return strftime_now


class _Objects:
  """`dict` for templates, without the attributes of the class."""

  def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)

  def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict.fromkeys(*args, **kwargs)


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
  """A filter whose result is counted, refused beforehand if it would be too large."""
  passed = int(hasattr(function, "jinja_pass_arg"))  # Jinja gives these its environment first

  @functools.wraps(function)
  def run(*args: Any, **kwargs: Any) -> Any:
    subject = args[passed] if len(args) > passed else None
    bounds.check_call(name, subject, (*args[passed + 1 :], *kwargs.values()))
    return bounds.counted(function(*args, **kwargs))

  return run


def _joined(pieces: list[Any]) -> str:
  texts = [printed(piece) for piece in pieces]
  bounds.running().made(sum(map(len, texts)))
  return "".join(texts)


def printed(value: Any) -> str:
  """A value as {{ }} writes it; refused if it is larger than a conversation."""
  if not isinstance(value, str):
    bounds.extent_of(value)
  return str(value)


@jinja2.pass_context  # so that nothing is written while the template is compiled
def _output(context: Any, value: Any) -> str:
  text = printed(value)
  bounds.running().made(len(text))
  return text


def _environment() -> _Sandbox:
  made = _Sandbox(
    trim_blocks=True, lstrip_blocks=True, extensions=[_Answers, loopcontrols], finalize=_output, optimized=False
  )
  made.filters["tojson"] = _tojson
  made.filters = {name: _guarded(name, function) for name, function in made.filters.items()}
  made.filters |= {"_step": lambda _: bounds.running().step(), "_made": bounds.counted, "_joined": _joined}
  made.globals |= {"raise_exception": _refuse, "dict": _Objects(), "namespace": _Namespace}
  del made.globals["lipsum"]
  return made


@functools.lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
  if len(source) > MAX_TEMPLATE:
    raise jinja2.TemplateError(f"it has {len(source):,} characters, and at most {MAX_TEMPLATE:,} are read")
  return _environment().from_string(source)
