"""Whisper against transformers on torch: outputs, hidden states, losses with gradients, saved models, short windows."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
import torch
import transformers

import peftjax
from peftjax import masks
from peftjax.errors import UserError
from peftjax.loading import from_config, initialise
from peftjax.models.layers import Runtime
from peftjax.models.pretrained import checkpoint_key
from tests.oracles import speech
from tests.oracles.decoders import assert_close

CASES = {
  "bare": ("WhisperModel", {}),
  "speech": (speech.GENERATION, {}),
  "untied": (speech.GENERATION, {"tie_word_embeddings": False, "activation_function": "relu"}),
  "classes": (speech.CLASSIFICATION, {}),
  "weighted": (speech.CLASSIFICATION, {"use_weighted_layer_sum": True}),
}
NAMES = {
  "logits": "logits",
  "last_hidden_state": "last_hidden_state",
  "encoder_last_hidden_state": "encoder_last_hidden_state",
  "hidden_states": "decoder_hidden_states",
  "encoder_hidden_states": "encoder_hidden_states",
}


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_all_hidden_states(name):
  class_name, sizes = CASES[name]
  theirs, folder = speech.model(class_name, **sizes)
  ours = peftjax.load(folder, runtime=Runtime(output_hidden_states=True))
  batch = speech.inputs(class_name)
  expected = speech.outputs(theirs, batch, output_hidden_states=True)
  found = ours(**batch)
  names = NAMES if class_name != speech.CLASSIFICATION else {"logits": "logits", "hidden_states": "hidden_states"}
  compared = 0
  for mine, their in names.items():
    if their in expected:
      value = getattr(expected, their)
      assert_close(found[mine], torch.stack(value) if isinstance(value, tuple) else value)
      compared += 1
  assert compared == {"bare": 4, "speech": 4, "untied": 4, "classes": 2, "weighted": 2}[name]


@pytest.mark.parametrize("name", ["speech", "weighted"])
def test_scanned_layers_compute_the_same_without_hidden_states(name):
  class_name, sizes = CASES[name]
  theirs, folder = speech.model(class_name, **sizes)
  batch = speech.inputs(class_name)
  for scan in (True, False):
    found = peftjax.load(folder, runtime=Runtime(scan_layers=scan))(**batch)
    assert not {"hidden_states", "encoder_hidden_states"} & found.keys()
    assert_close(found["logits"], speech.outputs(theirs, batch).logits)


def test_losses_and_gradients():
  theirs, folder = speech.model()
  targets = speech.tokens(seed=5)
  targets[1, 4:] = -100
  batch = {"input_features": speech.features()}
  theirs.zero_grad()
  loss = theirs(torch.tensor(batch["input_features"]), labels=torch.tensor(targets)).loss
  loss.backward()
  model = peftjax.load(folder)

  def mean(params):
    found = model.forward(params, {**batch, "targets": targets})
    return found["token_losses"].sum() / (targets != -100).sum()

  value, gradients = jax.value_and_grad(mean)(model.params)
  assert float(value) == pytest.approx(float(loss), rel=1e-5)
  expected = {name: one.grad for name, one in theirs.named_parameters() if one.grad is not None}
  checked = 0
  for path, gradient in masks.flatten(gradients).items():
    for index, name in enumerate(masks.layer_names(path, model.stacks)):
      key = checkpoint_key(model.family, name)
      if key in expected:
        mine = np.asarray(gradient[index] if len(masks.layer_names(path, model.stacks)) > 1 else gradient)
        wanted = expected[key].numpy()
        mine = mine.transpose() if path.endswith("kernel") else mine
        np.testing.assert_allclose(mine, wanted, rtol=2e-4, atol=2e-5 * np.abs(wanted).max() + 1e-8, err_msg=key)
        checked += 1
  assert checked == len(expected) == sum(one.requires_grad for one in theirs.parameters())


@pytest.mark.parametrize("name", CASES)
def test_saved_models_load_in_transformers(name, tmp_path):
  class_name, sizes = CASES[name]
  theirs, folder = speech.model(class_name, **sizes)
  peftjax.load(folder).save(tmp_path / "saved")
  again, report = type(theirs).from_pretrained(tmp_path / "saved", output_loading_info=True)
  assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
  mine, their = again.state_dict(), theirs.state_dict()
  assert mine.keys() == their.keys() and all(torch.equal(mine[key], their[key]) for key in mine)


@pytest.mark.parametrize("class_name", [speech.CLASSIFICATION, "WhisperModel"])
def test_a_speech_model_gives_its_encoder_to_other_heads(class_name):
  theirs, folder = speech.model()
  task = {"WhisperModel": "encoder", speech.CLASSIFICATION: "audio_classification"}[class_name]
  ours = peftjax.load(folder, task=task, num_labels=0 if task == "encoder" else 3)
  found = ours(**speech.inputs(class_name))
  states = found["encoder_last_hidden_state" if task == "encoder" else "last_hidden_state"]
  assert_close(states, speech.outputs(theirs, speech.inputs()).encoder_last_hidden_state)
  assert ours.drawn == (() if task == "encoder" else tuple(sorted(ours.drawn))) and ours.architecture == class_name


def test_fewer_frames_are_read_with_the_first_positions():
  """As a model whose window is that long."""
  theirs, folder = speech.model()
  short = transformers.WhisperConfig(**{**speech.SIZES, "max_source_positions": 9})
  again = transformers.WhisperForConditionalGeneration(short).eval()
  weights = theirs.state_dict()
  weights["model.encoder.embed_positions.weight"] = weights["model.encoder.embed_positions.weight"][:9]
  again.load_state_dict(weights)
  batch = speech.inputs(frames=18)
  assert_close(peftjax.load(folder)(**batch)["logits"], speech.outputs(again, batch).logits)


@pytest.mark.parametrize("shape", [(2, 11, 36), (2, 11, 33), (2, 10, 34), (11, 34), (2, 11, 0)])
def test_features_of_another_shape(shape):
  model = peftjax.load(speech.model()[1])
  with pytest.raises(UserError, match=r"input_features: shape .*; expected \[batch, 11, frames\], an even number"):
    model(input_features=np.zeros(shape, np.float32), decoder_input_ids=speech.tokens())


def test_more_tokens_than_positions_and_none():
  model = peftjax.load(speech.model()[1])
  with pytest.raises(UserError, match="41 tokens, .* do not fit the model's 40 positions"):
    model(input_features=speech.features(), decoder_input_ids=speech.tokens(length=41))
  with pytest.raises(UserError, match="decoder_input_ids has 61; the model has 61, from 0 to 60"):
    model(input_features=speech.features(), decoder_input_ids=np.array([[3, 61]] * 3))
  with pytest.raises(UserError, match="needs decoder_input_ids"):
    model(input_features=speech.features())


def test_the_encoders_positions_never_train_and_are_drawn_as_in_transformers():
  made = transformers.WhisperModel(transformers.WhisperConfig(**speech.SIZES))
  model = initialise(from_config({**speech.SIZES, "model_type": "whisper"}), jax.random.key(0))
  path = "buffers.constants.model.encoder.embed_positions.sinusoids"
  np.testing.assert_allclose(masks.flatten(model.params)[path], made.encoder.embed_positions.weight, atol=1e-6)
  assert masks.flatten(model.add(peftjax.methods.Full()).labels())[path] == "frozen"
  assert {group for name, group in masks.flatten(model.add(peftjax.methods.Full()).labels()).items()
          if name != path} == {"full"}  # fmt: skip


@pytest.mark.parametrize(
  ("changed", "said"),
  [
    ({"encoder_layerdrop": 0.1}, "encoder_layerdrop=0.1: layers that training leaves out"),
    ({"apply_spec_augment": True}, "apply_spec_augment=true: recordings are masked by input.time_masks"),
    ({"d_model": 21}, "21 hidden features do not divide among 5 heads"),
    ({"num_mel_bins": 0}, "num_mel_bins=0: expected a whole number from 1"),
  ],
)
def test_a_config_that_is_refused(changed, said):
  given = json.loads(json.dumps({**speech.SIZES, **changed}))
  with pytest.raises(UserError, match=said):
    from_config({**given, "model_type": "whisper"})
