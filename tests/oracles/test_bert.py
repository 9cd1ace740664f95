"""BERT and RoBERTa against transformers on torch: logits, hidden states, and the way back."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers

import peftjax
from peftjax import loading
from peftjax.data import packages
from peftjax.models.layers import Runtime
from tests.oracles import tiny


def assert_close(ours, theirs, tolerance=1e-5):
  theirs = theirs.detach().numpy()
  np.testing.assert_allclose(np.asarray(ours), theirs, rtol=tolerance, atol=tolerance * np.abs(theirs).max())


@pytest.mark.parametrize("class_name", tiny.ENCODERS)
@pytest.mark.parametrize("scan_layers", [True, False])
def test_outputs_and_all_hidden_states(class_name, scan_layers):
  reference, folder = tiny.model(class_name)
  batch = tiny.inputs(class_name)
  expected = tiny.torch_outputs(reference, batch, output_hidden_states=True)
  ours = peftjax.load(folder)
  runtime = Runtime(scan_layers=scan_layers, output_hidden_states=True)
  layered = loading.load(folder, runtime=runtime)(**batch)
  assert ours.architecture == class_name
  outputs = ours(**batch)
  key = "logits" if "logits" in outputs else "last_hidden_state"
  assert_close(outputs[key], expected[key])
  assert len(layered["hidden_states"]) == len(expected.hidden_states)
  for mine, theirs in zip(layered["hidden_states"], expected.hidden_states):
    assert_close(mine, theirs)
  if class_name.endswith("Model"):
    assert_close(outputs.get("pooler_output", expected.pooler_output.numpy()), expected.pooler_output)


@pytest.mark.parametrize("class_name", ["BertModel", "BertForSequenceClassification"])
def test_token_types(class_name):
  reference, folder = tiny.model(class_name)
  batch = tiny.inputs(class_name)
  batch["token_type_ids"] = (np.arange(11)[None] > 4).astype(np.int64) * batch["attention_mask"]
  expected = tiny.torch_outputs(reference, batch)
  key = "logits" if "logits" in expected else "last_hidden_state"
  assert_close(peftjax.load(folder)(**batch)[key], expected[key])


@pytest.mark.parametrize("class_name", tiny.ENCODERS)
def test_saved_models_load_in_transformers(class_name, tmp_path):
  reference, folder = tiny.model(class_name)
  peftjax.load(folder).save(tmp_path / "saved")
  again, report = getattr(transformers, class_name).from_pretrained(tmp_path / "saved", output_loading_info=True)
  assert not report["missing_keys"]
  assert not report["unexpected_keys"]
  for (name, mine), (_, theirs) in zip(again.state_dict().items(), reference.state_dict().items()):
    assert torch.equal(mine, theirs), name


def test_a_sharded_checkpoint_loads(tmp_path):
  reference, folder = tiny.model("BertModel")
  reference.save_pretrained(tmp_path, max_shard_size="8KB")
  assert len(list(tmp_path.glob("*.safetensors"))) > 2
  batch = tiny.inputs("BertModel")
  np.testing.assert_array_equal(
    peftjax.load(tmp_path)(**batch)["last_hidden_state"], peftjax.load(folder)(**batch)["last_hidden_state"]
  )


def test_the_packaged_encoder():
  folder = packages.model_folder("minilm")
  reference = transformers.BertModel.from_pretrained(folder).eval()
  ids = np.random.default_rng(0).integers(1000, 30000, (2, 19))
  batch = {"input_ids": ids, "attention_mask": (np.arange(19)[None] < np.array([[19], [12]])).astype(np.int64)}
  expected = tiny.torch_outputs(reference, batch, output_hidden_states=True)
  outputs = loading.load("packaged:minilm", runtime=Runtime(output_hidden_states=True))(**batch)
  real = batch["attention_mask"].astype(bool)
  for mine, theirs in zip(outputs["hidden_states"], expected.hidden_states):
    assert_close(np.asarray(mine)[real], theirs[real])
  assert_close(outputs["pooler_output"], expected.pooler_output)


def test_a_new_head_is_drawn_and_the_rest_is_loaded():
  _, folder = tiny.model("BertModel")
  made = loading.load(folder, task="text_classification", num_labels=7, seed=3)
  assert made.architecture == "BertForSequenceClassification"
  assert made.drawn == ("classifier.bias", "classifier.kernel")
  assert made.params["classifier"]["kernel"].shape == (24, 7)
  plain = peftjax.load(folder)
  np.testing.assert_array_equal(
    made.params["bert"]["pooler"]["dense"]["kernel"], plain.params["pooler"]["dense"]["kernel"]
  )


def test_the_heads_backend_of_attention_is_the_same_mathematics():
  reference, folder = tiny.model("BertModel")
  batch = tiny.inputs("BertModel")
  ours = loading.load(folder, runtime=Runtime(attention="heads"))(**batch)
  assert_close(ours["last_hidden_state"], tiny.torch_outputs(reference, batch).last_hidden_state)


def test_the_config_survives_a_round_trip(tmp_path):
  _, folder = tiny.model("RobertaForTokenClassification")
  peftjax.load(folder).save(tmp_path / "saved")
  before, after = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path / "saved"))
  assert {**before, "architectures": None} == {**after, "architectures": None}
