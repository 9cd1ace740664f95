"""Adapters on the output layer of masked language models, whose bias torch holds twice; rows of a tied table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import peft
import pytest
import torch
import transformers

import peftjax
from peftjax import UserError
from peftjax.loading import described
from peftjax.methods import LoRA, TrainableTokens
from tests.oracles import tiny
from tests.oracles.decoders import random_model
from tests.oracles.test_module_names import close, logits, randomised, torch_logits

BASES = {"bert": "BertForMaskedLM", "roberta": "RobertaForMaskedLM"}
WHOLE = {"bert": "cls", "roberta": "lm_head"}


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
  jax.config.update("jax_disable_most_optimizations", True)  # models this small spend their time in the compiler
  yield
  jax.config.update("jax_disable_most_optimizations", False)


def folder_of(base: str) -> Path:
  return tiny.model(BASES[base], num_hidden_layers=1)[1]


def theirs_of(base: str) -> Any:
  return getattr(transformers, BASES[base]).from_pretrained(folder_of(base))


def written(theirs: Any, folder: Path) -> Path:
  torch.manual_seed(5)
  for value in theirs.parameters():
    if value.requires_grad:
      value.data += 0.2 * torch.randn_like(value)
  theirs.save_pretrained(folder)
  return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("more", ["bias", "saved", "bias and adapter"])
def test_an_adapter_of_peft(base: str, more: str, tmp_path: Path) -> None:
  settings: dict[str, Any] = {
    "bias": {"target_modules": ["query"], "bias": "all"},
    "saved": {"target_modules": ["query"], "modules_to_save": [WHOLE[base]]},
    "bias and adapter": {"target_modules": ["query", "decoder"], "bias": "all"},
  }[more]
  theirs = peft.get_peft_model(theirs_of(base), peft.LoraConfig(r=2, **settings))
  ours = peftjax.load(folder_of(base), adapter=written(theirs, tmp_path / "theirs"))
  wanted = torch_logits(theirs)
  close(logits(ours), wanted)
  close(logits(ours.merge()), wanted)
  ours.save_adapter(tmp_path / "ours")
  close(torch_logits(peft.PeftModel.from_pretrained(theirs_of(base), tmp_path / "ours")), wanted)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("base", BASES)
def test_our_adapter_with_the_whole_head(base: str, tmp_path: Path) -> None:
  method = LoRA(rank=2, targets=("query",), modules_to_save=(WHOLE[base],))
  ours = randomised(peftjax.load(folder_of(base)).add(method, jax.random.key(1)))
  ours.save_adapter(tmp_path)
  close(torch_logits(peft.PeftModel.from_pretrained(theirs_of(base), tmp_path)), logits(ours))
  close(logits(peftjax.load(folder_of(base), adapter=tmp_path)), logits(ours))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
  ("config", "method", "says"),
  [
    (
      lambda: peft.LoraConfig(r=2, target_modules=["query"], trainable_token_indices=[5, 7]),
      (LoRA(rank=2, targets=("query",)), TrainableTokens(token_indices=(5, 7))),
      "leaves out the bias of 'lm_head.decoder'",
    ),
    (
      lambda: peft.TrainableTokensConfig(token_indices=[5, 7], target_modules=["word_embeddings"]),
      TrainableTokens(token_indices=(5, 7)),
      "leaves out the bias of 'lm_head.decoder'",
    ),
    (
      lambda: peft.LoraConfig(r=2, target_modules=["word_embeddings", "decoder"], ensure_weight_tying=True),
      LoRA(rank=2, targets=("word_embeddings",), ensure_weight_tying=True),
      "PEFT does not tie 'lm_head.decoder'",
    ),
  ],
)
def test_what_peft_computes_otherwise_is_refused(config: Any, method: Any, says: str, tmp_path: Path) -> None:
  folder = written(peft.get_peft_model(theirs_of("roberta"), config()), tmp_path / "theirs")
  with pytest.raises(UserError, match=says):
    peftjax.load(folder_of("roberta"), adapter=folder)
  with pytest.raises(UserError, match=says):
    peftjax.load(folder_of("roberta")).add(method, jax.random.key(1)).save_adapter(tmp_path / "ours")


@pytest.mark.filterwarnings("ignore")
def test_rows_of_a_tied_table_beside_an_adapter_on_its_output_layer_are_refused(tmp_path: Path) -> None:
  sizes = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 3}
  base = tmp_path / "base"
  theirs = random_model(
    transformers.LlamaConfig(vocab_size=23, num_key_value_heads=3, tie_word_embeddings=True, **sizes)
  )
  theirs.save_pretrained(base)
  config = peft.LoraConfig(r=2, target_modules=["lm_head"], trainable_token_indices=[5, 7], task_type="CAUSAL_LM")
  folder, says = written(peft.get_peft_model(theirs, config), tmp_path / "theirs"), "beside an adapter on 'lm_head'"
  with pytest.raises(UserError, match=says):
    peftjax.load(base, adapter=folder)
  methods = (LoRA(rank=2, targets=("lm_head",)), TrainableTokens(token_indices=(5, 7)))
  with pytest.raises(UserError, match=says):
    peftjax.load(base).add(methods, jax.random.key(1)).save_adapter(tmp_path / "ours")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("base", BASES)
def test_a_classifier_over_what_was_a_masked_language_model(base: str, tmp_path: Path) -> None:
  """Which has no pooler in BERT: it is drawn as part of the head, trains, and goes with the adapter."""
  more: dict[str, Any] = {"task": "text_classification", "num_labels": 3}
  added = peftjax.load(folder_of(base), **more).add(LoRA(rank=2, targets=("query",)), jax.random.key(1))
  assert added.head == (("classifier", "bert.pooler.dense") if base == "bert" else ("classifier",))
  assert described(folder_of(base), **more).head == added.head
  ours = randomised(added)
  ours.save_adapter(tmp_path / "adapter")
  class_ = getattr(transformers, BASES[base].replace("MaskedLM", "SequenceClassification"))
  theirs = peft.PeftModel.from_pretrained(
    class_.from_pretrained(folder_of(base), num_labels=3), tmp_path / "adapter"
  ).eval()
  close(torch_logits(theirs), logits(ours))
  close(logits(peftjax.load(folder_of(base), adapter=tmp_path / "adapter")), logits(ours))
  merged = ours.merge()
  merged.save(tmp_path / "merged")
  again = peftjax.load(tmp_path / "merged")
  assert again.head == ("classifier",)
  close(logits(again), logits(ours))
