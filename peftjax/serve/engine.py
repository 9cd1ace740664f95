"""Requests in, text out: one thread that puts requests for a base and for any of its adapters into batches.

What waits when a batch begins is one batch, whichever adapters it names (`peftjax.adapters.Bank.mixed`). A batch goes
on by a few tokens at a time; requests that come meanwhile begin another one, and the batches take turns, so that nobody
waits for a long answer to end. Rows are filled up to powers of two, and prompts and answers to lengths of which there
are few, so that few programs are compiled.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from peftjax.data.inputs.tokenizing import Tokenizer
from peftjax.errors import UserError
from peftjax.model import Model
from peftjax.models.generate import Generator
from peftjax.models.sampling import Draws, Sampling
from peftjax.text_generation import Growing

log = logging.getLogger(__name__)
_CHUNK = 8  # tokens of a batch before it is another one's turn


class Full(Exception):
  """As many requests wait as may."""


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a server takes.

  Attributes:
    rows: answers written at once.
    waiting: requests that may wait.
    tokens: of an answer.
    prompt: tokens of a prompt; 0: as many as the model has positions for.
    seconds: from the arrival of a request to the end of its answer.
  """

  rows: int = 16
  waiting: int = 64
  tokens: int = 1024
  prompt: int = 0
  seconds: float = 120.0


@dataclasses.dataclass(frozen=True)
class Piece:
  """A part of an answer.

  Attributes:
    text: that is new.
    finish: "stop" or "length" with the last part, "timeout" or "failed" where there will be no more; "" before.
    tokens: of the answer so far.
  """

  text: str
  finish: str = ""
  tokens: int = 0


@dataclasses.dataclass(eq=False)
class Job:
  """One request.

  Attributes:
    adapter: its number among those of the model; -1: the base.
    ids: the prompt's tokens.
    most: tokens of the answer.
    temperature, top_p, seed, stop: how it is written.
    tell: is given every part, in the engine's thread.
    until: the moment, of `time.monotonic`, at which it is given up.
    cancelled: nobody waits for it any more.
  """

  adapter: int
  ids: Sequence[int]
  most: int
  temperature: float
  top_p: float
  seed: int
  stop: tuple[str, ...]
  tell: Callable[[Piece], None]
  until: float
  cancelled: bool = False


class _Flight:
  """A batch under way."""

  def __init__(self, model: Model, tokenizer: Tokenizer, rules: Sampling, jobs: Sequence[Job], mixes: bool):
    self.jobs = list(jobs)
    room = _power(max(one.most for one in jobs))
    limit = longest_of(model)
    if limit is not None:
      room = max(min(room, limit - max(len(one.ids) for one in jobs)), max(one.most for one in jobs))
    sampling = dataclasses.replace(rules, max_new_tokens=room, min_new_tokens=min(rules.min_new_tokens, room))
    self._texts = [Growing(tokenizer, sampling, one.stop) for one in jobs]
    self._generator, self._room, self._count = Generator(model, sampling), room, 0
    rows = _power(len(jobs), 1)
    filled = [*jobs, *[jobs[0]] * (rows - len(jobs))]
    draws = Draws(
      jnp.asarray([one.temperature for one in filled], jnp.float32),
      jnp.asarray([one.top_p for one in filled], jnp.float32),
      jnp.asarray([one.seed for one in filled], jnp.uint32),
    )
    ids = [one.adapter for one in filled] if mixes else None
    self._state = self._generator.start([one.ids for one in filled], adapter_ids=ids, draws=draws)
    self.done = np.arange(rows) >= len(jobs)

  def advance(self) -> None:
    """Writes the next tokens of all rows that are not done, and tells them."""
    self._state["done"] = jnp.asarray(self.done)
    limit = min(self._count + _CHUNK, self._room)
    self._state = self._generator.advance(self._state, limit)
    reached = int(self._state["count"])
    tokens, done = np.asarray(self._state["tokens"])[:, self._count : reached], np.asarray(self._state["done"])
    self._count = reached
    now = time.monotonic()
    for row, job in enumerate(self.jobs):
      if not self.done[row]:
        self.done[row] = self._tell(job, self._texts[row], tokens[row], bool(done[row]), now)

  def _tell(self, job: Job, text: Growing, tokens: np.ndarray, is_done: bool, now: float) -> bool:
    """Whether a row is done, with what its job is told."""
    left = job.most - len(text.tokens)
    is_last = is_done or len(tokens) >= left
    piece = text.grown(tokens[:left], is_last)
    count = len(text.tokens)
    if job.cancelled:
      return True
    if text.ended or is_last:
      job.tell(Piece(piece, "stop" if text.ended else "length", count))
      return True
    if now > job.until:
      job.tell(Piece(piece, "timeout", count))
      return True
    if piece:
      job.tell(Piece(piece, tokens=count))
    return False


class Engine:
  """The thread that writes answers. Use as a context manager.

  Args:
    model: the base, or the base with all adapters (`Bank.mixed`); its layers are unrolled.
    tokenizer: of it.
    rules: what holds for every answer: the tokens that end one, and the rules of the model's folder.
    limits: what is taken.
    mixes: whether every row names an adapter.
  """

  def __init__(self, model: Model, tokenizer: Tokenizer, rules: Sampling, limits: Limits, mixes: bool):
    self._model = model.unrolled() if model.stacks else model
    self._tokenizer, self._rules, self.limits, self._mixes = tokenizer, rules, limits, mixes
    self._waiting: collections.deque[Job] = collections.deque()
    self._wakes = threading.Condition()
    self._stops = False
    self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

  def __enter__(self) -> Engine:
    self._thread.start()
    return self

  def __exit__(self, *error: Any) -> None:
    with self._wakes:
      self._stops = True
      self._wakes.notify()
    self._thread.join()

  def submit(self, job: Job) -> None:
    """Lets a job wait for its batch.

    Raises:
      Full: too many wait.
    """
    with self._wakes:
      if self._stops or len(self._waiting) >= self.limits.waiting:
        raise Full
      self._waiting.append(job)
      self._wakes.notify()

  @property
  def longest(self) -> int | None:
    """Tokens of prompt and answer together; None: any number."""
    return longest_of(self._model)

  def _work(self) -> None:
    flights: list[_Flight] = []
    while True:
      with self._wakes:
        while not self._waiting and not flights and not self._stops:
          self._wakes.wait()
        if self._stops:
          return
        jobs = self._next(self.limits.rows - sum(int((~one.done).sum()) for one in flights))
      if jobs:
        with _failures_told(jobs):
          flights.append(_Flight(self._model, self._tokenizer, self._rules, jobs, self._mixes))
      going = []
      for flight in flights:
        with _failures_told(flight.jobs):
          flight.advance()
          going += [] if flight.done.all() else [flight]
      flights = going

  def _next(self, free: int) -> list[Job]:
    """Those that begin together: the first that wait, as far as they fit into the model's positions as one batch."""
    chosen: list[Job] = []
    now = time.monotonic()
    while self._waiting and len(chosen) < free:
      job = self._waiting[0]
      if job.cancelled or now > job.until:
        self._waiting.popleft()
        if not job.cancelled:
          job.tell(Piece("", "timeout"))
        continue
      both = [*chosen, job]
      needed = max(len(one.ids) for one in both) + max(one.most for one in both)
      if chosen and self.longest is not None and needed > self.longest:
        break
      chosen.append(self._waiting.popleft())
    return chosen


@contextlib.contextmanager
def _failures_told(jobs: Sequence[Job]) -> Iterator[None]:
  """Tells the jobs of a batch that it failed in the block; the engine goes on."""
  try:
    yield
  except Exception as error:
    log.error("a batch failed: %s", error)
    for job in jobs:
      job.tell(Piece(str(error).splitlines()[0] if isinstance(error, UserError) else "", "failed"))


def longest_of(model: Model) -> int | None:
  """Tokens that a model has positions for, or that its config.json says it was made for; None: any number."""
  limit = getattr(model.module, "position_limit", None)
  limit = model.hf_config.get("max_position_embeddings") if limit is None else limit
  return int(limit) if limit else None


def _power(count: int, least: int = 32) -> int:
  """The next power of two, of at least so many."""
  return max(1 << (count - 1).bit_length(), least)
