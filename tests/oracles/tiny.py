"""Tiny torch models with odd sizes, saved as Hugging Face folders, and inputs for them."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

SIZES: dict[str, Any] = {
  "vocab_size": 53,
  "hidden_size": 24,
  "num_hidden_layers": 3,
  "num_attention_heads": 3,
  "intermediate_size": 40,
  "max_position_embeddings": 37,
  "num_labels": 5,
}
FAMILIES = {"Bert": {}, "Roberta": {"pad_token_id": 1}}
ENCODERS = [
  "BertModel",
  "BertForSequenceClassification",
  "BertForTokenClassification",
  "RobertaModel",
  "RobertaForSequenceClassification",
  "RobertaForTokenClassification",
]


@functools.cache
def model(class_name: str, **sizes: Any) -> tuple[torch.nn.Module, Path]:
  """(torch model in evaluation mode with wide random weights, its folder)."""
  family = next(name for name in FAMILIES if class_name.startswith(name))
  config = getattr(transformers, f"{family}Config")(**{**SIZES, **FAMILIES[family], **sizes})
  torch.manual_seed(0)
  made = getattr(transformers, class_name)(config).eval()
  for name, parameter in made.named_parameters():
    centre = 1.0 if name.endswith("LayerNorm.weight") else 0.0
    torch.nn.init.normal_(parameter, mean=centre, std=0.2)
  folder = Path(tempfile.mkdtemp(prefix="tiny-"))
  made.save_pretrained(folder)
  return made, folder


def inputs(class_name: str, batch: int = 3, length: int = 11) -> dict[str, np.ndarray]:
  """Ragged sequences, padded on the right."""
  pad = 1 if class_name.startswith("Roberta") else 0
  rng = np.random.default_rng(0)
  ids = rng.integers(2, SIZES["vocab_size"], (batch, length))
  mask = np.ones((batch, length), np.int64)
  for row in range(1, batch):
    end = length - 3 * row
    ids[row, end:], mask[row, end:] = pad, 0
  return {"input_ids": ids, "attention_mask": mask}


def torch_outputs(made: torch.nn.Module, batch: dict[str, np.ndarray], **extra: Any) -> Any:
  """The model's outputs without gradients."""
  with torch.no_grad():
    return made(**{name: torch.tensor(value) for name, value in batch.items()}, **extra)
