"""CLIP's text tower against transformers on torch: outputs, states, gradients, where the text ends, the way back."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

import peftjax
from peftjax import UserError, loading, methods
from peftjax.loading import from_config
from peftjax.models import writing
from peftjax.models.layers import Runtime
from tests.oracles.diffusion import TEXT, assert_close, text, tokens

CLASSES = {
  "bare": ("CLIPTextModel", {}),
  "projection": ("CLIPTextModelWithProjection", {"hidden_act": "gelu"}),
  "legacy-end": ("CLIPTextModel", {"eos_token_id": 2}),
}


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("masked", [False, True])
def test_outputs_and_all_hidden_states(name, masked):
  class_name, changes = CLASSES[name]
  reference, folder = text(class_name, **changes)
  ours = loading.load(folder, runtime=Runtime(output_hidden_states=True))
  assert ours.architecture == class_name
  ids = tokens()
  given = {"input_ids": ids} | ({"attention_mask": (np.cumsum(ids == 51, axis=1) <= 1).astype(int)} if masked else {})
  with torch.no_grad():
    expected = reference(**{key: torch.tensor(one) for key, one in given.items()}, output_hidden_states=True)
  found = ours(**given)
  assert set(expected.keys()) <= set(found)
  for mine, theirs in zip(found["hidden_states"], expected.hidden_states, strict=True):
    assert_close(mine, theirs)
  for key in expected.keys() - {"hidden_states"}:
    assert_close(found[key], expected[key])


def test_gradients():
  reference, folder = text("CLIPTextModelWithProjection")
  ours, ids = peftjax.load(folder), tokens()

  def loss(params):
    return (ours.forward(params, {"input_ids": ids})["text_embeds"] ** 2).sum()

  found = writing.to_checkpoint(ours.family, jax.grad(loss)(ours.params), ours.stacks)
  reference.zero_grad()
  (reference(torch.tensor(ids)).text_embeds ** 2).sum().backward()
  theirs = {name: one.grad.numpy() for name, one in reference.named_parameters()}
  assert found.keys() == theirs.keys()
  largest = max(np.abs(one).max() for one in theirs.values())
  for name, gradient in found.items():
    atol = 1e-5 * max(np.abs(theirs[name]).max(), 0.01 * largest)  # a key's bias has none but rounding
    np.testing.assert_allclose(gradient, theirs[name], rtol=1e-5, atol=atol, err_msg=name)


@pytest.mark.parametrize("class_name", ["CLIPTextModel", "CLIPTextModelWithProjection"])
def test_saved_models_load_in_transformers(class_name, tmp_path):
  reference, folder = text(class_name)
  peftjax.load(folder).save(tmp_path)
  again, report = getattr(transformers, class_name).from_pretrained(tmp_path, output_loading_info=True)
  assert not report["missing_keys"]
  assert not report["unexpected_keys"]
  for (name, mine), (_, theirs) in zip(again.state_dict().items(), reference.state_dict().items(), strict=True):
    assert torch.equal(mine, theirs), name


def test_files_as_published_name_the_tower(tmp_path):
  """Before transformers 5, the bare model's tensors stood below ``text_model``, with a buffer of positions."""
  reference, folder = text()
  peftjax.load(folder).save(tmp_path)
  tensors = {f"text_model.{key}": value for key, value in load_file(tmp_path / "model.safetensors").items()}
  save_file({**tensors, "text_model.embeddings.position_ids": np.arange(13)[None]}, tmp_path / "model.safetensors")
  assert_close(
    peftjax.load(tmp_path)(input_ids=tokens())["pooler_output"], reference(torch.tensor(tokens())).pooler_output
  )


def test_a_prompt_leaves_the_text_s_end_where_it_is():
  model = peftjax.load(text()[1]).add(methods.Prompt(num_virtual_tokens=2), jax.random.key(1))
  found = model(input_ids=tokens())
  assert found["last_hidden_state"].shape == (3, 11, 24)
  at = (tokens() == 51).argmax(axis=1)
  ends = np.asarray(found["last_hidden_state"])[np.arange(3), at]
  np.testing.assert_allclose(found["pooler_output"], ends, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ("changed", "said"),
  [
    ({"eos_token_id": [1, 2]}, "eos_token_id=\\[1, 2\\]: expected a whole number"),
    ({"num_attention_heads": 5}, "24 hidden features do not divide among 5 heads"),
    ({"hidden_act": "glue"}, "unknown activation 'glue'"),
  ],
)
def test_what_does_not_fit_is_said(changed, said):
  with pytest.raises(UserError, match=said):
    from_config({"model_type": "clip_text_model", **TEXT, **changed})


def test_more_tokens_than_positions():
  with pytest.raises(UserError, match="14 tokens do not fit the model's 13 positions"):
    peftjax.load(text()[1])(input_ids=tokens(length=14))
