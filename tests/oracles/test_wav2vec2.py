"""Wav2Vec2 against transformers on torch: outputs, states, CTC's loss with gradients, processor, letters, adapters."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

import jax
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

import peftjax
from peftjax import methods, tasks
from peftjax.data.inputs.characters import read_characters
from peftjax.data.inputs.waveforms import frames, read_convolutions, read_samples
from peftjax.errors import UserError
from peftjax.loading import from_config
from peftjax.models import writing
from peftjax.models.layers import Runtime
from tests.oracles.diffusion import assert_close

SIZES = {
  "vocab_size": 14, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 40,
  "conv_dim": [10, 12, 14], "conv_kernel": [7, 3, 2], "conv_stride": [4, 2, 2], "num_conv_pos_embeddings": 6,
  "num_conv_pos_embedding_groups": 4, "pad_token_id": 0,
}  # fmt: skip
CASES = {
  "group": {},
  "layer": {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True},
  "odd": {"num_conv_pos_embeddings": 5, "feat_extract_activation": "relu", "mask_time_prob": 0.0},
}
LETTERS = {letter: 5 + at for at, letter in enumerate("ABCDEFGHI")}
VOCAB = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, **LETTERS}


@functools.cache
def model(name):
  """(torch model in evaluation mode with wide random weights, its folder)."""
  torch.manual_seed(0)
  made = transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(**{**SIZES, **CASES[name]})).eval()
  with torch.no_grad():
    for key, parameter in made.named_parameters():
      is_scale = ("norm" in key and key.endswith("weight")) or key.endswith("original0")
      torch.nn.init.normal_(parameter, mean=1.0 if is_scale else 0.0, std=0.25)
  folder = Path(tempfile.mkdtemp(prefix="tiny-"))
  made.save_pretrained(folder)
  (folder / "vocab.json").write_text(json.dumps(VOCAB))
  return made, folder


def inputs(masked, samples=331, batch=3):
  values = np.random.default_rng(0).normal(size=(batch, samples)).astype(np.float32)
  if not masked:
    return {"input_values": values}
  lengths = samples - 61 * np.arange(batch)
  mask = (np.arange(samples) < lengths[:, None]).astype(np.int32)
  return {"input_values": values * mask.astype(np.float32), "attention_mask": mask}


def tensors(arrays):
  return {name: torch.tensor(array) for name, array in arrays.items()}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_outputs_and_hidden_states(name, masked):
  reference, folder = model(name)
  ours, given = peftjax.load(folder, runtime=Runtime(output_hidden_states=True)), inputs(masked)
  with torch.no_grad():
    expected = reference(**tensors(given), output_hidden_states=True)
    last = reference.wav2vec2(**tensors(given)).last_hidden_state
  found = ours(**given)
  assert_close(found["logits"], expected.logits)
  assert_close(found["last_hidden_state"], last)
  for mine, theirs in zip(found["hidden_states"][:3], expected.hidden_states[:3], strict=True):
    assert_close(mine, theirs)


def test_hidden_frames_are_those_of_transformers():
  reference, folder = model("group")
  given, count = inputs(False), frames(read_convolutions(model("group")[1]), 331)
  hidden = np.random.default_rng(1).random((3, count)) < 0.3
  with torch.no_grad():
    expected = reference.wav2vec2(**tensors(given), mask_time_indices=torch.tensor(hidden)).last_hidden_state
  assert_close(peftjax.load(folder)(**given, mask_time_indices=hidden)["last_hidden_state"], expected)
  with pytest.raises(UserError, match="no vector for what is hidden"):
    peftjax.load(model("odd")[1])(**given, mask_time_indices=hidden)


@pytest.mark.parametrize("name", ["group", "layer"])
def test_the_loss_and_its_gradients(name):
  reference, folder = model(name)
  ours, task = peftjax.load(folder, runtime=Runtime(dropout=0.0)), tasks.make("ctc").of_model(folder)
  labels = np.array([[5, 6, 6, 7, 4, 9], [8, 5, -100, -100, -100, -100], [5, 5, 5, 13, -100, -100]], np.int32)
  given = inputs(name == "layer")
  batch = {**given, "labels": labels, "weight": np.ones(3, np.float32), "index": np.arange(3)}

  def loss(params):
    return task.loss(lambda read: ours.forward(params, read), batch, jax.random.key(0))[0]

  value, gradients = jax.jit(jax.value_and_grad(loss))(ours.params)
  reference.zero_grad()
  theirs = reference(**tensors(given), labels=torch.tensor(labels)).loss  # of reduction "sum"
  theirs.backward()
  assert_close(value, theirs)
  found = writing.to_checkpoint(ours.family, gradients, ours.stacks)
  wanted = {key: one.grad.numpy() for key, one in reference.named_parameters() if one.grad is not None}
  assert found.keys() - wanted.keys() <= {"wav2vec2.masked_spec_embed"}
  largest = max(np.abs(one).max() for one in wanted.values())
  for key, gradient in wanted.items():
    atol = 1e-4 * max(np.abs(gradient).max(), 0.05 * largest)
    np.testing.assert_allclose(found[key], gradient, rtol=1e-4, atol=atol, err_msg=key)


@pytest.mark.parametrize("name", ["group", "odd"])
def test_saved_models_load_in_transformers_and_files_by_their_older_names_here(name, tmp_path):
  reference, folder = model(name)
  peftjax.load(folder).save(tmp_path)
  again, report = transformers.Wav2Vec2ForCTC.from_pretrained(tmp_path, output_loading_info=True)
  assert not report["missing_keys"] and not report["unexpected_keys"]
  for (key, mine), (_, theirs) in zip(again.state_dict().items(), reference.state_dict().items(), strict=True):
    assert torch.equal(mine, theirs), key
  tensors = load_file(tmp_path / "model.safetensors")
  older = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
  for now, then in older.items():
    tensors = {key.replace(now, then): value for key, value in tensors.items()}
  save_file(tensors, tmp_path / "model.safetensors")
  given = inputs(False)
  np.testing.assert_array_equal(peftjax.load(tmp_path)(**given)["logits"], peftjax.load(folder)(**given)["logits"])


def test_an_adapter_of_peft_gives_equal_outputs_and_goes_back(tmp_path):
  folder, given = model("group")[1], inputs(False)

  def fresh():
    return transformers.Wav2Vec2ForCTC.from_pretrained(folder)

  torch.manual_seed(0)
  lora = peft.LoraConfig(r=3, target_modules=["q_proj", "output_dense"], init_lora_weights=False)
  theirs = peft.get_peft_model(fresh(), lora).eval()
  theirs.save_pretrained(tmp_path / "theirs")
  ours = peftjax.load(folder, tmp_path / "theirs")
  with torch.no_grad():
    assert_close(ours(**given)["logits"], theirs(**tensors(given)).logits)
  ours.save_adapter(tmp_path / "ours")
  again = peft.PeftModel.from_pretrained(fresh(), tmp_path / "ours").eval()
  with torch.no_grad():
    assert_close(ours(**given)["logits"], again(**tensors(given)).logits)


@pytest.mark.parametrize("settings", [{}, {"return_attention_mask": True}, {"do_normalize": False}])
def test_a_processor_is_transformers(settings, tmp_path):
  made = transformers.Wav2Vec2FeatureExtractor(**settings)
  made.save_pretrained(tmp_path)
  found = read_samples(tmp_path)
  samples = np.random.default_rng(2).normal(0.3, 2.0, 1001).astype(np.float32)
  np.testing.assert_allclose(found(samples), made(samples, sampling_rate=16_000).input_values[0], rtol=1e-5, atol=1e-6)
  assert found.masked == made.return_attention_mask
  transformers.Wav2Vec2FeatureExtractor(padding_side="left").save_pretrained(tmp_path)
  with pytest.raises(UserError, match="padding_side='left' is not computed here"):
    read_samples(tmp_path)


@pytest.mark.parametrize("upper", [False, True])
def test_letters_are_transformers(upper, tmp_path):
  (tmp_path / "vocab.json").write_text(json.dumps(VOCAB))
  made = transformers.Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"), do_lower_case=upper)
  made.save_pretrained(tmp_path)
  found = read_characters(tmp_path)
  for text in ("A BAD CAB", "HEAD", "A Z!", *(("a bad cab",) if upper else ())):
    assert found.encode(text) == made(text).input_ids
  frames_of = [0, 5, 5, 0, 5, 4, 4, 0, 6, 6, 7, 0, 0, 4]
  assert found.decode(frames_of) == made.decode(frames_of)
  assert found.encode("bad") == found.encode("BAD")  # the other case, where its own is not there
  assert found.known("a, bad  cäb") == ("a bad cb" if upper else "A BAD CB")


def test_a_blank_of_one_character_is_no_letter(tmp_path):
  vocab = {"-": 0, "?": 1, "|": 2, "A": 3, "B": 4}
  (tmp_path / "vocab.json").write_text(json.dumps(vocab))
  names = {"pad_token": "-", "unk_token": "?", "bos_token": None, "eos_token": None}
  made = transformers.Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"), **names)
  made.save_pretrained(tmp_path)
  found = read_characters(tmp_path)
  frames_of = [0, 3, 0, 3, 0, 0, 4, 4, 2, 0, 3, 0]
  assert found.decode(frames_of) == made.decode(frames_of) == "AAB A"
  assert found.encode("A-B?") == [3, 1, 4, 1] and found.known("A-B ?") == "AB"  # no blank is ever learned


def test_models_train_with_methods_and_configs_that_are_none():
  lora = from_config({**SIZES, "model_type": "wav2vec2"}).add(methods.LoRA(rank=2))
  assert {name.rpartition(".")[2] for site in lora.bound[0].sites for name in site.names} == {"q_proj", "v_proj"}
  for changed, said in (
    ({"conv_kernel": [3]}, "have .* entries; expected one a layer"),
    ({"feat_extract_norm": "batch"}, "expected 'group' or 'layer'"),
    ({"num_conv_pos_embedding_groups": 5}, "does not divide hidden_size=24"),
    ({"add_adapter": True}, "add_adapter=true"),
  ):
    with pytest.raises(UserError, match=said):
      from_config({**SIZES, "model_type": "wav2vec2", **changed})
