"""What decoder-only language models share around their layers: the output layer, the loss, the sequence classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from peftjax.models.family import CAUSAL_LM, ENCODER, TEXT_CLASSIFICATION, Architecture
from peftjax.models.kv_cache import Tokens, check_positions, counted_positions, place
from peftjax.models.layers import Runtime
from peftjax.models.token_loss import token_losses
from peftjax.sites import HasSites, Stream

Outputs = dict[str, jax.Array]

_TOKENS = Stream(
  ids="input_ids",
  mask="attention_mask",
  positions="position_ids",
  packed="segment_ids",
  outputs={"last_hidden_state": 1, "hidden_states": 2},
)


class BareDecoder(nn.Module, HasSites):
  """A decoder without an output layer: what its call and its word embeddings do; families add `run_layers`.

  Inputs as `CausalLM`'s. Outputs: "last_hidden_state" [B, L, hidden], normalised.
  """

  config: Any
  runtime: Runtime
  sites: ClassVar = {"from_embeds": "model"}
  streams: ClassVar = (_TOKENS,)
  embedding: ClassVar[str] = "embed_tokens"
  skips_padding: ClassVar[bool] = False

  def __call__(
    self,
    input_ids: jax.Array,
    attention_mask: jax.Array | None = None,
    position_ids: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
  ) -> Outputs:
    outputs: Outputs = self.from_embeds(self.embed(input_ids), attention_mask, position_ids, segment_ids)
    return outputs

  def from_embeds(
    self,
    embeds: jax.Array,
    attention_mask: jax.Array | None = None,
    position_ids: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
  ) -> Outputs:
    """The model after its word embeddings, [B, L, hidden]; where a prompt enters.

    Raises:
      UserError: more tokens than there are learned positions.
    """
    tokens = place(self, embeds, attention_mask, position_ids, segment_ids, skips_padding=self.skips_padding)
    if self.position_limit is not None:
      check_positions(tokens, self.position_limit)
    return self.run_layers(embeds, tokens)

  def run_layers(self, embeds: jax.Array, tokens: Tokens) -> Outputs:
    """The outputs from word embeddings and where their tokens stand: each family's own."""
    raise TypeError(f"{type(self).__name__} has no layers")

  @property
  def embedding_path(self) -> tuple[str, ...]:
    """Where the word embeddings stand in the tree."""
    return (self.embedding,)

  @property
  def position_limit(self) -> int | None:
    """How many positions there are, where they are learned."""
    return getattr(self.config, "position_limit", None)

  def default_positions(self, inputs: Mapping[str, Any]) -> jax.Array | None:
    """int[B, L] that `from_embeds` counts for these inputs of its own; None where they go on from the cache's."""
    mask, segments = inputs.get("attention_mask"), inputs.get("segment_ids")
    return counted_positions(self, inputs["embeds"], mask, segments, skips_padding=self.skips_padding)

  def embed(self, input_ids: jax.Array) -> jax.Array:
    """Word embeddings alone, [B, L, hidden]."""
    return getattr(self, self.embedding)(input_ids)

  def attend_embedding(self, hidden: jax.Array) -> jax.Array:
    """Products with the word embeddings: a tied output layer."""
    return getattr(self, self.embedding).attend(hidden)


def outputs_of(embedded: jax.Array, layers: jax.Array | None, last: jax.Array) -> Outputs:
  """The bare decoder's outputs from what entered the first layer, each layer's output if kept, and the final states."""
  outputs = {"last_hidden_state": last}
  if layers is not None:
    outputs["hidden_states"] = jnp.concatenate([embedded[None], layers[:-1], last[None]])
  return outputs


class _OnDecoder(nn.Module, HasSites):
  """A bare decoder under its Hugging Face name (`prefix`) and what is computed from its hidden states."""

  config: Any
  runtime: Runtime
  sites: ClassVar = {"from_embeds": "model"}
  streams: ClassVar = (_TOKENS,)
  bare: ClassVar[Any] = None
  prefix: ClassVar[str] = "model"

  @property
  def decoder(self) -> Any:
    """The decoder without its output layer, a submodule."""
    return getattr(self, self.prefix)

  @property
  def embedding_path(self) -> tuple[str, ...]:
    """Where the word embeddings stand in the tree."""
    return (self.prefix, *self.decoder.embedding_path)

  @property
  def position_limit(self) -> int | None:
    """How many positions there are, where they are learned."""
    return getattr(self.config, "position_limit", None)

  def default_positions(self, inputs: Mapping[str, Any]) -> jax.Array | None:
    """int32 [B, L], or None: see the bare decoder's `default_positions`."""
    return self.decoder.default_positions(inputs)

  def from_embeds(
    self,
    embeds: jax.Array,
    attention_mask: jax.Array | None = None,
    position_ids: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
  ) -> Outputs:
    """The bare decoder after its word embeddings; where a prompt enters."""
    return self.decoder.from_embeds(embeds, attention_mask, position_ids, segment_ids)


class OutputBias(nn.Module):
  """What an output layer adds to products with the word embeddings."""

  vocabulary: int
  runtime: Runtime

  @nn.compact
  def __call__(self, products: jax.Array) -> jax.Array:
    bias = self.param("bias", nn.initializers.zeros, (self.vocabulary,), self.runtime.dtype)
    return products + bias.astype(products.dtype)


class CausalLM(_OnDecoder):
  """Next-token prediction.

  Inputs: input_ids int[B, L]; attention_mask int[B, L], 1 for tokens; position_ids int[B, L]; segment_ids int[B, L] of
  packed sequences, whose positions restart; targets int[B, L], the token after each, -100 for none.
  Outputs: "last_hidden_state" [B, L, hidden]; "logits" [B, L, vocabulary], or with `targets` "token_losses" and
  "token_hits" float32[B, L] instead, and then the logits never exist as a whole.

  Where the output layer is tied, `head_name` is what one of its own is called, and `tied_entries` are the entries of
  config.json whose default depends on it.
  """

  head_name: ClassVar[str] = "lm_head"
  head_bias: ClassVar[bool] = False
  tied_entries: ClassVar[tuple[str, ...]] = ()

  def setup(self) -> None:
    setattr(self, self.prefix, self.bare(self.config, self.runtime))
    if not self.config.tie_word_embeddings:
      setattr(self, self.head_name, self.runtime.dense(self.config.vocab_size, self.head_bias))
    elif self.head_bias:
      setattr(self, self.head_name, OutputBias(self.config.vocab_size, self.runtime))

  def __call__(
    self,
    input_ids: jax.Array,
    attention_mask: jax.Array | None = None,
    position_ids: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    targets: jax.Array | None = None,
  ) -> Outputs:
    outputs = self.from_embeds(self.decoder.embed(input_ids), attention_mask, position_ids, segment_ids)
    hidden = outputs["last_hidden_state"]
    if targets is not None:
      return {**outputs, **token_losses(self, hidden, targets, self.config.vocab_size)}
    return {**outputs, "logits": self.head(hidden)}

  def head(self, hidden: jax.Array) -> jax.Array:
    """Logits [..., vocabulary] from hidden states [..., hidden]."""
    if self.config.tie_word_embeddings:
      products = self.decoder.attend_embedding(hidden)
      return self.shape_logits(getattr(self, self.head_name)(products) if self.head_bias else products)
    return self.shape_logits(getattr(self, self.head_name)(hidden))

  def shape_logits(self, logits: jax.Array) -> jax.Array:
    """What the family does to logits before they are returned."""
    return logits

  def prefill(self, input_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:
    """Logits [B, vocabulary] after the last position of prompts that are padded on the left; fills the cache."""
    positions = jnp.maximum(jnp.cumsum(attention_mask, axis=1) - 1, 0)
    outputs = self.from_embeds(self.decoder.embed(input_ids), attention_mask, positions, None)
    return self.head(outputs["last_hidden_state"][:, -1])

  def step(self, input_ids: jax.Array) -> jax.Array:
    """Logits [B, vocabulary] after one more token a row, int[B, 1], from the cache. No prompt enters here."""
    outputs = self.decoder.from_embeds(self.decoder.embed(input_ids))
    return self.head(outputs["last_hidden_state"][:, -1])


class DecoderForSequenceClassification(_OnDecoder):
  """One label a sequence from its last token: "logits" [B, labels].

  The last token is the last that is not config.json's padding id, as Hugging Face has it; where there is no padding id,
  the last that `attention_mask` marks.
  """

  def setup(self) -> None:
    setattr(self, self.prefix, self.bare(self.config, self.runtime))
    self.score = self.runtime.dense(self.config.num_labels, use_bias=False)

  def __call__(
    self,
    input_ids: jax.Array,
    attention_mask: jax.Array | None = None,
    position_ids: jax.Array | None = None,
  ) -> Outputs:
    outputs = self.from_embeds(self.decoder.embed(input_ids), attention_mask, position_ids, None)
    hidden = outputs["last_hidden_state"]
    pad = self.config.pad_token_id
    is_token = attention_mask
    if pad is not None:  # what is masked is none, be it filled up with another id than config.json's
      is_token = (input_ids != pad) & (True if attention_mask is None else attention_mask != 0)
    if is_token is None:
      return {**outputs, "logits": self.score(hidden[:, -1])}
    last = (jnp.arange(input_ids.shape[1]) * is_token.astype(jnp.int32)).argmax(axis=1)
    pooled = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    return {**outputs, "logits": self.score(pooled)}


def architectures(
  name: str, bare: type[nn.Module], lm: Any, classifier: Any, prefix: str, lm_name: str = ""
) -> dict[str, Architecture]:
  """The three architectures of a decoder family whose Hugging Face classes start with `name`."""
  return {
    lm_name or f"{name}ForCausalLM": Architecture(lm, CAUSAL_LM, prefix),
    f"{name}ForSequenceClassification": Architecture(classifier, TEXT_CLASSIFICATION, prefix, ("score",)),
    f"{name}Model": Architecture(bare, ENCODER),
  }
