"""Generation with a cache: one pass over the prompts, then a loop of single tokens inside one compiled program.

    tokens = generate(model, [[1, 15, 7], [1, 9]], Sampling(max_new_tokens=20, eos_ids=(2,)))

Prompts of different lengths are padded on the left, so that all rows write the same slot of the cache. Adapters,
prefixes and prompts of the model act as in training: a prompt enters with the first pass alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax import memory
from peftjax.buffers import variables_of
from peftjax.errors import UserError
from peftjax.methods.inject import acting
from peftjax.models import beam_search
from peftjax.models.concrete import check_ids
from peftjax.models.family import CAUSAL_LM, SEQ2SEQ_LM, SPEECH_RECOGNITION
from peftjax.models.kv_cache import grow
from peftjax.models.layers import CACHE
from peftjax.models.sampling import Draws, Sampling, choose, choose_each, processed, with_token

if TYPE_CHECKING:
  from peftjax.model import Model

Read = Mapping[str, jax.Array]
"""What an encoder reads beside the tokens."""

State = dict[str, Any]
"""Between steps: "cache"; "logits" f32[B, V] of the next token; "tokens" int32[B, N]; "count" of them that are there;
"done" bool[B]; "seen" bool[B, V] and "history" int32[B, P] as `processed` takes them; "key"; "chosen": each row's
adapter, where the model holds several; "draws": how each row chooses, where rows differ in it."""

_LENGTH_STEP = 32  # prompts are padded, and tokens made room for, in steps of this, so that few programs are compiled


def generate(
  model: Model,
  prompts: Sequence[Sequence[int]],
  sampling: Sampling,
  key: jax.Array | None = None,
  adapter_ids: Sequence[int] | None = None,
  encoder_inputs: Read | None = None,
) -> list[list[int]]:
  """The tokens that follow each prompt, the end-of-sequence token included where one came.

  Args:
    prompts: token ids; of an encoder-decoder of texts the encoder's, which its decoder answers from the start token on.
    encoder_inputs: what an encoder reads that is no text, such as "input_features" of as many recordings as there are
      prompts; these are then the decoder's first tokens, all of one length.
    key: for sampling; default `jax.random.key(0)`.
    adapter_ids: where the model holds several adapters: which one each prompt's text is made with, -1 for none.

  Raises:
    UserError: a model without an output layer, an empty prompt, more tokens than the model has positions.
  """
  generator = Generator(model, sampling)
  if sampling.num_beams > 1:
    return [up_to_end(row, sampling) for row in generator.search(prompts, adapter_ids, encoder_inputs)]
  (tokens,) = generator.stream(prompts, key, sampling.max_new_tokens, adapter_ids, encoder_inputs)
  return [up_to_end(row, sampling) for row in tokens]


def rehearse(
  model: Model, prompt: Sequence[int], sampling: Sampling, encoder_inputs: Mapping[str, Any] | None = None
) -> None:
  """Traces what generating from a prompt would run, on shapes alone; raises as `generate` does, and if the memory is
  too small for what it would hold.
  """

  def run(params: Any, read: Read | None) -> State:
    generator = Generator(model.with_params(params), dataclasses.replace(sampling, num_beams=1))
    state = generator.start([prompt], encoder_inputs=read)
    return _advance(generator._program, generator._params, state, sampling.max_new_tokens)

  held = jax.eval_shape(run, model.params, encoder_inputs)
  size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((held["cache"], held["tokens"])))
  memory.check(size, f"generate: the cache of {len(prompt)} tokens and {sampling.max_new_tokens} new ones")


def up_to_end(tokens: Sequence[int] | np.ndarray, sampling: Sampling) -> list[int]:
  """The tokens up to the first that ends the sequence, itself included."""
  found = [int(token) for token in tokens]
  ends = [index for index, token in enumerate(found) if token in sampling.eos_ids]
  return found[: ends[0] + 1] if ends else found


@dataclasses.dataclass(frozen=True)
class _Program:
  """What the compiled functions depend on apart from shapes."""

  module: Any
  bound: tuple[Any, ...]
  sampling: Sampling

  def __hash__(self) -> int:
    return hash((self.module, self.sampling))

  def apply(self, params: Any, variables: Any, method: str, **inputs: Any) -> tuple[jax.Array, Any]:
    """(logits of the next token, the cache) of the module's `prefill` or `step`."""
    logits, changed = self.module.apply({**variables_of(params), **variables}, **inputs, method=method, mutable=[CACHE])
    return logits, changed[CACHE]


class Generator:
  """A model made ready to generate: its layers unrolled, so that no step copies weights out of a stack.

  Attributes:
    model: the unrolled model.
    done: after each chunk of `stream`, bool[B]: rows that have ended. A caller may set more.
  """

  def __init__(self, model: Model, sampling: Sampling):
    if model.task not in (CAUSAL_LM, SEQ2SEQ_LM, SPEECH_RECOGNITION):
      raise UserError(f"{model.architecture} cannot generate: it has no output layer over the vocabulary")
    self.model = model.unrolled() if model.stacks else model
    self.sampling = sampling
    self.done = np.zeros(0, bool)
    self._params = self.model.params

  def stream(
    self,
    prompts: Sequence[Sequence[int]],
    key: jax.Array | None = None,
    chunk: int = 8,
    adapter_ids: Sequence[int] | None = None,
    encoder_inputs: Read | None = None,
  ) -> Iterator[np.ndarray]:
    """int32[B, n]: the next n ≤ `chunk` tokens of all rows, until all have ended; `pad_id` after a row's end."""
    most = self.sampling.max_new_tokens
    state = self.start(prompts, key, adapter_ids, encoder_inputs)
    self.done = np.zeros(len(prompts), bool)
    count = 0
    while count < most and not self.done.all():
      state["done"] = jnp.asarray(self.done)
      limit = min(count + chunk, most)
      state = self.advance(state, limit)
      reached = int(state["count"])
      tokens = np.asarray(state["tokens"])[:, count:reached]
      self.done = np.array(state["done"])
      count = reached
      yield tokens

  def start(
    self,
    prompts: Sequence[Sequence[int]],
    key: jax.Array | None = None,
    adapter_ids: Sequence[int] | None = None,
    encoder_inputs: Read | None = None,
    draws: Draws | None = None,
  ) -> State:
    """The state after the pass over the prompts, with room for all tokens to come.

    Args:
      draws: how each row chooses, in place of what the sampling says of all.
    """
    inputs, room = self._inputs(prompts, encoder_inputs)
    rows = len(prompts)
    chosen = self._chosen(adapter_ids, rows)
    logits, cache = _prefill(self._program, self._params, inputs, room, chosen)
    return {
      "chosen": chosen,
      "cache": cache,
      "logits": logits,
      "tokens": jnp.full((rows, room), self.sampling.pad_id, jnp.int32),
      "count": jnp.int32(0),
      "done": jnp.zeros(rows, bool),
      "seen": self._seen(inputs, logits.shape[-1]),
      "history": self._history(inputs),
      "key": jax.random.key(0) if key is None else key,
      "draws": draws,
    }

  def advance(self, state: State, limit: int) -> State:
    """The state with `limit` tokens in all, or until all rows are done; the one given is no longer to be used."""
    return _advance(self._program, self._params, state, limit)

  def search(
    self,
    prompts: Sequence[Sequence[int]],
    adapter_ids: Sequence[int] | None = None,
    encoder_inputs: Read | None = None,
  ) -> np.ndarray:
    """int32[B, N]: the best sequence of each row by beam search."""
    chosen = self._chosen(adapter_ids, len(prompts))
    inputs, room = self._inputs(prompts, encoder_inputs)
    logits, cache = _prefill(self._program, self._params, inputs, room, chosen)
    of_beams = None if chosen is None else jnp.repeat(chosen, self.sampling.num_beams)
    before = (self._seen(inputs, logits.shape[-1]), self._history(inputs))
    return np.asarray(_search(self._program, self._params, logits, cache, before, of_beams))

  @property
  def _program(self) -> _Program:
    return _Program(self.model.module, self.model.bound, self.sampling)

  def _chosen(self, adapter_ids: Sequence[int] | None, rows: int) -> jax.Array | None:
    """int[B]: each row's adapter, if the model holds several."""
    if adapter_ids is None:
      return None
    if len(adapter_ids) != rows:
      raise UserError(f"generate: {len(adapter_ids)} adapter_ids for {rows} prompts")
    return self.model.checked_ids(adapter_ids)

  def _inputs(self, prompts: Sequence[Sequence[int]], encoder_inputs: Read | None) -> tuple[dict[str, jax.Array], int]:
    """(the inputs of `prefill`, how many slots to make room for)."""
    if (encoder_inputs is not None) != (self.model.task == SPEECH_RECOGNITION):
      raise UserError(f"generate: {self.model.architecture} {'reads text alone' if encoder_inputs else 'reads sound'}")
    if not prompts or not all(len(prompt) for prompt in prompts):
      raise UserError("generate: every prompt needs at least one token")
    for prompt in prompts:
      check_ids(self.model.config, {"input_ids": np.asarray(prompt)})
    check_ids(self.model.config, {"input_ids": np.asarray(self.sampling.eos_ids, np.int32)})
    if encoder_inputs is not None:
      return self._beside(prompts, encoder_inputs)
    is_decoder = self.model.task == CAUSAL_LM
    length, room = (_rounded(count) for count in (max(map(len, prompts)), self.sampling.max_new_tokens))
    limit = getattr(self.model.module, "position_limit", None)
    if limit is not None and length + room > limit:
      length, room = max(map(len, prompts)), self.sampling.max_new_tokens
    ids = np.zeros((len(prompts), length), np.int32)  # the padding token may be none that is embedded
    mask = np.zeros((len(prompts), length), np.int32)
    for row, prompt in enumerate(prompts):
      at = slice(length - len(prompt), None) if is_decoder else slice(0, len(prompt))
      ids[row, at], mask[row, at] = prompt, 1
    inputs = {"input_ids": jnp.asarray(ids), "attention_mask": jnp.asarray(mask)}
    if not is_decoder:
      start = self.model.config.decoder_start_token_id
      inputs["decoder_input_ids"] = jnp.full((len(prompts), 1), start, jnp.int32)
    return inputs, room

  def _beside(self, prompts: Sequence[Sequence[int]], encoder_inputs: Read) -> tuple[dict[str, jax.Array], int]:
    """`_inputs` where prompts are the decoder's."""
    rows, lengths = len(prompts), {len(prompt) for prompt in prompts}
    odd = [name for name, one in encoder_inputs.items() if one.shape[0] != rows]
    if odd or len(lengths) > 1:
      raise UserError(
        f"generate: {rows} prompts of one length and as many rows of {', '.join(encoder_inputs)} expected"
      )
    room, limit = _rounded(self.sampling.max_new_tokens), self.model.config.max_target_positions
    if max(lengths) + room > limit:
      room = self.sampling.max_new_tokens
    return {**encoder_inputs, "decoder_input_ids": jnp.asarray(np.asarray(prompts, np.int32))}, room

  def _seen(self, inputs: dict[str, jax.Array], vocabulary: int) -> jax.Array:
    ids, is_token = self._before(inputs)
    if self.sampling.repetition_penalty == 1.0:
      return jnp.zeros((ids.shape[0], 0), bool)
    rows = jnp.arange(ids.shape[0])[:, None]
    return jnp.zeros((ids.shape[0], vocabulary), bool).at[rows, ids].max(is_token)

  def _history(self, inputs: dict[str, jax.Array]) -> jax.Array:
    """int32[B, P]: what the answer continues, with room for it."""
    ids, is_token = self._before(inputs)
    if not self.sampling.no_repeat_ngram_size:
      return jnp.zeros((ids.shape[0], 0), jnp.int32)
    return jnp.pad(jnp.where(is_token, ids, -1), ((0, 0), (0, self.sampling.max_new_tokens)), constant_values=-1)

  def _before(self, inputs: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """(ids that stand before the answer, which of them are tokens): a prompt, or the decoder's start."""
    if "decoder_input_ids" in inputs:
      return inputs["decoder_input_ids"], jnp.ones_like(inputs["decoder_input_ids"], bool)
    return inputs["input_ids"], inputs["attention_mask"].astype(bool)


def _rounded(count: int) -> int:
  return -(-count // _LENGTH_STEP) * _LENGTH_STEP


@functools.partial(jax.jit, static_argnums=(0, 3))
def _prefill(
  program: _Program, params: Any, inputs: dict[str, jax.Array], room: int, chosen: jax.Array | None
) -> tuple[jax.Array, Any]:
  with acting(program.bound, params, adapter_ids=chosen) as whole:
    logits, cache = program.apply(whole, {}, "prefill", **inputs)
  return logits.astype(jnp.float32), grow(cache, room)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _advance(program: _Program, params: Any, state: State, limit: int) -> State:
  """Tokens up to `limit` in all, or until every row has ended."""
  sampling = program.sampling
  ends = jnp.asarray(sampling.eos_ids, jnp.int32)

  def is_going(state: State) -> jax.Array:
    return (state["count"] < limit) & ~state["done"].all()

  with acting(program.bound, params, adapter_ids=state["chosen"]) as whole:

    def one(state: State) -> State:
      scores = processed(state["logits"], state["seen"], state["history"], state["count"], sampling)
      if state["draws"] is None:
        token = choose(jax.random.fold_in(state["key"], state["count"]), scores, sampling)
      else:
        token = choose_each(state["draws"], scores, state["count"])
      token = jnp.where(state["done"], sampling.pad_id, token)
      logits, cache = program.apply(whole, {CACHE: state["cache"]}, "step", input_ids=token[:, None])
      seen, history = with_token(state["seen"], state["history"], token, state["count"], sampling)
      return {
        "cache": cache,
        "logits": logits.astype(jnp.float32),
        "tokens": state["tokens"].at[:, state["count"]].set(token),
        "count": state["count"] + 1,
        "done": state["done"] | (token[:, None] == ends).any(axis=1),
        "seen": seen,
        "history": history,
        "key": state["key"],
        "chosen": state["chosen"],
        "draws": state["draws"],
      }

    return jax.lax.while_loop(is_going, one, state)


@functools.partial(jax.jit, static_argnums=0)
def _search(
  program: _Program,
  params: Any,
  logits: jax.Array,
  cache: Any,
  before: tuple[jax.Array, jax.Array],
  chosen: jax.Array | None,
) -> jax.Array:
  with acting(program.bound, params, adapter_ids=chosen) as whole:

    def step(cache: Any, tokens: jax.Array) -> tuple[jax.Array, Any]:
      return program.apply(whole, {CACHE: cache}, "step", input_ids=tokens[:, None])

    return beam_search.search(step, logits, cache, before, program.sampling)
