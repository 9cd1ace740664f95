"""LoRA on experts against live PEFT, which keeps a layer's experts, and their gate and up together, as one array."""

from __future__ import annotations

import re

import numpy as np
import peft
import pytest
import torch
import transformers

from peftjax import masks, methods
from tests.models.decoder_models import with_method
from tests.oracles.decoders import VOCABULARY, assert_close, load_pair, run_theirs, token_batch

EXPERTS, RANK, ALPHA = 4, 2, 3.0
SIZES = {
  "vocab_size": VOCABULARY,
  "hidden_size": 24,
  "intermediate_size": 20,
  "num_hidden_layers": 2,
  "num_attention_heads": 3,
  "num_key_value_heads": 3,
  "max_position_embeddings": 64,
  "pad_token_id": 0,
  "num_experts_per_tok": 2,
}
FAMILIES = {
  "mixtral": ("MixtralConfig", {"num_local_experts": EXPERTS}, ("w1", "w3", "w2"), "block_sparse_moe"),
  "qwen3_moe": (
    "Qwen3MoeConfig",
    {"num_experts": EXPERTS, "moe_intermediate_size": 20, "head_dim": 8},
    ("gate_proj", "up_proj", "down_proj"),
    "mlp",
  ),
}


def fused(leaves, parts):
  """PEFT's A [r E, in] and B [out, r E] of one layer: gate and up share the ranks of one array, one half each."""
  a = [np.asarray(leaves[part]["lora_a"]) for part in parts]  # [E, in, r]
  b = [np.asarray(leaves[part]["lora_b"]) for part in parts]  # [E, r, out]
  total = sum(one.shape[-1] for one in b)
  joined_b = np.zeros((EXPERTS, 2 * RANK, total), np.float32)
  for index, one in enumerate(b):
    columns = slice(index * one.shape[-1], (index + 1) * one.shape[-1])
    joined_b[:, index * RANK : (index + 1) * RANK, columns] = one
  joined_a = np.zeros((EXPERTS, a[0].shape[1], 2 * RANK), np.float32)
  joined_a[..., : RANK * len(a)] = np.concatenate(a, axis=-1)
  return (
    torch.tensor(joined_a).permute(0, 2, 1).reshape(EXPERTS * 2 * RANK, -1),
    torch.tensor(joined_b).permute(2, 1, 0).reshape(total, -1),
  )


@pytest.mark.parametrize("name", FAMILIES)
def test_lora_on_every_expert(name, tmp_path):
  config, more, (gate, up, down), block = FAMILIES[name]
  theirs, base = load_pair(getattr(transformers, config)(**SIZES, **more), tmp_path)
  ours = with_method(base, methods.LoRA(rank=RANK, alpha=ALPHA, targets=(gate, up, down)))
  settings = peft.LoraConfig(
    r=2 * RANK, lora_alpha=2 * ALPHA, target_modules=[], target_parameters=["experts.gate_up_proj", "experts.down_proj"]
  )
  adapted = peft.get_peft_model(theirs, settings).eval()
  experts = ours.params["model"]["layers"][block]["experts"]
  found = set()
  for path, module in adapted.named_modules():
    if not hasattr(module, "parameter_name"):
      continue
    layer = int(re.search(r"layers\.(\d+)", path)[1])
    leaves = {part: {leaf: value[layer] for leaf, value in experts[part].items()} for part in (gate, up, down)}
    a, b = fused(leaves, (down,) if module.parameter_name == "down_proj" else (gate, up))
    with torch.no_grad():
      module.lora_A["default"].weight.copy_(a)
      module.lora_B["default"].weight.copy_(b)
    found.add((layer, module.parameter_name))
  assert len(found) == 4
  ids, mask = token_batch()
  expected = run_theirs(adapted, input_ids=ids, attention_mask=mask)
  logits = ours(input_ids=ids, attention_mask=mask)["logits"]
  assert np.abs(logits - base(input_ids=ids, attention_mask=mask)["logits"]).max() > 0.1
  assert_close(logits, expected.logits, mask)
  assert_close(ours.merge()(input_ids=ids, attention_mask=mask)["logits"], expected.logits, mask)
  assert masks.flatten(ours.params)[f"model.layers.{block}.experts.{down}.lora_a"].shape[:2] == (2, EXPERTS)
