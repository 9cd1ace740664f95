"""The benchmark against transformers compares the same tokens, and its ratios are those of its times."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.generation import measure, with_lora
from peftjax.models.layers import Runtime
from tests.models.decoder_models import LLAMA, random_model, token_ids


def test_the_rivals_make_the_same_tokens():
  model = random_model({**LLAMA, "hidden_size": 24}, runtime=Runtime(scan_layers=False))
  found = measure(model, batch=2, prompt_tokens=5, new_tokens=6, rounds=1, rank=3)
  assert found["tokens_equal_to_torch"] == 1.0
  speeds = {name: values["median"] for name, values in found["tokens_per_second"].items()}
  assert found["merged_over_torch"]["median"] == pytest.approx(speeds["merged"] / speeds["torch"])
  assert found["lora_time_over_merged"]["median"] == pytest.approx(speeds["merged"] / speeds["lora"])
  ids = token_ids()
  assert np.abs(with_lora(model, 3)(input_ids=ids)["logits"] - model(input_ids=ids)["logits"]).max() > 1e-4
