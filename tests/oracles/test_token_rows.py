"""LoRA with `trainable_token_indices`: from PEFT, to PEFT, and back."""

from __future__ import annotations

import json

import jax
import numpy as np
import peft
import pytest
import tokenizers
import torch
import transformers

import peftjax
from peftjax import UserError, cli, masks
from peftjax.interop import peft as interop
from peftjax.methods import LoRA, TrainableTokens

CONFIG = {"vocab_size": 23, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2,
          "num_attention_heads": 3, "num_key_value_heads": 3, "max_position_embeddings": 32}  # fmt: skip
IDS = np.array([[3, 5, 11, 3, 8, 20, 7]])


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def base(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp("base")
  torch.manual_seed(0)
  transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG, tie_word_embeddings=request.param)).save_pretrained(
    folder
  )
  return folder


def logits_of(model):
  with torch.no_grad():
    return model.eval()(torch.tensor(IDS)).logits.numpy()


def close(found, expected):
  np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("named", [False, True])
def test_an_adapter_of_peft_with_token_rows_loads_and_saves_back(base, named, tmp_path):
  indices = {"embed_tokens": [3, 8, 20]} if named else [3, 8, 20]
  config = peft.LoraConfig(
    r=5, lora_alpha=7, target_modules=["q_proj"], trainable_token_indices=indices, task_type="CAUSAL_LM"
  )
  theirs = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(base), config)
  for value in theirs.parameters():
    if value.requires_grad:
      torch.nn.init.normal_(value, std=0.3)
  theirs.save_pretrained(tmp_path / "theirs")
  ours = peftjax.load(base, adapter=tmp_path / "theirs")
  assert [one.name for one in ours.methods] == ["lora", "trainable_tokens"]
  close(ours(input_ids=IDS)["logits"], logits_of(theirs))
  close(ours.merge()(input_ids=IDS)["logits"], logits_of(theirs))
  ours.save_adapter(tmp_path / "ours")
  again = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), tmp_path / "ours")
  close(logits_of(again), logits_of(theirs))
  wrong = json.loads((tmp_path / "theirs" / interop.CONFIG).read_text())
  for value, says in (({"q_proj": [3]}, "'q_proj' is neither"), ([3, 8], "has shape"), ([3, 8, 99], "99 is outside")):
    (tmp_path / "theirs" / interop.CONFIG).write_text(json.dumps({**wrong, "trainable_token_indices": value}))
    with pytest.raises(UserError, match=says):
      peftjax.load(base, adapter=tmp_path / "theirs")


def test_our_lora_beside_token_rows_loads_in_peft(base, tmp_path):
  methods = (LoRA(rank=2, targets=("v_proj", "down_proj")), TrainableTokens(token_indices=(11, 5)))
  model = peftjax.load(base).add(methods, jax.random.key(0))
  flat, groups = dict(masks.flatten(model.params)), masks.flatten(model.labels())
  draw = np.random.default_rng(0)
  for path in sorted(flat):
    if groups[path] != masks.FROZEN:
      flat[path] = jax.numpy.asarray(draw.normal(0, 0.3, flat[path].shape), flat[path].dtype)
  model = model.with_params(masks.unflatten(flat))
  model.save_adapter(tmp_path / "ours")
  theirs = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), tmp_path / "ours")
  close(model(input_ids=IDS)["logits"], logits_of(theirs))
  again = peftjax.load(base, adapter=tmp_path / "ours")
  np.testing.assert_array_equal(again(input_ids=IDS)["logits"], model(input_ids=IDS)["logits"])


def tokenizer_of(words):
  made = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{index}": index for index in range(23)}, unk_token="w0"))
  made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="w0", eos_token="w1")
  fast.add_tokens(words)
  return fast


def test_an_adapter_with_a_larger_tokenizer_resizes_the_base_as_auto_peft_does(base, tmp_path):
  tokenizer = tokenizer_of(["new", "more"])
  started = transformers.AutoModelForCausalLM.from_pretrained(base)
  started.resize_token_embeddings(len(tokenizer), mean_resizing=False)
  config = peft.LoraConfig(
    r=2, target_modules=["v_proj"], trainable_token_indices=[23, 24], task_type="CAUSAL_LM",
    base_model_name_or_path=str(base),
  )  # fmt: skip
  theirs = peft.get_peft_model(started, config)
  for value in theirs.parameters():
    if value.requires_grad:
      torch.nn.init.normal_(value, std=0.3)
  theirs.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
  tokenizer.save_pretrained(tmp_path / "adapter")
  again = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
  ours = peftjax.load(base, adapter=tmp_path / "adapter")
  ids = np.array([[3, 23, 5, 24, 7]])
  with torch.no_grad():
    expected = again.eval()(torch.tensor(ids)).logits.numpy()
  found = np.asarray(ours(input_ids=ids)["logits"])
  rows = slice(None) if again.config.tie_word_embeddings else slice(23)  # PEFT draws the others of the output layer
  assert found.shape == expected.shape == (1, 5, 25)
  close(found[..., rows], expected[..., rows])


def test_generate_reads_by_the_tokenizer_of_the_adapter(base, tmp_path, capsys):
  tokenizer = tokenizer_of(["new", "more"])
  tokenizer_of([]).save_pretrained(base)
  model = peftjax.load(base).add(LoRA(rank=2), jax.random.key(0))
  model.save_adapter(tmp_path / "adapter")
  tokenizer.save_pretrained(tmp_path / "adapter")
  flags = [f"--model={base}", "--prompt=w3 new", "--max_new_tokens=2", "--json"]
  assert cli.main(["generate", *flags, f"--adapter={tmp_path / 'adapter'}"]) == 0
  assert "text" in json.loads(capsys.readouterr().out)
