"""Tiny models of several families against transformers on torch, on the same device."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.accelerator.distance import distance
from peftjax import masks
from peftjax.loading import from_config
from peftjax.model import Model
from peftjax.models.layers import Runtime

COMMON = {"vocab_size": 128, "initializer_range": 0.1}
FAMILIES: dict[str, dict[str, Any]] = {
  "bert": {
    "model_type": "bert", "architectures": ["BertForSequenceClassification"], "hidden_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96, "max_position_embeddings": 64,
  },
  "roberta": {
    "model_type": "roberta", "architectures": ["RobertaForSequenceClassification"], "hidden_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96, "max_position_embeddings": 66,
    "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1,
  },
  "llama": {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96, "tie_word_embeddings": False,
  },
  "gpt2": {
    "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 64, "n_layer": 2, "n_head": 2,
    "n_positions": 64,
  },
  "t5": {
    "model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "d_model": 64, "d_kv": 32, "d_ff": 96,
    "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2, "decoder_start_token_id": 0, "pad_token_id": 0,
  },
}  # fmt: skip


def check(checks: Any) -> None:
  """Every family, with padding on the right and, for decoders, on the left."""
  for name in reversed(FAMILIES):
    for side in ("right", "left") if name in ("llama", "gpt2") else ("right",):
      checks.attempt(f"{name}, padded on the {side}", one, name, side)


def one(name: str, side: str) -> tuple[bool, dict[str, Any]]:
  """Logits at tokens: float32 against float32, and both libraries' bfloat16 against torch's float32."""
  model = drawn(name)
  given = batch(name, side)
  kept = given["decoder_attention_mask"] if name == "t5" else given["attention_mask"]
  kept = kept.astype(bool) if "Classification" not in model.architecture else None
  low = dataclasses.replace(model.runtime, compute_dtype=jnp.bfloat16)
  lowered = from_config({**COMMON, **FAMILIES[name]}, runtime=low).with_params(model.params)
  with jax.default_matmul_precision("highest"):
    ours = np.asarray(model(**given)["logits"], np.float32)
  ours_low = np.asarray(lowered(**given)["logits"], np.float32)
  theirs, theirs_low = torch_logits(model, given)
  pick = (lambda x: x) if kept is None else (lambda x: x[kept])
  figures = {
    "float32": distance(pick(ours), pick(theirs)),
    "bfloat16": distance(pick(ours_low), pick(theirs)),
    "bfloat16_torch": distance(pick(theirs_low), pick(theirs)),
  }
  return figures["float32"] < 1e-4 and figures["bfloat16"] < max(2 * figures["bfloat16_torch"], 0.02), figures


def drawn(name: str) -> Model:
  """A model with random leaves, wide enough that every layer matters."""
  model = from_config({**COMMON, **FAMILIES[name]}, runtime=Runtime())
  random = np.random.default_rng(0)

  def draw(path: str, leaf: Any) -> jax.Array:
    noise = random.normal(size=leaf.shape).astype(np.float32)
    return jnp.asarray(1.0 + 0.1 * noise if path.endswith("scale") else 0.1 * noise)

  return model.with_params(masks.unflatten({path: draw(path, x) for path, x in masks.flatten(model.params).items()}))


def batch(name: str, side: str) -> dict[str, np.ndarray]:
  """Rows of 32 tokens with padding."""
  random = np.random.default_rng(1)
  mask = np.ones((4, 32), np.int32)
  for row in range(4):
    if side == "right":
      mask[row, 32 - 5 * row :] = 0
    else:
      mask[row, : 5 * row] = 0
  pad = 1 if name == "roberta" else 0
  ids = np.where(mask, random.integers(5, 128, mask.shape), pad).astype(np.int32)
  given = {"input_ids": ids, "attention_mask": mask}
  if name == "t5":
    targets = random.integers(5, 128, (4, 16)).astype(np.int32)
    return given | {"decoder_input_ids": targets, "decoder_attention_mask": np.ones_like(targets)}
  if side == "left":
    given["position_ids"] = np.maximum(mask.cumsum(axis=1) - 1, 0).astype(np.int32)
  return given


def torch_logits(model: Model, given: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  """transformers' logits in float32 and under autocast to bfloat16."""
  import torch
  import transformers

  torch.backends.cuda.matmul.allow_tf32 = False
  torch.backends.cudnn.allow_tf32 = False
  device = "cuda" if torch.cuda.is_available() else "cpu"
  kinds = {"T5ForConditionalGeneration": transformers.AutoModelForSeq2SeqLM}
  kind = transformers.AutoModelForCausalLM
  if "Classification" in model.architecture:
    kind = transformers.AutoModelForSequenceClassification
  with tempfile.TemporaryDirectory() as folder:
    model.save(Path(folder) / "model")
    kind = kinds.get(model.architecture, kind)
    network = kind.from_pretrained(Path(folder) / "model", dtype=torch.float32).to(device).eval()
  tensors = {name: torch.as_tensor(array).long().to(device) for name, array in given.items()}
  with torch.inference_mode():
    exact = network(**tensors).logits.float().cpu().numpy()
    with torch.autocast(device, torch.bfloat16):
      low = network(**tensors).logits.float().cpu().numpy()
  return exact, low
