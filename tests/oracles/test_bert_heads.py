"""Spans and masked tokens of BERT and RoBERTa against transformers and PEFT on torch: outputs, gradients, both ways."""

from __future__ import annotations

import warnings

import jax
import numpy as np
import peft
import pytest
import torch
import transformers

import peftjax
from peftjax import loading, masks, methods
from peftjax.errors import UserError
from peftjax.models.writing import to_checkpoint
from tests.oracles import tiny
from tests.oracles.test_bert import assert_close

NAMES = ["BertForQuestionAnswering", "RobertaForQuestionAnswering", "BertForMaskedLM", "RobertaForMaskedLM"]
SPAN = {"num_labels": 2}


def pair(name, **sizes):
  return tiny.model(name, **({**SPAN, **sizes} if "Question" in name else sizes))


def keys_of(name):
  return ("start_logits", "end_logits") if "Question" in name else ("logits",)


@pytest.mark.parametrize("name", NAMES)
def test_outputs(name):
  reference, folder = pair(name)
  batch = tiny.inputs(name)
  expected, ours = tiny.torch_outputs(reference, batch), peftjax.load(folder)
  assert ours.architecture == name
  for key in keys_of(name):
    assert_close(ours(**batch)[key], expected[key])


@pytest.mark.parametrize("name", NAMES)
def test_saved_models_load_in_transformers(name, tmp_path):
  reference, folder = pair(name)
  peftjax.load(folder).save(tmp_path / "saved")
  again, report = getattr(transformers, name).from_pretrained(tmp_path / "saved", output_loading_info=True)
  assert not report["missing_keys"] and not report["unexpected_keys"]
  for (key, mine), (_, theirs) in zip(again.state_dict().items(), reference.state_dict().items()):
    assert torch.equal(mine, theirs), key


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name):
  """Of the loss that transformers gives, in every leaf."""
  reference, folder = pair(name)
  batch, ours = tiny.inputs(name), peftjax.load(folder)
  starts, ends = np.array([2, 1, 0]), np.array([4, 1, 3])
  targets = np.where(np.random.default_rng(1).random(batch["input_ids"].shape) < 0.4, batch["input_ids"], -100)

  def loss(params):
    if "Question" in name:
      outputs = ours.forward(params, batch)
      rows, found = np.arange(3), [outputs["start_logits"], outputs["end_logits"]]
      return -sum(jax.nn.log_softmax(one)[rows, at].mean() for one, at in zip(found, (starts, ends))) / 2
    return ours.forward(params, {**batch, "targets": targets})["token_losses"].sum() / (targets != -100).sum()

  value, gradients = jax.value_and_grad(loss)(ours.params)
  labels = {"start_positions": starts, "end_positions": ends} if "Question" in name else {"labels": targets}
  reference.zero_grad()
  theirs = reference(**{key: torch.tensor(value) for key, value in {**batch, **labels}.items()}).loss
  theirs.backward()
  assert_close(value, theirs)
  mine = to_checkpoint(ours.family, gradients, ours.stacks)
  assert len(mine) > 30
  wanted = {key: parameter.grad for key, parameter in reference.named_parameters() if parameter.grad is not None}
  largest = max(float(one.abs().max()) for one in wanted.values())
  for key, value in mine.items():
    np.testing.assert_allclose(value, wanted[key].numpy(), rtol=1e-4, atol=1e-5 * largest, err_msg=key)
  reference.zero_grad()


@pytest.mark.parametrize("name", NAMES[2:])
def test_an_output_layer_of_its_own(name, tmp_path):
  reference, folder = pair(name, tie_word_embeddings=False)
  batch, ours = tiny.inputs(name), peftjax.load(folder)
  head = "cls.predictions" if name.startswith("Bert") else "lm_head"
  assert {f"{head}.decoder.kernel", f"{head}.decoder.bias"} <= masks.flatten(ours.params).keys()
  assert_close(ours(**batch)["logits"], tiny.torch_outputs(reference, batch).logits)


@pytest.mark.parametrize("name", NAMES[2:])
def test_a_method_that_parts_the_tied_output_layer_keeps_its_bias(name):
  _, folder = pair(name)
  batch, plain = tiny.inputs(name), peftjax.load(folder)
  parted = plain.add(methods.LoRA(rank=2, targets=("decoder",)))
  np.testing.assert_allclose(parted(**batch)["logits"], plain(**batch)["logits"], rtol=1e-5, atol=1e-5)
  merged = parted.merge()
  np.testing.assert_allclose(merged(**batch)["logits"], plain(**batch)["logits"], rtol=1e-5, atol=1e-5)


def test_the_tied_gptj_keeps_its_bias_when_parted(tmp_path):
  sizes = {"n_embd": 12, "n_layer": 1, "n_head": 2, "rotary_dim": 4, "n_positions": 20, "vocab_size": 31}
  reference = transformers.GPTJForCausalLM(transformers.GPTJConfig(**sizes, tie_word_embeddings=True)).eval()
  torch.nn.init.normal_(reference.lm_head.bias)
  reference.save_pretrained(tmp_path / "model")
  ids, plain = np.arange(3, 12)[None], peftjax.load(tmp_path / "model")
  assert_close(plain(input_ids=ids)["logits"], tiny.torch_outputs(reference, {"input_ids": ids}).logits)
  parted = plain.add(methods.LoRA(rank=2, targets=("lm_head",)))
  np.testing.assert_allclose(parted(input_ids=ids)["logits"], plain(input_ids=ids)["logits"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["Bert", "Roberta"])
def test_new_heads_on_a_bare_encoder(family):
  _, folder = tiny.model(f"{family}Model")
  made = loading.load(folder, task="question_answering", num_labels=2)
  assert made.drawn == ("qa_outputs.bias", "qa_outputs.kernel")
  assert made.params["qa_outputs"]["kernel"].shape == (24, 2)
  with pytest.raises(UserError, match="lacks"):
    loading.load(folder, task="masked_lm")


@pytest.mark.parametrize(
  ("task_type", "auto", "name"),
  [
    ("QUESTION_ANS", "AutoModelForQuestionAnswering", "BertForQuestionAnswering"),
    ("QUESTION_ANS", "AutoModelForQuestionAnswering", "RobertaForQuestionAnswering"),
    ("FEATURE_EXTRACTION", "AutoModel", "BertModel"),
  ],
)
def test_adapters_of_the_task_types_go_both_ways(task_type, auto, name, tmp_path):
  _, folder = pair(name) if "Question" in name else tiny.model(name)
  batch, key = tiny.inputs(name), "start_logits" if "Question" in name else "last_hidden_state"
  base = getattr(transformers, auto).from_pretrained(folder)
  config = peft.LoraConfig(r=3, target_modules=["query"], task_type=task_type, init_lora_weights=False)
  wrapped = peft.get_peft_model(base, config).eval()
  wrapped.save_pretrained(tmp_path / "theirs")
  ours = peftjax.load(folder, adapter=tmp_path / "theirs")
  assert_close(ours(**batch)[key], tiny.torch_outputs(wrapped, batch)[key])
  ours.save_adapter(tmp_path / "ours")
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    again = peft.PeftModel.from_pretrained(
      getattr(transformers, auto).from_pretrained(folder), tmp_path / "ours"
    ).eval()
  assert again.peft_config["default"].task_type == task_type
  assert_close(ours(**batch)[key], tiny.torch_outputs(again, batch)[key])
