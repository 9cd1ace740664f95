"""Prompt tuning (Lester et al. 2021, arXiv 2104.08691): learned embeddings before the input's.

    [p₁ ... pₙ ; e(x₁) ... e(x_L)] enters the model; the outputs of the n virtual tokens are cut off again.

A sequence classifier pools the first position, which is then a virtual token, as in Hugging Face PEFT.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable
from typing import ClassVar, Self

import jax
import jax.numpy as jnp

from peftjax.errors import UserError, nearest
from peftjax.methods.base import Call, Context, Leaves
from peftjax.methods.virtual_tokens import VirtualTokens
from peftjax.sites import Site

INITS = ("random", "vocab", "text", "class_labels")


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
