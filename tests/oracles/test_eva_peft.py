"""EVA against PEFT: the same directions of the same inputs, and the same ranks."""

from __future__ import annotations

import numpy as np
import peft
import pytest
import torch

import peftjax
from peftjax import eva, masks, methods
from peftjax.stacks import unstack
from tests.oracles import tiny

CLASS = "BertModel"
TARGETS = ("query", "output.dense")


def test_directions_and_ranks_are_pefts():
  base, folder = tiny.model(CLASS)
  batch = {
    "input_ids": np.random.default_rng(0).integers(2, 53, (40, 11)),
    "attention_mask": np.ones((40, 11), np.int64),
  }
  config = peft.LoraConfig(
    r=3,
    lora_alpha=6,
    target_modules=list(TARGETS),
    init_lora_weights="eva",
    eva_config=peft.EvaConfig(rho=2.0, use_label_mask=False),
  )
  theirs = peft.get_peft_model(type(base).from_pretrained(folder), config)
  loader = [{name: torch.tensor(value) for name, value in batch.items()}]
  peft.initialize_lora_eva_weights(theirs, loader, show_progress_bar=False)
  ours = eva.add(peftjax.load(folder), methods.LoRA(rank=3, alpha=6.0, targets=TARGETS), [batch], rho=2.0)
  found = {
    path.removesuffix(".lora_a"): np.asarray(leaf)
    for path, leaf in masks.flatten(unstack(ours.params, ours.stacks)).items()
    if path.endswith(".lora_a")
  }
  wanted = {
    name.removeprefix("base_model.model.").removesuffix(".lora_A.default.weight"): value.numpy().T
    for name, value in theirs.state_dict().items()
    if "lora_A" in name
  }
  assert {name: leaf.shape for name, leaf in found.items()} == {name: leaf.shape for name, leaf in wanted.items()}
  assert len({leaf.shape[1] for leaf in found.values()}) > 1
  for name, leaf in found.items():
    # Theirs comes from a randomised decomposition; directions are defined up to their sign.
    cosines = np.abs((leaf * wanted[name]).sum(axis=0))
    np.testing.assert_allclose(cosines, 1.0, atol=2e-2, err_msg=name)
    assert ours.methods[0].settings(name)[1] == pytest.approx(
      theirs.get_submodule(f"base_model.model.{name}").scaling["default"]
    )
