"""Two encoders as one model: one tree, the components' names before the modules', each component as it is alone."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax
from peftjax import UserError, adapters, masks, methods
from peftjax.composite import component, compose
from peftjax.loading import from_config, initialise, load
from tests.methods import tiny

IDS = {"input_ids": jnp.asarray([[5, 6, 7, 8], [9, 10, 11, 0]]), "attention_mask": jnp.asarray([[1] * 4, [1, 1, 1, 0]])}
OTHERS = {"input_ids": jnp.asarray([[3, 4, 5], [6, 7, 8]])}


def encoder(seed: int, **changes):
  model = from_config({**tiny.config(**changes), "architectures": ["BertModel"]})
  return initialise(model, jax.random.key(seed))


@pytest.fixture(scope="module")
def parts():
  return {"query": encoder(0), "passage": encoder(1, num_hidden_layers=3)}


@pytest.fixture(scope="module")
def pair(parts):
  return compose(parts)


def moved(model):
  return tiny.replaced(model, tiny.noise_on(tiny.trainable(model), scale=0.2))


def same(one, other) -> None:
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), one, other)


def test_each_component_computes_what_it_does_alone(parts, pair):
  assert set(pair.params) == {"query", "passage"}
  outputs = pair(query=IDS, passage=OTHERS)
  same(outputs["query"], parts["query"](**IDS))
  same(outputs["passage"], parts["passage"](**OTHERS))
  assert set(pair(passage=OTHERS)) == {"passage"}
  for name, part in parts.items():
    for path, leaf in masks.flatten(part.params).items():
      assert masks.flatten(pair.params)[f"{name}.{path}"] is leaf


def test_names_begin_with_the_component(pair):
  model = pair.add(methods.LoRA(rank=2, targets=("passage.*.query",)))
  names = [name for site in model.bound[0].sites for name in site.names]
  assert names == [f"passage.encoder.layer.{layer}.attention.self.query" for layer in range(3)]
  same(model(query=IDS, passage=OTHERS), pair(query=IDS, passage=OTHERS))


@pytest.mark.parametrize(
  "method",
  [methods.LoRA(rank=2), methods.DoRA(rank=2), methods.VeRA(rank=3), methods.IA3()],
  ids=lambda method: method.name,
)
def test_methods_act_and_merge_in_all_components(pair, method):
  model = moved(pair.add(method, jax.random.key(1)))
  assert {site.path[0] for site in model.bound[0].sites} == {"query", "passage"}
  outputs = model(query=IDS, passage=OTHERS)
  merged = model.merge()
  same(merged(query=IDS, passage=OTHERS), outputs)
  for name, inputs in (("query", IDS), ("passage", OTHERS)):
    same(component(model, name)(**inputs), outputs[name])
    same(component(merged, name)(**inputs), outputs[name])
    assert (
      np.abs(outputs[name]["last_hidden_state"] - component(pair, name)(**inputs)["last_hidden_state"]).max() > 1e-3
    )


@pytest.mark.parametrize("method", [methods.Prompt(num_virtual_tokens=2), methods.ReFT(rank=2, init="published")])
def test_each_component_has_its_own_stream(pair, method):
  model = moved(pair.add(method, jax.random.key(1)))
  outputs = model(query=IDS, passage=OTHERS)
  assert outputs["query"]["last_hidden_state"].shape == (2, 4, tiny.HIDDEN)
  same(component(model, "query")(**IDS), outputs["query"])


def test_gradients_reach_both_towers_and_masks_divide_the_tree(pair):
  model = pair.add(methods.LoRA(rank=2, init="gaussian", targets=("query",)))
  trainable, frozen = masks.partition(model.params, model.labels())

  def loss(part):
    out = model.forward(masks.combine(part, frozen), {"query": IDS, "passage": OTHERS})
    left, right = (out[name]["pooler_output"] for name in ("query", "passage"))
    return -jnp.sum(jax.nn.log_softmax(left @ right.T)[jnp.arange(2), jnp.arange(2)])

  gradient = masks.flatten(jax.jit(jax.grad(loss))(trainable))
  assert {name.partition(".")[0] for name in gradient} == {"query", "passage"}
  assert all(np.abs(leaf).max() > 0 for name, leaf in gradient.items() if name.endswith("lora_b"))


def test_a_folder_of_components_is_written_and_read(tmp_path, pair):
  pair.save(tmp_path / "pair")
  index = json.loads((tmp_path / "pair" / "model_index.json").read_text())
  assert index["query"] == ["transformers", "BertModel"]
  for again in (load(tmp_path / "pair"), load({name: tmp_path / "pair" / name for name in ("query", "passage")})):
    same(again.params, pair.params)
    assert component(again, "query").folder == tmp_path / "pair" / "query"
  one = load(tmp_path / "pair" / "passage")
  same(one(**OTHERS), pair(passage=OTHERS)["passage"])


def test_components_that_hold_no_model_are_passed_over(tmp_path, pair):
  pair.save(tmp_path / "pair")
  index = json.loads((tmp_path / "pair" / "model_index.json").read_text())
  index |= {"tokenizer": ["transformers", "BertTokenizer"], "checker": [None, None]}
  (tmp_path / "pair" / "tokenizer").mkdir()
  (tmp_path / "pair" / "model_index.json").write_text(json.dumps(index))
  assert set(load(tmp_path / "pair").params) == {"query", "passage"}
  index["unet"] = ["diffusers", "UNet3DConditionModel"]
  (tmp_path / "pair" / "model_index.json").write_text(json.dumps(index))
  with pytest.raises(UserError, match="'unet', and there is no such folder"):
    load(tmp_path / "pair")
  (tmp_path / "pair" / "unet").mkdir()
  (tmp_path / "pair" / "unet" / "config.json").write_text(json.dumps({"_class_name": "UNet3DConditionModel"}))
  with pytest.raises(UserError, match="_class_name 'UNet3DConditionModel' is not supported"):
    load(tmp_path / "pair")


def test_each_component_s_adapter_has_its_folder(tmp_path, pair):
  pair.save(tmp_path / "pair")
  base = load(tmp_path / "pair")
  model = moved(base.add(methods.LoRA(rank=2, targets=("query", "value"))))
  model.save_adapter(tmp_path / "adapters")
  assert {path.name for path in (tmp_path / "adapters").iterdir()} == {"query", "passage"}
  again = load(tmp_path / "pair", tmp_path / "adapters")
  same(again(query=IDS, passage=OTHERS), model(query=IDS, passage=OTHERS))
  alone = peftjax.load(tmp_path / "pair" / "query", tmp_path / "adapters" / "query")
  same(alone(**IDS), model(query=IDS)["query"])


def test_an_adapter_of_one_component_leaves_the_other_alone(tmp_path, pair):
  pair.save(tmp_path / "pair")
  base = load(tmp_path / "pair")
  moved(base.add(methods.LoRA(rank=2, targets=("passage.*.value",)))).save_adapter(tmp_path / "adapters")
  again = load(tmp_path / "pair", tmp_path / "adapters")
  assert {site.path[0] for site in again.bound[0].sites} == {"passage"}
  np.testing.assert_array_equal(again(query=IDS)["query"]["last_hidden_state"],
                                base(query=IDS)["query"]["last_hidden_state"])  # fmt: skip


def test_layers_that_differ_unroll_and_adapters_are_taken_out(pair):
  model = moved(pair.add(methods.LoRA(rank=2, targets=("value",), layers=(1,))))
  assert not model.layer_stacks
  same(adapters.put(pair, adapters.take(model))(query=IDS)["query"], model(query=IDS)["query"])
  same(component(model, "query")(**IDS), model(query=IDS)["query"])


@pytest.mark.parametrize(
  ("models", "message"),
  [
    (lambda parts: {}, "at least one"),
    (lambda parts: {"a.b": parts["query"]}, "letters, digits"),
    (lambda parts: {"buffers": parts["query"]}, "not 'buffers'"),
    (lambda parts: {"a": parts["query"].add(methods.LoRA(rank=2))}, "add methods to the whole"),
    (lambda parts: {"a": parts["query"], "b": parts["query"].unrolled()}, "one runtime"),
  ],
)
def test_what_cannot_be_put_together_is_said(parts, models, message):
  with pytest.raises(UserError, match=message):
    compose(models(parts))


def test_an_unknown_component_names_the_nearest(pair):
  with pytest.raises(UserError, match="'query'"):
    component(pair, "qery")
