"""Merging and taking out, scaling and disabling, for every method."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax import adapters, masks
from peftjax.adapters.merging import cannot_undo
from peftjax.errors import UserError
from peftjax.methods import BOFT, HRA, IA3, METHODS, OFT, HiRA, LoRA, Method, RoAd, VeRA
from tests.adapters import cases
from tests.methods import tiny
from tests.models import decoder_models

MERGES = [name for name in cases.NAMES if name == "hybrid" or METHODS[name].delta is not Method.delta]
# One of each way in which a factor acts: on outputs, on a formed change, on a changed input, on an embedding.
SCALED = ("lora", "dora", "hira", "oft", "boft", "ia3", "hybrid", "trainable_tokens")
ON = ("query", "output.dense")
STAYS = ("dora", "trainable_tokens")  # no way back from the merged weights


@functools.cache
def results(name):
  """One program: the adapted model's outputs, the merged one's, those scaled, and the base taken out again."""
  model, inputs = cases.adapted(name), cases.batch(name)

  def run(params):
    adapted = model.with_params(params)
    half = adapters.scaled(adapters.scaled(adapted, -1.2), -0.5)
    found = {"adapted": adapted, "merged": adapters.merge(adapted)} if name in MERGES else {"half": half}
    if name in SCALED:
      found |= {"half": half, "half_merged": adapters.merge(half)}
    elif name not in MERGES:
      found["zero"] = adapters.scaled(adapted, 0.0)
    outputs = {key: one.forward(one.params, inputs)["logits"] for key, one in found.items()}
    if name in MERGES and name not in STAYS:
      outputs["back"] = masks.flatten(adapters.unmerge(found["merged"], adapters.take(adapted)).params)
    return outputs

  return jax.jit(run)(model.params)


@pytest.mark.parametrize("name", MERGES)
def test_merging_and_taking_out(name):
  model, found = cases.adapted(name), results(name)
  assert np.abs(found["adapted"] - cases.base_logits(name)).max() > 1e-2
  cases.close(found["merged"], found["adapted"])
  if name in SCALED:
    cases.close(found["half"], found["half_merged"])
    assert np.abs(found["half"] - found["adapted"]).max() > 1e-2
  if name in STAYS:
    with pytest.raises(UserError) as caught:
      adapters.unmerge(model.merge(), adapters.take(model))
    assert str(caught.value) == cannot_undo(model.methods[0])
    return
  for path, leaf in masks.flatten(adapters.disabled(model).params).items():
    np.testing.assert_allclose(found["back"][path], leaf, rtol=1e-5, atol=3e-6, err_msg=path)


@pytest.mark.parametrize("name", ["houlsby", pytest.param("reft", marks=pytest.mark.slow)])
def test_a_factor_on_what_changes_outputs(name):
  found = results(name)
  cases.close(found["zero"], cases.base_logits(name))
  assert np.abs(found["half"] - found["zero"]).max() > 1e-2


@pytest.mark.parametrize("name", ["prompt", "p_tuning", "prefix", "p_tuning_v2", "unipelt", "mam"])
def test_no_factor_goes_on_tokens_keys_and_values(name):
  with pytest.raises(UserError, match="cannot be scaled"):
    adapters.scaled(cases.fresh(name), 0.5)


def test_a_scaled_lora_is_a_lora_of_another_alpha():
  model = cases.with_lora(cases.toy(), 1, targets=cases.T, rank=5, alpha=7.0)
  other = cases.with_lora(cases.toy(), 1, targets=cases.T, rank=5, alpha=2.1)
  half = adapters.scaled(model, 0.3)
  cases.close(half(**cases.batch("lora"))["logits"], other(**cases.batch("lora"))["logits"])


def test_disabled_is_the_base_bitwise():
  model = adapters.disabled(cases.with_lora(cases.toy(), 1, targets=cases.T))
  found, wanted = (one(**cases.batch("lora"))["logits"] for one in (model, cases.toy()))
  np.testing.assert_array_equal(found, wanted)
  assert model.forward_key == cases.toy().forward_key  # nothing is compiled anew


def test_a_bf16_base_is_merged_in_float32():
  base = cases.toy().with_params(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), cases.toy().params))
  model = cases.with_lora(base, 1, targets=("query",), rank=5)
  kernel = masks.flatten(base.params)["layer.query.kernel"]
  wanted = (np.asarray(kernel, np.float32) + np.asarray(adapters.deltas(model)["layer.query.kernel"])).astype(
    "bfloat16"
  )
  np.testing.assert_array_equal(masks.flatten(model.merge().params)["layer.query.kernel"], wanted)


def test_tied_embeddings_are_merged_once():
  base = decoder_models.random_model({**decoder_models.LLAMA, "tie_word_embeddings": True})
  model = base.add(cases.method("trainable_tokens"), jax.random.key(0))
  model, ids = tiny.replaced(model, tiny.noise_on(tiny.trainable(model))), decoder_models.token_ids()
  cases.close(model.merge()(input_ids=ids)["logits"], model(input_ids=ids)["logits"])


def test_an_adapter_goes_on_its_base_and_on_no_other():
  model = cases.adapted("houlsby")
  adapter = adapters.take(model)
  assert set(adapter.leaves) == model.adapter_paths()
  assert {path.split(".")[0] for path in adapter.along} == {"classifier"}
  for base, whole in ((cases.encoder(), model), (cases.encoder().unrolled(), model.unrolled())):
    again = adapters.put(base, adapters.take(whole))
    assert again.bound == whole.bound
    for path, leaf in masks.flatten(whole.params).items():
      assert masks.flatten(again.params)[path] is leaf or (masks.flatten(again.params)[path] == leaf).all()
  assert adapters.put(cases.encoder(), adapters.take(model.unrolled())).stacks == {}
  with pytest.raises(UserError, match="another model"):
    adapters.put(cases.decoder(), adapter)
  with pytest.raises(UserError, match="an adapter already"):
    adapters.put(model, adapter)
  with pytest.raises(UserError, match="separate adapter"):
    adapters.unmerge(model, adapter)


SEVERAL = {  # methods on the same modules, in orders in which merging one after the other would go wrong
  "lora oft": (LoRA(rank=2, targets=ON), OFT(oft_block_size=4, targets=ON)),
  "oft hra": (OFT(oft_block_size=4, targets=ON), HRA(rank=2, targets=ON)),
  "lora ia3": (LoRA(rank=2, targets=ON), IA3(targets=ON, feedforward=("output.dense",))),
  "ia3 vera road": (IA3(targets=ON, feedforward=ON), VeRA(rank=2, targets=ON), RoAd(group_size=4, targets=ON)),
  "hira lora": (HiRA(rank=2, targets=ON), LoRA(rank=2, targets=ON)),
}


def several(added):
  model = tiny.encoder().add(added, jax.random.key(1))
  return tiny.replaced(model, tiny.noise_on(tiny.trainable(model), 5))


@pytest.mark.parametrize("name", SEVERAL)
def test_several_methods_on_one_module(name):
  model, inputs = several(SEVERAL[name]), tiny.batch()
  cases.close(model.merge()(**inputs)["logits"], model(**inputs)["logits"])


@pytest.mark.parametrize("second", [HiRA(rank=2, targets=ON), BOFT(boft_block_size=4, targets=("query",))])
def test_a_method_made_of_the_base_is_not_merged_behind_another(second):
  with pytest.raises(UserError, match=f"{second.name} cannot be merged at .* behind another method: .* add it first"):
    several((LoRA(rank=2, targets=ON), second)).merge()
