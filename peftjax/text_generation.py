"""Text from text: a prompt or a conversation in, what the model says out, as it comes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from ml_collections import ConfigDict

from peftjax.data.batching import subset
from peftjax.data.inputs.chat import load_chat_template
from peftjax.data.inputs.language import Form
from peftjax.data.inputs.prompts import EncodedPrompt, prompt_of
from peftjax.data.inputs.tokenizing import Tokenizer, load_tokenizer
from peftjax.data.inputs.tokens import Tokens
from peftjax.data.loader import EvalLoader
from peftjax.errors import UserError
from peftjax.interop.peft import has_tokenizer
from peftjax.kinds import whole_of_text
from peftjax.loading import folder_of, load
from peftjax.model import Model
from peftjax.models.family import SEQ2SEQ_LM
from peftjax.models.generate import Generator, generate, up_to_end
from peftjax.models.generation_config import FILE, Stated, stated
from peftjax.models.layers import Runtime
from peftjax.models.sampling import Sampling

log = logging.getLogger(__name__)

_CHUNK = 8  # tokens between two looks at the text


def complete(
  model: Model,
  tokenizer: Tokenizer,
  prompts: Sequence[Sequence[int]],
  sampling: Sampling,
  *,
  stop: Sequence[str] = (),
  key: jax.Array | None = None,
  on_text: Callable[[int, str], None] | None = None,
) -> list[str]:
  """What follows each prompt.

  Args:
    prompts: token ids, special ones included.
    stop: strings before which a text ends.
    on_text: called with (row, new text) as the texts grow; the pieces of a row add up to its text.

  Raises:
    UserError: what `generate` raises.
  """
  if sampling.num_beams > 1:
    return [_cut(tokenizer.decode(row), stop)[0] for row in generate(model, prompts, sampling, key)]
  generator = Generator(model, sampling)
  texts = [Growing(tokenizer, sampling, stop) for _ in prompts]
  for chunk in generator.stream(prompts, key, chunk=_CHUNK):
    for row, tokens in enumerate(chunk):
      piece = texts[row].grown(tokens, bool(generator.done[row]))
      generator.done[row] |= texts[row].ended
      if on_text is not None and piece:
        on_text(row, piece)
  for row, one in enumerate(texts):
    piece = one.grown((), True)
    if on_text is not None and piece:
      on_text(row, piece)
  return [one.text for one in texts]


class Growing:
  """A text that grows by tokens, and is shown as far as no later token changes it.

  Args:
    tokenizer: of the tokens.
    sampling: says which tokens end it.
    stop: strings before which it ends.

  Attributes:
    text: what has been shown.
    tokens: so far, up to the one that ends it.
    ended: whether a token or a string has ended it.
  """

  def __init__(self, tokenizer: Tokenizer, sampling: Sampling, stop: Sequence[str] = ()):
    self._tokenizer, self._sampling, self._stop = tokenizer, sampling, stop
    self.text, self.tokens, self.ended = "", list[int](), False

  def grown(self, tokens: Sequence[int] | np.ndarray, is_last: bool) -> str:
    """What more tokens add to what is shown; `is_last`: no others will follow."""
    if not self.ended:
      self.tokens = up_to_end([*self.tokens, *(int(token) for token in tokens)], self._sampling)
    whole, is_cut = _cut(self._tokenizer.decode(self.tokens), self._stop)
    self.ended = self.ended or is_cut or (bool(self.tokens) and self.tokens[-1] in self._sampling.eos_ids)
    shown = whole if self.ended or is_last else whole[: len(whole) - _held_back(whole, self._stop)]
    new = shown[len(self.text) :]
    self.text = shown if new else self.text
    return new


def prompts_of(loader: EvalLoader, inputs: Tokens, count: int) -> list[tuple[int, EncodedPrompt]]:
  """(id, prompt) of the first `count` examples of a split (0: all), in an order that no seed changes.

  Raises:
    UserError: an example without a prompt.
  """
  source, collate = loader.source, cast(Any, inputs.collate_rows)
  chosen = np.sort(subset(len(source), min(count, len(source))))
  where = f"task.generate: split {loader.name!r}, example"
  return [(int(at), prompt_of(collate, source[int(at)], f"{where} {at}")) for at in chosen]


def sampling_for(model: Model, inputs: Tokens, settings: ConfigDict) -> Sampling:
  """How `config.task` generates: greedily or by beams, up to the tokens that end a sequence."""
  own = () if inputs.tokenizer.eos_id is None else (inputs.tokenizer.eos_id,)
  said = stated(model.folder, model.hf_config)
  beams = {name: value for name, value in said.beams.items() if name != "num_beams"} if settings.num_beams > 1 else {}
  return Sampling(
    **{**said.rules, **said.least(1 if model.task == SEQ2SEQ_LM else None, settings.max_new_tokens), **beams},
    max_new_tokens=settings.max_new_tokens,
    num_beams=settings.num_beams,
    eos_ids=tuple(sorted({*said.eos_ids, *own})),
    pad_id=inputs.tokenizer.pad_id,
  )


def answers(
  model: Model, inputs: Tokens, prompts: Sequence[EncodedPrompt], sampling: Sampling, batch_size: int
) -> list[str]:
  """What the model writes for each prompt, without white space around; prompts of similar length together."""
  texts = [""] * len(prompts)
  order = np.argsort([len(one.ids) for one in prompts], kind="stable")
  for start in range(0, len(order), batch_size):
    part = order[start : start + batch_size]
    for place, text in zip(part, complete(model, inputs.tokenizer, [prompts[at].ids for at in part], sampling)):
      texts[place] = text.strip()
  return texts


def _cut(text: str, stop: Sequence[str]) -> tuple[str, bool]:
  """(the text before the first stop string, whether there was one)."""
  places = [place for one in stop if (place := text.find(one)) >= 0]
  return (text[: min(places)], True) if places else (text, False)


def _held_back(text: str, stop: Sequence[str]) -> int:
  """How many last characters may still change: a character's first bytes, or the start of a stop string."""
  if text.endswith("\ufffd"):
    return len(text) - len(text.rstrip("\ufffd"))
  sizes = [size for one in stop for size in range(1, len(one)) if text.endswith(one[:size])]
  return max(sizes, default=0)


def from_flags(flags: Any, show: Callable[[str], None] | None) -> dict[str, Any]:
  """What `peftjax generate` does: {"text": ..., "prompt": ...}.

  Args:
    flags: the command line's: model, adapter, prompt, chat, system, stop, seed and those of `sampling_of`.
    show: called with every new piece of text.

  Raises:
    UserError: a folder, an adapter or a flag is not what was expected.
  """
  folder = folder_of(flags.model)
  # One subtree a layer from the start: taking layers out of a stack would hold the model twice.
  model = load(
    folder, flags.adapter or None, runtime=Runtime(scan_layers=False), other_base=getattr(flags, "other_base", False)
  )
  texts = Path(flags.adapter).expanduser() if flags.adapter and has_tokenizer(flags.adapter) else folder
  tokenizer = load_tokenizer(texts, max_length=2**30)
  tokenizer.check_fits(int(model.config.vocab_size))
  prompt = flags.prompt
  if flags.chat not in ("", "yes", "no"):
    raise UserError(f"generate --chat: expected yes or no, got {flags.chat!r}")
  if flags.chat == "yes":
    system = [{"role": "system", "content": flags.system}] if flags.system else []
    messages = [*system, {"role": "user", "content": prompt}]
    prompt = load_chat_template(texts).render(messages, asks_for_answer=True)
    ids = tokenizer.encode_with_places(prompt)[0]
  elif model.task == SEQ2SEQ_LM:
    ids = tokenizer.encode([prompt]).ids[0].tolist()
  else:
    ids = Form(separator="").prompt_ids(tokenizer, prompt)
  said = stated(folder, model.hf_config)
  sampling = sampling_of(flags, said, len(ids) if model.task != SEQ2SEQ_LM else 1, tokenizer.pad_id)
  seed = whole_of_text(flags.seed or "0", 0, 2**32 - 1)
  if seed is None:
    raise UserError(f"generate --seed: expected a whole number from 0 to {2**32 - 1:,}, got {flags.seed!r}")
  on_text = None if show is None else lambda row, piece: show(piece)
  key = jax.random.key(seed)
  stop = ((flags.stop,) if flags.stop else ()) + said.stop
  (text,) = complete(model, tokenizer, [ids], sampling, stop=stop, key=key, on_text=on_text)
  return {"text": text, "prompt": prompt}


def sampling_of(flags: Any, said: Stated, prompt_tokens: int, pad_id: int) -> Sampling:
  """The settings in the command line's flags, which are texts; empty ones are as the model's folder says.

  A folder that asks for drawing is noted: without a temperature among the flags the likeliest token is taken.

  Args:
    prompt_tokens: that count as length of the answer where the folder bounds that.

  Raises:
    UserError: a flag is no number.
  """
  kinds: dict[str, type] = {"max_new_tokens": int, "temperature": float, "top_k": int, "top_p": float,
                            "repetition_penalty": float, "no_repeat_ngram_size": int, "min_new_tokens": int,
                            "num_beams": int, "length_penalty": float}  # fmt: skip
  given: dict[str, Any] = {}
  for name, kind in kinds.items():
    text = getattr(flags, name, "")
    if text:
      try:
        given[name] = kind(text)
      except ValueError:
        raise UserError(f"generate --{name}: expected {kind.__name__}, got {text!r}") from None
  if given.get("temperature"):
    said.check_drawing()
    given = {**said.drawing, **given}
  elif said.draws:
    how = ", ".join(f"--{name}={value}" for name, value in ({"temperature": 1.0} | dict(said.drawing)).items())
    log.warning("%s asks for drawing; this is the likeliest text: %s draws", FILE, how)
  most = given.pop("max_new_tokens", said.max_new_tokens)
  if most is None and said.max_length is not None:
    most = max(said.max_length - prompt_tokens, 1)
  most = Sampling.max_new_tokens if most is None else most
  beams = {} if given.get("temperature") else said.beams
  whole = {**said.rules, **said.least(prompt_tokens, most), **beams, **given}
  return Sampling(eos_ids=said.eos_ids, pad_id=pad_id, max_new_tokens=most, **whole)
