"""What is served: a base and its adapters by name, and how a request becomes a job of the engine."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from peftjax.adapters import Bank
from peftjax.data.inputs.chat import ChatTemplate, load_chat_template
from peftjax.data.inputs.language import Form
from peftjax.data.inputs.tokenizing import Tokenizer, load_tokenizer
from peftjax.errors import UserError
from peftjax.interop import peft
from peftjax.loading import folder_of, load
from peftjax.model import Model
from peftjax.models.family import CAUSAL_LM
from peftjax.models.generation_config import stated
from peftjax.models.layers import Runtime
from peftjax.models.sampling import Sampling
from peftjax.serve.engine import Engine, Job, Limits, Piece
from peftjax.serve.protocol import ApiError, Asked, unknown_model


@dataclasses.dataclass(frozen=True)
class Served:
  """A base with its adapters.

  Attributes:
    names: of the base, then of its adapters, as `adapter_ids` counts them.
    model: the base, or the base with all adapters.
    tokenizer: of the base.
    template: of conversations; None: the model was not made for them.
    rules: what holds for every answer.
    stop: strings that end every answer.
  """

  names: tuple[str, ...]
  model: Model
  tokenizer: Tokenizer
  template: ChatTemplate | None
  rules: Sampling
  stop: tuple[str, ...] = ()

  def engine(self, limits: Limits) -> Engine:
    """The engine that writes its answers."""
    return Engine(self.model, self.tokenizer, self.rules, limits, mixes=len(self.names) > 1)

  def job(self, asked: Asked, engine: Engine, tell: Callable[[Piece], None]) -> Job:
    """The job of a request.

    Raises:
      ApiError: no such model, a conversation that the model is not made for, or too many tokens.
    """
    if asked.model not in self.names:
      raise unknown_model(asked.model, self.names)
    ids = self._ids(asked)
    limits, longest = engine.limits, engine.longest
    if asked.most is not None and asked.most > limits.tokens:
      raise ApiError(f"max_tokens={asked.most}: at most {limits.tokens} here", param="max_tokens")
    room = limits.prompt or longest or len(ids)
    if longest is not None:
      room = min(room, longest - (asked.most or 1))
    if len(ids) > room:
      what = f"the prompt has {len(ids)} tokens, and {max(room, 0)} fit beside {asked.most or 1} of an answer"
      raise ApiError(what, param="messages" if asked.is_chat else "prompt", code="context_length_exceeded")
    most = asked.most or min(limits.tokens, limits.tokens if longest is None else longest - len(ids))
    return Job(
      adapter=self.names.index(asked.model) - 1,
      ids=ids,
      most=most,
      temperature=asked.temperature,
      top_p=asked.top_p,
      seed=(secrets.randbits(32) if asked.seed is None else asked.seed) % 2**32,
      stop=(*asked.stop, *self.stop),
      tell=tell,
      until=time.monotonic() + limits.seconds,
    )

  def _ids(self, asked: Asked) -> list[int]:
    try:
      if asked.prompt is not None:
        return list(Form(separator="").prompt_ids(self.tokenizer, asked.prompt))
      if self.template is None:
        raise ApiError(f"{self.names[0]} has no chat template; ask /v1/completions", param="messages")
      text = self.template.render(asked.messages, asks_for_answer=True)
      return list(self.tokenizer.encode_with_places(text)[0])
    except UserError as error:
      raise ApiError(str(error), param="messages" if asked.is_chat else "prompt") from None


def loaded(path: str, given: Sequence[str] = (), name: str = "", other_base: bool = False) -> Served:
  """A model folder and its adapters.

  Args:
    path: of the base, as `peftjax generate --model` takes it.
    given: adapters, each a PEFT folder or NAME=FOLDER; without a name it is the folder's.
    name: of the base; "" for its folder's.
    other_base: take adapters though they were trained on other weights.

  Raises:
    UserError: as `load` and `peft.load`; a model that writes no text, two of one name, or an adapter with tokens of
      its own.
  """
  folder = folder_of(path)
  base = load(folder, runtime=Runtime(scan_layers=False))
  if base.task != CAUSAL_LM:
    raise UserError(f"peftjax serve --model={path}: {base.architecture} is no decoder; expected a language model")
  tokenizer = load_tokenizer(folder, max_length=2**30)
  tokenizer.check_fits(int(base.config.vocab_size))
  name, bank = name or path.rstrip("/").rpartition("/")[2].removeprefix("packaged:"), Bank(base)
  for one, place in named(given).items():
    if one == name:
      raise UserError(f"peftjax serve --adapter: {one!r} is the base's name; name the adapter NAME=FOLDER")
    adapted = peft.load(base, Path(place).expanduser(), other_base=other_base)
    _check_tokens(one, place, base, adapted, tokenizer)
    bank = bank.add(one, adapted)
  said = stated(folder, base.hf_config)
  rules = Sampling(eos_ids=said.eos_ids, pad_id=tokenizer.pad_id, **said.rules)
  model = bank.mixed() if bank.names else base
  return Served((name, *bank.names), model, tokenizer, _template(folder), rules, said.stop)


def _check_tokens(name: str, place: str, base: Model, adapted: Model, tokenizer: Tokenizer) -> None:
  """Raises a `UserError` for an adapter that reads or writes tokens which the base's tokenizer has not.

  A token that only fills up is in no text; trainers add one and save their tokenizer beside the adapter.
  """
  new, rows = [], int(adapted.config.vocab_size)
  if peft.has_tokenizer(place):
    own = load_tokenizer(Path(place).expanduser(), max_length=2**30)
    new = [token for token in own.unlike(tokenizer) if token != own.token_of(own.pad_id)]
  elif rows != base.config.vocab_size:
    new = [f"{rows} in place of {base.config.vocab_size}"]
  if new:
    raise UserError(
      f"peftjax serve --adapter={name}: it has tokens of its own, such as {new[0]!r}, and all that is served has the "
      "base's tokenizer; peftjax generate --adapter reads its own"
    )


def named(given: Sequence[str]) -> Mapping[str, str]:
  """Name -> folder of adapters.

  Raises:
    UserError: two of one name.
  """
  found: dict[str, str] = {}
  for one in given:
    name, equals, place = one.partition("=")
    name, place = (name, place) if equals else (Path(one).name, one)
    if not name or not place or name in found:
      raise UserError(f"peftjax serve --adapter={one}: expected NAME=FOLDER, each of another name")
    found[name] = place
  return found


def _template(folder: Path) -> ChatTemplate | None:
  try:
    return load_chat_template(folder)
  except UserError:
    return None
