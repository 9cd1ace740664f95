"""Prompt tuning (Lester et al. 2021, arXiv 2104.08691): learned embeddings before the input's.

    [p₁ ... pₙ ; e(x₁) ... e(x_L)] enters the model; the outputs of the n virtual tokens are cut off again.

A sequence classifier pools the first position, which is then a virtual token, as in Hugging Face PEFT.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from peftjax.errors import UserError, nearest
from peftjax.methods.base import Call, Context, Leaves, Method
from peftjax.sites import Site, Stream

INITS = ("random", "vocab", "text", "class_labels")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VirtualTokens(Method):
  """A method that puts learned embeddings before the input's.

  Attributes:
    num_virtual_tokens: n.
    num_transformer_submodules: PEFT keeps this many times n rows and uses the first n; 0: as PEFT chooses, 2 for
      encoder-decoder language models and 1 otherwise.
  """

  kinds: ClassVar[tuple[str, ...]] = ("model",)

  num_virtual_tokens: int = 20
  num_transformer_submodules: int = 0

  def __post_init__(self) -> None:
    if self.num_virtual_tokens < 1:
      raise UserError(f"{self.name}.num_virtual_tokens: expected at least 1, got {self.num_virtual_tokens}")

  def bind(self, context: Context) -> Self:
    limit = context.config.get("max_position_embeddings")
    if isinstance(limit, int) and self.num_virtual_tokens >= limit:
      raise UserError(f"{self.name}.num_virtual_tokens: {self.num_virtual_tokens} fill all {limit} positions")
    bound = super().bind(context)
    is_pair = any(len(site.streams) > 1 for site in context.sites if site.kind == "model")
    submodules = self.num_transformer_submodules or (2 if is_pair and not context.head else 1)
    return dataclasses.replace(bound, num_transformer_submodules=submodules)

  @property
  def rows(self) -> int:
    """How many embeddings are kept."""
    return self.num_virtual_tokens * max(self.num_transformer_submodules, 1)

  def select(self, context: Context) -> list[Site]:
    sites = [site for site in context.sites if site.kind == "model"]
    if not sites:
      raise UserError(f"method {self.name!r} needs a model that declares its embedding step, and this one does not")
    return sites

  def prompt(self, leaves: Leaves, call: Call | None = None) -> jax.Array:
    """All embeddings kept, [rows, hidden]; without a call, as for inference."""
    raise UserError(f"{self.name} makes no prompt")

  def before(self, leaves: Leaves, x: dict[str, Any], site: Site, call: Call) -> dict[str, Any]:
    stream = site.streams[0]
    check_room(self.name, call.module, x[stream.embeds].shape[1], self.num_virtual_tokens)
    if x.get(stream.packed) is not None:
      raise UserError(f"{self.name}: a prompt stands before one sequence; packed sequences cannot share it")
    return prepend(x, self.prompt(leaves, call)[: self.num_virtual_tokens], stream)

  def after(self, leaves: Leaves, x: dict[str, Any], y: dict[str, Any], site: Site, call: Call) -> dict[str, Any]:
    return cut(y, self.num_virtual_tokens, site.streams[0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt(VirtualTokens):
  """Virtual tokens that are leaves themselves.

  Attributes:
    init: random (N(0, 1), as in PEFT), vocab (embeddings of tokens drawn from the vocabulary), text, or class_labels
      (one virtual token a label, the mean of its name's embeddings, and the rest drawn from the vocabulary).
    init_text: for init="text": the text, repeated or cut to n tokens.
    init_ids: its token ids, for who has no tokenizer.
    label_ids: for init="class_labels": the token ids of each label's name; left out, those of the model's label names.
  """

  name: ClassVar[str] = "prompt"
  leaf_names: ClassVar[tuple[str, ...]] = ("prompt_embeddings",)
  learning_rate: ClassVar[float] = 3e-2

  init: str = "vocab"
  init_text: str = ""
  init_ids: tuple[int, ...] = ()
  label_ids: tuple[tuple[int, ...], ...] = ()

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.init not in INITS:
      raise UserError(f"{self.name}.init: unknown {self.init!r}; {nearest(self.init, INITS)}")
    if self.init == "text" and not (self.init_ids or self.init_text):
      raise UserError(f"{self.name}.init='text' needs init_text, or init_ids, the token ids of the text")
    if not all(self.label_ids):
      raise UserError(f"{self.name}.label_ids: a label has no token; every one needs the token ids of its name")
    if len(self.label_ids) > self.num_virtual_tokens:
      raise UserError(
        f"{self.name}.num_virtual_tokens: {len(self.label_ids)} labels do not fit {self.num_virtual_tokens} tokens"
      )

  def bind(self, context: Context) -> Self:
    method = self
    if self.init == "text":
      method = dataclasses.replace(self, init_ids=self.init_ids or encoded(self.name, self.init_text, context))
    elif self.init == "class_labels":
      method = dataclasses.replace(self, label_ids=self.label_ids or _label_ids(self.name, context))
    check_ids(self.name, (*method.init_ids, *itertools.chain(*method.label_ids)), context)
    return super(Prompt, method).bind(context)

  def create(self, key: jax.Array, site: Site, base: Leaves) -> Leaves:
    count = self.rows
    if self.init == "random":
      return {"prompt_embeddings": jax.random.normal(key, (count, *site.shape))}
    vocabulary = base["embedding"]
    if self.init == "text":
      return {"prompt_embeddings": vocabulary[jnp.resize(jnp.asarray(self.init_ids), (count,))].astype(jnp.float32)}
    drawn = vocabulary[jax.random.randint(key, (count,), 0, vocabulary.shape[0])].astype(jnp.float32)
    for index, label in enumerate(self.label_ids if self.init == "class_labels" else ()):
      drawn = drawn.at[index].set(vocabulary[jnp.asarray(label)].astype(jnp.float32).mean(axis=0))
    return {"prompt_embeddings": drawn}

  def prompt(self, leaves: Leaves, call: Call | None = None) -> jax.Array:
    del call
    embeddings: jax.Array = leaves["prompt_embeddings"]
    return embeddings


def prepend(inputs: dict[str, Any], prompt: jax.Array, stream: Stream) -> dict[str, Any]:
  """The model site's inputs with `prompt` [n, hidden] in every sequence of a stream: before it, or behind its start."""
  embeds = inputs[stream.embeds]
  batch, count = embeds.shape[0], prompt.shape[0]

  def joined(values: jax.Array, new: Any) -> jax.Array:
    new = jnp.broadcast_to(jnp.asarray(new, values.dtype), (batch, count, *values.shape[2:]))
    return jnp.concatenate([values[:, : stream.start], new, values[:, stream.start :]], axis=1)

  extended = {**inputs, stream.embeds: joined(embeds, prompt)}
  for name, value in {stream.mask: 1, **stream.along}.items():
    if inputs.get(name) is not None:
      extended[name] = joined(inputs[name], value)
  return {**extended, stream.positions: None} if stream.positions else extended


def cut(outputs: dict[str, Any], count: int, stream: Stream) -> dict[str, Any]:
  """The outputs without those of `count` virtual tokens."""

  def one(value: jax.Array, axis: int) -> jax.Array:
    ends = [(0, stream.start), (stream.start + count, value.shape[axis])]
    parts = [jax.lax.slice_in_dim(value, *each, axis=axis) for each in ends if each[0] < each[1]]
    return jnp.concatenate(parts, axis=axis)

  return {
    name: one(value, stream.outputs[name]) if name in stream.outputs else value for name, value in outputs.items()
  }


def shifted(inputs: dict[str, Any], module: Any, count: int, streams: Iterable[Stream]) -> dict[str, Any]:
  """The model site's inputs with the positions of sequences behind `count` virtual tokens.

  These are the positions given, or those that the model would count; None where they go on from a cache's, whose first
  tokens were shifted already.
  """
  for stream in streams:
    if stream.positions:
      inputs = {**inputs, stream.positions: _shifted(inputs, module, count, stream)}
  return inputs


def _shifted(inputs: dict[str, Any], module: Any, count: int, stream: Stream) -> jax.Array | None:
  positions = inputs.get(stream.positions)
  if positions is None and hasattr(module, "default_positions"):
    positions = module.default_positions(inputs)
    if positions is None:
      return None
  elif positions is None:
    batch, length = inputs[stream.embeds].shape[:2]
    positions = jnp.broadcast_to(jnp.arange(length), (batch, length))
  return positions + count


def encoded(name: str, text: str, context: Context) -> tuple[int, ...]:
  """The token ids of a text by the model's tokenizer."""
  if context.encode is None:
    raise UserError(f"{name}: the model came without a tokenizer; give token ids instead of the text")
  return context.encode(text)


def _label_ids(name: str, context: Context) -> tuple[tuple[int, ...], ...]:
  labels = context.config.get("id2label") or {}
  names = [str(labels[key]) for key in sorted(labels, key=int)]
  if not names or any(re.fullmatch(r"LABEL_\d+", one) for one in names):
    raise UserError(f"{name}.init='class_labels': the model's labels have no names; give label_ids")
  special = set(encoded(name, "", context))
  return tuple(
    tuple(token for token in encoded(name, one.replace("_", " "), context) if token not in special) for one in names
  )


def check_ids(name: str, ids: Iterable[int], context: Context) -> None:
  """Raises a `UserError` if a token id is outside the model's vocabulary."""
  vocabulary = context.config.get("vocab_size")
  for token in ids:
    if isinstance(vocabulary, int) and not 0 <= token < vocabulary:
      raise UserError(f"{name}: token id {token} is outside the vocabulary of {vocabulary}")


def longest(inputs: dict[str, Any], site: Site) -> int:
  """The length of the model site's longest sequences."""
  return max(inputs[stream.embeds].shape[1] for stream in site.streams)


def check_room(name: str, module: Any, length: int, count: int) -> None:
  """Raises a `UserError` if a sequence of `length` and `count` virtual tokens exceed the model's learned positions."""
  limit = getattr(module, "position_limit", None)
  if limit is not None and length + count > limit:
    raise UserError(
      f"{name}: {length} tokens and {count} virtual tokens do not fit the model's {limit} positions; "
      f"shorten the texts to {limit - count} or use fewer virtual tokens"
    )
