"""Prompt tuning (Lester et al. 2021, arXiv 2104.08691): learned embeddings before the input's.

    [p₁ ... pₙ ; e(x₁) ... e(x_L)] enters the model; the outputs of the n virtual tokens are cut off again.

A sequence classifier pools the first position, which is then a virtual token, as in Hugging Face PEFT. Before patches
of a picture this is visual prompt tuning (Jia et al. 2022, arXiv 2203.12119), shallow or deep: the prompt stands behind
the class token and has no position, and deep, every layer reads one of its own in the place of what became of the last.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from peftjax.errors import UserError, nearest
from peftjax.methods.base import Call, Context, Leaves
from peftjax.methods.virtual_tokens import VirtualTokens
from peftjax.sites import Site

INITS = ("random", "vocab", "text", "class_labels", "uniform")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt(VirtualTokens):
  """Virtual tokens that are leaves themselves.

  Attributes:
    init: random (N(0, 1), as in PEFT), vocab (embeddings of tokens drawn from the vocabulary), text, class_labels
      (one virtual token a label, the mean of its name's embeddings, and the rest drawn from the vocabulary), or uniform
      within ±√(6 / (values of a patch + hidden)), as visual prompts are drawn; models without a vocabulary take uniform
      for vocab.
    deep: a prompt for every layer, of models that embed no tokens.
    init_text: for init="text": the text, repeated or cut to n tokens.
    init_ids: its token ids, for who has no tokenizer.
    label_ids: for init="class_labels": the token ids of each label's name; left out, those of the model's label names.
  """

  name: ClassVar[str] = "prompt"
  leaf_names: ClassVar[tuple[str, ...]] = ("prompt_embeddings",)
  learning_rate: ClassVar[float] = 3e-2

  init: str = "vocab"
  deep: bool = False
  init_text: str = ""
  init_ids: tuple[int, ...] = ()
  label_ids: tuple[tuple[int, ...], ...] = ()
  patch: tuple[int, ...] = dataclasses.field(default=(), repr=False)
  """Axes of the patch that a vector stands for, of models that embed patches."""

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
    method = dataclasses.replace(self, patch=_patch(context))
    reads_tokens = any(site.streams[0].ids for site in context.sites if site.kind == "model")
    if self.deep and reads_tokens:
      raise UserError(f"{self.name}.deep: a prompt for every layer is for pictures; of texts, prefix has one for each")
    if self.init == "text":
      method = dataclasses.replace(method, init_ids=self.init_ids or encoded(self.name, self.init_text, context))
    elif self.init == "class_labels":
      method = dataclasses.replace(method, label_ids=self.label_ids or _label_ids(self.name, context))
    check_ids(self.name, (*method.init_ids, *itertools.chain(*method.label_ids)), context)
    return super(Prompt, method).bind(context)

  def select(self, context: Context) -> list[Site]:
    models = super().select(context)
    if not self.deep:
      return models
    stream = models[0].streams[0]
    return [*models, *(site for site in context.sites if site.kind == "block" and stream in site.streams)]

  def create(self, key: jax.Array, site: Site, base: Leaves) -> Leaves:
    count = self.rows
    if self.deep and site.kind == "model":
      return {}
    if self.init == "random":
      return {"prompt_embeddings": jax.random.normal(key, (count, *site.shape))}
    vocabulary = base.get("embedding")
    if self.init == "uniform" or (vocabulary is None and self.init == "vocab"):
      patch = math.prod(self.patch or site.shape)
      bound = math.sqrt(6.0 / (patch + site.shape[0]))
      return {"prompt_embeddings": jax.random.uniform(key, (count, *site.shape), minval=-bound, maxval=bound)}
    if vocabulary is None:
      raise UserError(f"{self.name}.init={self.init!r}: the model embeds no tokens; use uniform or random")
    if self.init == "text":
      return {"prompt_embeddings": vocabulary[jnp.resize(jnp.asarray(self.init_ids), (count,))].astype(jnp.float32)}
    drawn = vocabulary[jax.random.randint(key, (count,), 0, vocabulary.shape[0])].astype(jnp.float32)
    for index, label in enumerate(self.label_ids if self.init == "class_labels" else ()):
      drawn = drawn.at[index].set(vocabulary[jnp.asarray(label)].astype(jnp.float32).mean(axis=0))
    return {"prompt_embeddings": drawn}

  def before(self, leaves: Leaves, x: dict[str, Any], site: Site, call: Call) -> dict[str, Any]:
    if not self.deep:
      return super().before(leaves, x, site, call)
    if site.kind == "model":
      return super().before({"prompt_embeddings": jnp.zeros((self.rows, *site.shape))}, x, site, call)
    name, states = next(iter(x.items()))
    prompt = leaves["prompt_embeddings"][: self.num_virtual_tokens].astype(states.dtype)
    start = site.streams[0].start
    return {**x, name: states.at[:, start : start + len(prompt)].set(prompt)}

  def after(self, leaves: Leaves, x: dict[str, Any], y: Any, site: Site, call: Call) -> Any:
    return super().after(leaves, x, y, site, call) if site.kind == "model" else y

  def prompt(self, leaves: Leaves, call: Call | None = None) -> jax.Array:
    del call
    embeddings: jax.Array = leaves["prompt_embeddings"]
    return embeddings


def _patch(context: Context) -> tuple[int, ...]:
  """Axes of the window that each vector of the first stream is computed from; () of a model of tokens."""
  places = {site.base_path for site in context.sites if site.kind == "model"}
  return next((site.shape[:-1] for site in context.sites if site.kind == "conv" and site.path in places), ())


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
