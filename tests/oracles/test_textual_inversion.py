"""New tokens of a pipeline against transformers' tokenizer and diffusers' `load_textual_inversion`."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

import peftjax
from peftjax import UserError, masks, methods, textual_inversion
from peftjax.data.inputs.pipeline import Pipeline
from tests.oracles import pipelines

TEXT = "a photo of <sks> dog"


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
  """(the pipeline's folder, one with the token <sks> more, the token's id)."""
  folder, out = pipelines.pipeline()[1], tmp_path_factory.mktemp("token") / "pipe"
  vector = textual_inversion.vector_of(folder, "dog")
  ids = textual_inversion.extend(folder, out, {"<sks>": vector})
  return folder, out, ids["<sks>"]


def test_the_token_is_one_and_begins_as_its_word(extended):
  folder, out, number = extended
  theirs = transformers.CLIPTokenizer.from_pretrained(out / "tokenizer")
  wanted = theirs([TEXT, "a dog"], padding="max_length", truncation=True, max_length=pipelines.LENGTH).input_ids
  found = Pipeline(out).ids([TEXT, "a dog"])
  np.testing.assert_array_equal(found, wanted)
  assert number in found[0]
  np.testing.assert_array_equal(Pipeline(folder).ids(["a dog"])[0], found[1])
  one, other = (peftjax.load(path / "text_encoder") for path in (folder, out))
  ids = Pipeline(folder).ids(["a photo of dog dog"])
  states = [model(input_ids=given)["last_hidden_state"] for model, given in ((one, ids), (other, found[:1]))]
  np.testing.assert_allclose(*states, rtol=1e-5, atol=1e-6)


def test_what_is_learned_is_read_by_diffusers_and_back(extended, tmp_path):
  folder, out, number = extended
  method = methods.TrainableTokens(token_indices=(number,), targets=("text_encoder.*token_embedding",))
  model = peftjax.load(out).add(method)
  (leaf,) = (name for name in masks.flatten(model.params) if name.endswith("token_rows"))
  groups = masks.flatten(model.labels())
  assert [name for name, group in groups.items() if group != masks.FROZEN] == [leaf]
  vector = np.random.default_rng(0).normal(size=(1, pipelines.HIDDEN)).astype("f4")
  model = model.with_params(masks.unflatten({**masks.flatten(model.params), leaf: vector}))
  textual_inversion.save(model, tmp_path)
  file = tmp_path / textual_inversion.FILE
  np.testing.assert_array_equal(load_file(file)["<sks>"], vector[0])

  theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
  theirs.load_textual_inversion(str(file), token="<sks>")
  with torch.no_grad():
    wanted, _ = theirs.encode_prompt(TEXT, "cpu", 1, False)
  ids = Pipeline(out).ids([TEXT])
  np.testing.assert_allclose(model(text_encoder={"input_ids": ids})["text_encoder"]["last_hidden_state"], wanted,
                             rtol=1e-5, atol=1e-6)  # fmt: skip
  again = tmp_path / "again"
  assert textual_inversion.main([str(folder), str(again), f"--embeds={file}"]) == 0
  states = peftjax.load(again / "text_encoder")(input_ids=Pipeline(again).ids([TEXT]))["last_hidden_state"]
  np.testing.assert_allclose(states, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("token", ["<Dog>", "mydog", "a b"])
def test_a_token_is_found_in_a_text_as_diffusers_finds_it(token, tmp_path):
  folder = pipelines.pipeline(small=True)[1]
  vector = np.ones(pipelines.HIDDEN, "f4")
  save_file({token: vector}, tmp_path / "one.safetensors")
  theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
  theirs.load_textual_inversion(str(tmp_path / "one.safetensors"), local_files_only=True)
  textual_inversion.extend(folder, tmp_path / "out", {token: vector})
  texts = [f"a {token}", f"a {token.lower()} dog", f"{token.upper()}s", f"red{token},", "a dog"]
  wanted = theirs.tokenizer(texts, padding="max_length", max_length=pipelines.LENGTH, truncation=True).input_ids
  np.testing.assert_array_equal(Pipeline(tmp_path / "out").ids(texts), wanted)


@pytest.mark.parametrize("tokens", [("",), (" ",), ("<dog> ",), ("<dog>", "<Dog>")])
def test_a_token_that_no_text_has_is_one_line(tokens, tmp_path):
  embeds = dict.fromkeys(tokens, np.ones(pipelines.HIDDEN, "f4"))
  with pytest.raises(UserError, match="is no token: "):
    textual_inversion.extend(pipelines.pipeline(small=True)[1], tmp_path / "out", embeds)
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  ("held", "said"),
  [
    ({"<y>": np.ones((), "f4")}, r"'<y>' has shape \[\], or values that are not finite; expected a vector"),
    ({"<y>": np.full(20, np.nan, "f4")}, "values that are not finite"),
    ({"<y>": np.ones((2, 20), "f4")}, "'<y>' has 2 vectors; one token stands for one here"),
    ({"emb_params": np.ones((1, 20), "f4")}, "'emb_params' is what other programs call a vector"),
    ({}, "holds no token"),
  ],
)
def test_files_that_do_not_fit_are_one_line(held, said, tmp_path):
  save_file(held, tmp_path / "one.safetensors")
  with pytest.raises(UserError, match=said):
    textual_inversion.read(tmp_path / "one.safetensors")


def test_what_is_wrong_is_one_line(extended, tmp_path, capsys):
  folder, out, _ = extended
  with pytest.raises(UserError, match="has the token '<sks>' already"):
    textual_inversion.extend(out, tmp_path / "x", {"<sks>": np.zeros(pipelines.HIDDEN, "f4")})
  with pytest.raises(UserError, match=r"'<y>': a vector of shape \[3\]"):
    textual_inversion.extend(folder, tmp_path / "x", {"<y>": np.zeros(3, "f4")})
  with pytest.raises(UserError, match="is there already"):
    textual_inversion.extend(folder, out, {})
  assert textual_inversion.main([str(folder), str(tmp_path / "x"), "--token=<y>"]) == 2
  assert capsys.readouterr().err == "peftjax: expected --token and --like, or --embeds\n"
