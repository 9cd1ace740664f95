"""Shapes of published models, as their config.json gives them, for counts and bytes of what nobody trains here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from peftjax import config as config_lib
from peftjax.files import write_text
from peftjax.model import Model
from peftjax.train import assemble

Shapes = dict[str, Any]
DIFFUSION = Path(__file__).parents[1] / "tests" / "published" / "stable-diffusion-1.5"
UNET: Shapes = json.loads((DIFFUSION / "unet" / "config.json").read_text(encoding="utf-8"))


def llama(hidden: int, ffn: int, layers: int, heads: int, kv_heads: int, vocab: int, tied: bool = False) -> Shapes:
  """A decoder of the LLaMA family."""
  return {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": vocab,
    "hidden_size": hidden,
    "intermediate_size": ffn,
    "num_hidden_layers": layers,
    "num_attention_heads": heads,
    "num_key_value_heads": kv_heads,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": tied,
  }


def t5(hidden: int, ffn: int, heads: int, vocab: int = 32128, kind: str = "t5") -> Shapes:
  """T5 version 1.1 and mT5 of 24 + 24 layers: gated feed-forward, untied head."""
  return {
    "model_type": kind,
    "architectures": [f"{kind.upper()}ForConditionalGeneration"],
    "vocab_size": vocab,
    "d_model": hidden,
    "d_kv": 64,
    "d_ff": ffn,
    "num_heads": heads,
    "num_layers": 24,
    "num_decoder_layers": 24,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
  }


LLAMA_7B = llama(4096, 11008, 32, 32, 32, 32000)
T0_3B, T0_11B = t5(2048, 5120, 32), t5(4096, 10240, 64)
MT0_LARGE = t5(1024, 2816, 16, 250112, "mt5")
GPT3 = {  # its matrices, with query and value as modules of their own
  "model_type": "opt",
  "architectures": ["OPTForCausalLM"],
  "vocab_size": 50257,
  "hidden_size": 12288,
  "word_embed_proj_dim": 12288,
  "ffn_dim": 4 * 12288,
  "num_hidden_layers": 96,
  "num_attention_heads": 96,
  "max_position_embeddings": 2048,
}
DECODERS: dict[str, Shapes] = {  # from 100M to 70B parameters
  "SmolLM2-135M": llama(576, 1536, 30, 9, 3, 49152, tied=True),
  "Llama-3.2-1B": llama(2048, 8192, 16, 32, 8, 128256, tied=True),
  "Llama-3.2-3B": llama(3072, 8192, 28, 24, 8, 128256, tied=True),
  "LLaMA-7B": LLAMA_7B,
  "Llama-2-13B": llama(5120, 13824, 40, 40, 40, 32000),
  "Llama-3-70B": llama(8192, 28672, 80, 64, 8, 128256),
}


def config_of(folder: Path, shapes: Shapes, method: Mapping[str, Any], **model: Any) -> ConfigDict:
  """The config of a run on such a model; `folder` gets its config.json, and `model` sets fields of `config.model`."""
  folder.mkdir(parents=True, exist_ok=True)
  write_text(folder / "config.json", json.dumps(shapes))
  config = config_lib.default()
  config.model.update({"path": str(folder), **model})
  with config.unlocked():
    config.method = ConfigDict(dict(method))
  return config


def model_of(folder: Path, shapes: Shapes, method: Mapping[str, Any]) -> Model:
  """The model with a method, as shapes alone."""
  return assemble.stored(config_of(folder, shapes, method), assemble.Head()).model(abstract=True)
