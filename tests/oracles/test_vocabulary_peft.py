"""Adapters of models with another number of tokens, and of tables that torch has copies of, against live PEFT."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

import peftjax
from peftjax import UserError, methods
from peftjax.vocabulary import tied_site
from tests.models.decoder_models import token_ids, with_method
from tests.oracles.decoders import assert_close, run_theirs
from tests.oracles.test_tied import CONFIGS, saved

IDS = token_ids(2, 9, vocabulary=66)
GROWN = 67
ADAPTERS: dict[str, dict[str, Any]] = {
  "linear": {"target_modules": ["q_proj"]},
  "saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
  "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
  "output": {"target_modules": ["q_proj", "lm_head"]},
  "both": {"target_modules": ["q_proj", "lm_head", "embed_tokens"]},
}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
  transformers.utils.logging.disable_progress_bar()
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    yield


def base_folder(tied: bool, folder: Path) -> Path:
  kind, settings, _ = CONFIGS["llama"]
  torch.manual_seed(3)
  transformers.LlamaForCausalLM(kind(**{**settings, "tie_word_embeddings": tied})).save_pretrained(folder)
  return folder


def grown(folder: Path) -> Any:
  model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
  torch.manual_seed(4)
  model.resize_token_embeddings(GROWN)
  return model


@pytest.mark.parametrize("tied", [False, True], ids=["own", "tied"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_of_a_model_with_new_tokens_loads_and_saves(name: str, tied: bool, tmp_path: Path) -> None:
  base = base_folder(tied, tmp_path / "base")
  theirs = peft.get_peft_model(grown(base), peft.LoraConfig(r=2, task_type="CAUSAL_LM", **ADAPTERS[name]))
  for parameter in theirs.parameters():
    if parameter.requires_grad:
      torch.nn.init.normal_(parameter, std=0.3)
  theirs.save_pretrained(tmp_path / "theirs")
  theirs.eval()
  wanted = run_theirs(theirs, input_ids=IDS).logits
  grown(base).save_pretrained(tmp_path / "grown")
  assert_close(peftjax.load(tmp_path / "grown", adapter=tmp_path / "theirs")(input_ids=IDS)["logits"], wanted)

  brings_all = name in ("linear", "saved", "both") or tied
  if not brings_all:
    with pytest.raises(UserError, match=r"the adapter brings '.*' with 67 rows, and the model has 61 tokens; give"):
      peftjax.load(base, adapter=tmp_path / "theirs")
    return
  ours = peftjax.load(base, adapter=tmp_path / "theirs")
  assert ours.hf_config["vocab_size"] == GROWN
  assert_close(ours(input_ids=IDS)["logits"], wanted)
  ours.save_adapter(tmp_path / "ours")
  assert_close(peftjax.load(base, adapter=tmp_path / "ours")(input_ids=IDS)["logits"], wanted)
  again = peft.PeftModel.from_pretrained(grown(base), tmp_path / "ours").eval()
  assert_close(run_theirs(again, input_ids=IDS).logits.numpy(), wanted)
  ours.merge().save(tmp_path / "merged")
  merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", attn_implementation="eager").eval()
  assert_close(run_theirs(merged, input_ids=IDS).logits.numpy(), wanted)


def test_tables_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
  from safetensors.numpy import load_file, save_file

  base = base_folder(True, tmp_path / "base")
  config = peft.LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["embed_tokens"], ensure_weight_tying=True)
  peft.get_peft_model(grown(base), config).save_pretrained(tmp_path / "theirs")
  weights = tmp_path / "theirs" / "adapter_model.safetensors"
  tensors = load_file(weights)
  for key in ("lm_head.lora_B.weight", "lm_head.base_layer.weight"):
    save_file({**tensors, f"base_model.model.{key}": tensors[f"base_model.model.{key}"] + 1}, weights)
    with pytest.raises(UserError, match=f"'base_model.model.{key}' differs from 'base_model.model.model.embed_tokens"):
      peftjax.load(base, adapter=tmp_path / "theirs")


def t5_base() -> Any:
  return transformers.AutoModelForSeq2SeqLM.from_pretrained(saved("t5"), attn_implementation="eager")


@pytest.mark.parametrize("settings", [{"target_modules": ["shared"]}, {"modules_to_save": ["shared"]}], ids=str)
def test_an_adapter_on_a_table_that_torch_does_not_read_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
  config = peft.LoraConfig(r=2, task_type="SEQ_2_SEQ_LM", **{"target_modules": ["q"], **settings})
  theirs = peft.get_peft_model(t5_base(), config)
  for parameter in theirs.parameters():
    if parameter.requires_grad and parameter.shape[0] in (2, 61):
      torch.nn.init.normal_(parameter, std=0.3)
  theirs.save_pretrained(tmp_path / "theirs")
  says = "in PEFT an adapter on 'shared' does nothing: torch reads 'encoder.embed_tokens' and 'decoder.embed_tokens'"
  with pytest.raises(UserError, match=says):
    peftjax.load(saved("t5"), adapter=tmp_path / "theirs")
  given = {"targets": ("q", "shared")} if "target_modules" in settings else {"modules_to_save": ("shared",)}
  with pytest.raises(UserError, match=says):
    peftjax.load(saved("t5")).add(methods.LoRA(rank=2, **given)).save_adapter(tmp_path / "ours")


ON_OUTPUT = [methods.LoRA(rank=2, targets=("q", "lm_head")), methods.IA3(modules_to_save=("lm_head",))]


@pytest.mark.parametrize("method", ON_OUTPUT, ids=["lora", "ia3"])
def test_t5s_output_layer_reads_what_was_scaled(method: methods.Method, tmp_path: Path) -> None:
  model = with_method(peftjax.load(saved("t5")), method)
  assert tied_site(model) is None
  model.save_adapter(tmp_path / "ours")
  given = {"input_ids": IDS % 61, "decoder_input_ids": IDS[:, :5] % 61}
  theirs = peft.PeftModel.from_pretrained(t5_base(), tmp_path / "ours").eval()
  assert_close(np.asarray(model(**given)["logits"]), run_theirs(theirs, **given).logits)
  again = peftjax.load(saved("t5"), adapter=tmp_path / "ours")
  np.testing.assert_array_equal(again(**given)["logits"], model(**given)["logits"])


def test_tokens_of_a_table_with_copies_in_peft(tmp_path: Path) -> None:
  model = with_method(peftjax.load(saved("t5")), methods.TrainableTokens(token_indices=(4, 9)), seed=2)
  model.save_adapter(tmp_path / "ours")
  given = {"input_ids": np.array([[4, 9, 7, 1]]), "decoder_input_ids": np.array([[0, 9, 4]])}
  theirs = peft.PeftModel.from_pretrained(t5_base(), tmp_path / "ours").eval()
  assert_close(np.asarray(model(**given)["logits"]), run_theirs(theirs, **given).logits)
  again = peftjax.load(saved("t5"), adapter=tmp_path / "ours")
  np.testing.assert_array_equal(again(**given)["logits"], model(**given)["logits"])
  config = peft.TrainableTokensConfig(token_indices=[4, 9], target_modules=["shared"], task_type="SEQ_2_SEQ_LM")
  theirs = peft.get_peft_model(t5_base(), config).eval()
  for parameter in theirs.parameters():
    if parameter.requires_grad:
      torch.nn.init.normal_(parameter, std=0.3)
  theirs.save_pretrained(tmp_path / "theirs")
  loaded = peftjax.load(saved("t5"), adapter=tmp_path / "theirs")
  assert_close(np.asarray(loaded(**given)["logits"]), run_theirs(theirs, **given).logits)
