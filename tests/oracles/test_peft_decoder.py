"""Every reparametrisation of PEFT on a decoder with grouped heads: its adapter loads, computes and trains the same."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import peft
import pytest
import torch
import transformers

import peftjax
from peftjax import masks
from tests.oracles import test_reparam_peft as reparam
from tests.oracles.test_peft_adapters import close, logits, our_losses, torch_logits, torch_losses

TARGETS = ("q_proj", "o_proj", "down_proj")  # 24 -> 24, 24 -> 24, 40 -> 24
NAMES = [name for name in reparam.CASES if " " not in name]  # one setting of each method
UNTRAINED = {"adalora": "its regulariser and pruning are part of a step; both are compared on the encoder"}


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
  threads = torch.get_num_threads()
  torch.set_num_threads(1)
  jax.config.update("jax_disable_most_optimizations", True)  # models this small spend their time in the compiler
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    yield
  torch.set_num_threads(threads)
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
  place = tmp_path_factory.mktemp("decoder")
  torch.manual_seed(1)
  config = transformers.LlamaConfig(
    vocab_size=47, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=32, initializer_range=0.3,
  )  # fmt: skip
  transformers.LlamaForCausalLM(config).save_pretrained(place)
  return place


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_losses_are_pefts(name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr("peft.tuners.c3a.layer.BlockCircularConvolution.apply", reparam.convolved)
  case = reparam.CASES[name]
  torch.manual_seed(2)
  config = getattr(peft, f"{case.config}Config")(task_type="CAUSAL_LM", target_modules=list(TARGETS), **case.theirs)
  theirs: Any = peft.get_peft_model(transformers.LlamaForCausalLM.from_pretrained(folder), config)
  trained = [parameter for parameter in theirs.parameters() if parameter.requires_grad]
  for parameter in trained:
    parameter.data += case.noise * torch.randn_like(parameter)
  theirs.save_pretrained(tmp_path / "theirs")
  ours = peftjax.load(folder, adapter=tmp_path / "theirs")
  close(logits(ours), torch_logits(theirs.eval()))
  trainable, frozen = masks.partition(ours.params, ours.labels())
  assert masks.count(trainable).parameters == sum(parameter.numel() for parameter in trained)
  if name not in UNTRAINED:
    found, _ = our_losses(ours, trainable, frozen)
    np.testing.assert_allclose(found, torch_losses(theirs.train(), trained), rtol=3e-5)


def test_every_method_of_peft_is_compared_on_a_decoder() -> None:
  """Together with the cases named llama-... in peft_cases."""
  from peftjax.interop.formats import FORMATS
  from tests.oracles.peft_cases import CASES

  on_llama = {type(case.method).name for case in CASES.values() if case.base.startswith("llama")}
  names = {form.method.name for form in FORMATS} - {"p_tuning_v2"}  # which PEFT knows as its prefix tuning
  assert names - on_llama - {reparam.CASES[name].name for name in NAMES} == set()
