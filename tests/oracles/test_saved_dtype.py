"""A saved model is read by transformers as it is: config.json states a dtype in which no weight is rounded."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

import peftjax
from peftjax import methods
from tests.methods import tiny
from tests.models.decoder_models import token_ids
from tests.oracles.decoders import assert_close, random_model, run_theirs

LLAMA = {
  "vocab_size": 61, "hidden_size": 20, "intermediate_size": 28, "num_hidden_layers": 2, "num_attention_heads": 5,
  "num_key_value_heads": 5, "head_dim": 4,
}  # fmt: skip


@pytest.fixture(scope="module", params=["dtype", "torch_dtype", ""])
def folder(request, tmp_path_factory):
  """A bfloat16 checkpoint whose config.json says so as transformers 5 does, as 4 did, or not."""
  where = tmp_path_factory.mktemp("bfloat16")
  random_model(transformers.LlamaConfig(**LLAMA)).to(torch.bfloat16).save_pretrained(where)
  config = json.loads((where / "config.json").read_text())
  assert config.pop("dtype") == "bfloat16"
  (where / "config.json").write_text(json.dumps({**config, **({request.param: "bfloat16"} if request.param else {})}))
  return where


@pytest.mark.parametrize(
  ("method", "loaded_as", "stated"),
  [
    (methods.LoRA(rank=2), "float32", "float32"),
    (methods.Full(), "bfloat16", "float32"),
    (methods.LayerNormTuning(), "bfloat16", "float32"),
    (methods.LoRA(rank=2), "bfloat16", "bfloat16"),
  ],
)
def test_transformers_rounds_no_weight_of_a_saved_model(folder, tmp_path, method, loaded_as, stated):
  model = peftjax.load(folder, dtype=loaded_as).add(method, jax.random.key(0))
  model = tiny.replaced(model, tiny.noise_on(tiny.trainable(model), scale=1e-3))
  merged = model.merge()
  merged.save(tmp_path)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
  assert str(theirs.dtype) == f"torch.{stated}"
  tensors, kept = load_file(tmp_path / "model.safetensors"), theirs.state_dict()
  assert all(torch.equal(kept[name].float(), value.float()) for name, value in tensors.items())
  if loaded_as == "float32":
    ids = token_ids(2, 9)
    assert_close(np.asarray(merged(input_ids=ids)["logits"]), run_theirs(theirs.eval(), input_ids=ids).logits)
