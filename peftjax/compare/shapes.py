"""Exact parameter counts of published architectures from their shapes, for claims about models nobody trains here."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class EncoderDecoder:
  """T5 version 1.1 and mT5: gated feed-forward, untied head, relative position bias in the first layers."""

  vocab: int
  hidden: int
  ffn: int
  layers: int  # of the encoder, and as many of the decoder
  heads: int
  head_dim: int = 64
  buckets: int = 32

  @property
  def total(self) -> int:
    inner, feed_forward = self.heads * self.head_dim, 3 * self.hidden * self.ffn
    encoder = 4 * self.hidden * inner + feed_forward + 2 * self.hidden
    decoder = 8 * self.hidden * inner + feed_forward + 3 * self.hidden
    ends = 2 * self.vocab * self.hidden + 2 * self.hidden + 2 * self.buckets * self.heads
    return self.layers * (encoder + decoder) + ends

  def lora(self, rank: int) -> int:
    """Trainable parameters of LoRA on the query and value of all three attentions."""
    return 3 * self.layers * 2 * rank * (self.hidden + self.heads * self.head_dim)

  def ia3(self) -> int:
    """Trainable parameters of (IA)3: key and value of all attentions, and the feed-forward's inner activation."""
    return 3 * self.layers * 2 * self.heads * self.head_dim + 2 * self.layers * self.ffn


@dataclasses.dataclass(frozen=True)
class Decoder:
  """The LLaMA family: gated feed-forward, grouped key and value heads, no biases."""

  name: str
  vocab: int
  hidden: int
  ffn: int
  layers: int
  heads: int
  kv_heads: int
  tied: bool = False

  @property
  def kv_dim(self) -> int:
    return self.hidden // self.heads * self.kv_heads

  @property
  def matrices(self) -> int:
    """Parameters in the layers' matrices."""
    attention = 2 * self.hidden**2 + 2 * self.hidden * self.kv_dim
    return self.layers * (attention + 3 * self.hidden * self.ffn)

  @property
  def total(self) -> int:
    ends = (1 if self.tied else 2) * self.vocab * self.hidden
    return self.matrices + ends + (2 * self.layers + 1) * self.hidden

  def lora(self, rank: int) -> int:
    """Trainable parameters of LoRA on query and value."""
    return self.layers * rank * (2 * self.hidden + self.hidden + self.kv_dim)

  def lora_step_flops(self, rank: int) -> int:
    """FLOPs a token of a LoRA step in the matrices: forward 2 N, backward through activations 2 N, adapters 6 each."""
    return 4 * (self.matrices + self.vocab * self.hidden) + 6 * self.lora(rank)

  def full_step_flops(self) -> int:
    """FLOPs a token of a full step in the matrices: forward, activations' and weights' gradients, 2 N each."""
    return 6 * (self.matrices + self.vocab * self.hidden)


MT0_LARGE = EncoderDecoder(vocab=250112, hidden=1024, ffn=2816, layers=24, heads=16)
T5_XL = EncoderDecoder(vocab=32128, hidden=2048, ffn=5120, layers=24, heads=32)
T5_XXL = EncoderDecoder(vocab=32128, hidden=4096, ffn=10240, layers=24, heads=64)

GPT3_TOTAL = 175_000_000_000  # as its paper names it
GPT3_LORA_R4 = 96 * 2 * 4 * (12288 + 12288)

DECODERS = (
  Decoder("SmolLM2-135M", 49152, 576, 1536, 30, 9, 3, tied=True),
  Decoder("Llama-3.2-1B", 128256, 2048, 8192, 16, 32, 8, tied=True),
  Decoder("Llama-3.2-3B", 128256, 3072, 8192, 28, 24, 8, tied=True),
  Decoder("LLaMA-7B", 32000, 4096, 11008, 32, 32, 32),
  Decoder("Llama-2-13B", 32000, 5120, 13824, 40, 40, 40),
  Decoder("Llama-3-70B", 128256, 8192, 28672, 80, 64, 8),
)
