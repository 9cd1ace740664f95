"""The model facade: adding, merging, stacking, and what loading refuses."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import peftjax
from peftjax import UserError, loading, masks, methods, stacks
from peftjax.methods import Hybrid, LastK, LoRA
from peftjax.model import HEAD, Model
from peftjax.models import pretrained
from peftjax.models.layers import Runtime
from peftjax.train import inspection

CONFIG = {
  "model_type": "bert",
  "architectures": ["BertForSequenceClassification"],
  "vocab_size": 31,
  "hidden_size": 12,
  "num_hidden_layers": 3,
  "num_attention_heads": 3,
  "intermediate_size": 20,
  "max_position_embeddings": 17,
  "num_labels": 4,
  "initializer_range": 0.3,
}
INPUTS = {"input_ids": np.arange(14).reshape(2, 7) + 1, "attention_mask": np.ones((2, 7), np.int32)}


@functools.cache
def make(**runtime) -> Model:
  shapes = loading.from_config(CONFIG, runtime=Runtime(**runtime))
  return loading.initialise(shapes, jax.random.key(0))


def randomised(model: Model, seed: int = 1) -> Model:
  """The model with every adapter leaf drawn, so that nothing is hidden by a zero."""
  flat = masks.flatten(model.params)
  for index, path in enumerate(sorted(model.adapter_paths())):
    key = jax.random.fold_in(jax.random.key(seed), index)
    flat[path] = flat[path] + 0.3 * jax.random.normal(key, flat[path].shape)
  return model.with_params(masks.unflatten(flat))


ADAPTERS = [
  LoRA(rank=5, alpha=7.0, targets="all-linear"),
  LoRA(rank=5, rslora=True, targets=("word_embeddings", "query"), lora_bias=False),
  LoRA(rank=4, init="orthogonal", lora_bias=True),
  LoRA(rank=3, init="pissa"),
  LoRA(rank=3, init="olora", targets=("intermediate.dense",)),
  LoRA(rank=2, init="gaussian", layers=(0, 2), rank_pattern={"layer.2.attention.self.query": 5}),
  methods.IA3(),
  methods.IA3(targets=("output.dense", "key"), feedforward=()),
]


@pytest.mark.parametrize("method", ADAPTERS, ids=str)
def test_merging_equals_acting(method):
  model = randomised(make().add(method, jax.random.key(2)))
  merged = model.merge()
  assert not merged.adapter_paths()
  assert set(masks.flatten(merged.params)) == set(masks.flatten(merged.params)) - model.adapter_paths()
  np.testing.assert_allclose(merged(**INPUTS)["logits"], model(**INPUTS)["logits"], rtol=2e-5, atol=2e-6)
  assert np.abs(merged(**INPUTS)["logits"] - make()(**INPUTS)["logits"]).max() > 1e-2


@pytest.mark.parametrize(
  "method", [*ADAPTERS, methods.Houlsby(bottleneck_dim=5), methods.Prompt(num_virtual_tokens=3)], ids=str
)
def test_adding_leaves_the_base_alone_and_starts_as_it(method):
  base = make()
  model = base.add(method, jax.random.key(2))
  flat = masks.flatten(stacks.unstack(base.params, base.stacks) if not model.stacks else base.params)
  for path, leaf in masks.flatten(model.params).items():
    assert (path in model.adapter_paths()) != (path in flat)
    if path in flat:
      np.testing.assert_array_equal(leaf, flat[path])
  if method.name != "prompt" and getattr(method, "init", "") != "orthogonal":
    reference = base if model.stacks else base.unrolled()
    np.testing.assert_allclose(model(**INPUTS)["logits"], reference(**INPUTS)["logits"], rtol=1e-6, atol=1e-7)


def test_lora_and_ia3_start_bitwise_as_the_base():
  for method in (LoRA(rank=5), methods.IA3()):
    np.testing.assert_array_equal(make().add(method)(**INPUTS)["logits"], make()(**INPUTS)["logits"])


@pytest.mark.parametrize(
  "method", [LoRA(rank=5), methods.IA3(), methods.Houlsby(), methods.Prompt(num_virtual_tokens=4)], ids=str
)
def test_the_layout_of_layers_changes_nothing(method):
  stacked = randomised(make().add(method, jax.random.key(3)))
  unrolled = stacked.unrolled()
  assert not unrolled.stacks
  np.testing.assert_allclose(unrolled(**INPUTS)["logits"], stacked(**INPUTS)["logits"], rtol=1e-5, atol=1e-6)
  again = stacks.stack(unrolled.params, stacked.stacks)
  jax.tree.map(np.testing.assert_array_equal, again, stacked.params)
  fresh = make(scan_layers=False).add(method, jax.random.key(3))
  jax.tree.map(
    np.testing.assert_array_equal,
    fresh.params,
    stacks.unstack(make().add(method, jax.random.key(3)).params, stacked.stacks),
  )


@pytest.mark.parametrize("remat", ["minimal", "full"])
def test_gradients_under_remat_and_scan(remat):
  def gradient(model):
    trainable, frozen = masks.partition(model.params, model.labels())

    def loss(leaves):
      return model.forward(masks.combine(leaves, frozen), INPUTS)["logits"].sum()

    return masks.flatten(jax.jit(jax.grad(loss))(trainable))

  plain = gradient(randomised(make().add(LoRA(rank=5))))
  again = gradient(randomised(make(remat=remat).add(LoRA(rank=5))))
  assert set(plain) == {path for path in plain if "lora" in path or path.startswith("classifier")}
  for path, leaf in plain.items():
    assert np.abs(leaf).max() > 0
    np.testing.assert_allclose(again[path], leaf, rtol=1e-5, atol=1e-6)


def test_dropout_needs_a_key_and_follows_it():
  model = randomised(make(dropout=0.0).add(LoRA(rank=5, dropout=0.5)))
  forward = jax.jit(model.forward)
  first, second = (forward(model.params, INPUTS, jax.random.key(seed))["logits"] for seed in (0, 1))
  assert np.abs(first - second).max() > 1e-3
  np.testing.assert_array_equal(forward(model.params, INPUTS, jax.random.key(0))["logits"], first)
  np.testing.assert_array_equal(forward(model.params, INPUTS)["logits"], model(**INPUTS)["logits"])


def test_groups_of_a_hybrid_and_of_lora_plus():
  model = make().add(Hybrid(methods=(LoRA(rank=2, layers=(0, 1), lr_ratio=16.0), LastK(k=1))))
  groups = set(masks.flatten(model.labels()).values())
  assert groups == {"frozen", "adapter", "lora_b", "last_k", HEAD}
  rates = model.learning_rates()
  assert rates["lora_b"] == 16 * rates["adapter"]
  assert rates["last_k"] == LastK.learning_rate
  assert all("layer.2" in path for path, group in masks.flatten(model.labels()).items() if group == "last_k")


def test_bias_modes_and_modules_to_save():
  def freed(method):
    labels = masks.flatten(make().add(method).labels())
    return {path for path, group in labels.items() if group in ("bias", "saved")}

  assert freed(LoRA()) == set()
  assert freed(LoRA(bias="lora_only")) == {
    f"bert.encoder.layer.attention.self.{name}.bias" for name in ("query", "value")
  }
  assert len(freed(LoRA(bias="all"))) == 10
  assert freed(LoRA(modules_to_save=("pooler",))) == {"bert.pooler.dense.kernel", "bert.pooler.dense.bias"}


def test_two_methods_with_one_leaf_are_refused():
  with pytest.raises(UserError, match="two methods add the leaf"):
    make().add(Hybrid(methods=(LoRA(), LoRA(targets=("query",)))))


def test_a_leaf_that_is_never_read_is_refused():
  class Stray(LoRA):
    leaf_names = ("lora_a", "lora_b")

    def select(self, context):
      return [dataclasses.replace(site, method="from_embeds") for site in super().select(context)]

  with pytest.raises(UserError, match="never read"):
    make().add(Stray())


@pytest.mark.parametrize("act", [lambda y, leaf: y, lambda y, leaf: y + 0.0 * leaf, lambda y, leaf: y + (leaf - leaf)])
def test_a_leaf_that_is_read_and_not_used_is_refused(act):
  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Idle(LoRA):
    leaf_names = ("lora_a", "lora_b", "extra")

    def create(self, key, site, base):
      return {**super().create(key, site, base), "extra": jnp.zeros(site.shape[-1])}

    def after(self, leaves, x, y, site, call):
      return act(super().after(leaves, x, y, site, call), leaves["extra"])

  for model in (make(), make().unrolled()):
    with pytest.raises(UserError, match=r"lora: no output of the model depends on its leaf '.*query\.extra' \(nor"):
      model.add(Idle())
  Frozen = dataclasses.make_dataclass("Frozen", (), bases=(Idle,), frozen=True, kw_only=True)
  Frozen.leaf_names, Frozen.buffer_names = ("lora_a", "lora_b"), ("extra",)
  make().add(Frozen())


def test_a_summary_counts_what_trains_by_parts():
  model = make().add(LoRA(rank=3, targets=("query", "value")))
  lines, counts = model.summary().splitlines(), inspection.report(model)
  assert f"{counts['total']:,} parameters" in lines[0] and f"{counts['trainable']:,} train" in lines[0]
  assert lines[1] == "  lora(targets=('query', 'value'), rank=3) at 6 modules"
  cells = [line.replace(",", "").split() for line in lines[3:]]
  assert sum(int(row[-1] if row[-1].isdigit() else row[-2]) for row in cells) == counts["trainable"]
  assert len(lines) < 30 and len(repr(model).splitlines()) == 1


def test_a_model_with_adapters_is_not_saved_as_a_whole(tmp_path):
  with pytest.raises(UserError, match="merge"):
    make().add(LoRA()).save(tmp_path / "out")
  assert not (tmp_path / "out").exists()


# Folders ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
  make().save(tmp_path / "model")
  return tmp_path / "model"


def edit(folder, change):
  path = folder / "model.safetensors"
  tensors = load_file(path)
  change(tensors)
  save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize(
  ("change", "expected"),
  [
    (lambda t: t.pop("bert.encoder.layer.1.output.dense.weight"), "lacks 1 tensors, such as 'bert.encoder.layer.1"),
    (lambda t: t.update({"bert.surprise": np.zeros(3, np.float32)}), "does not imply, such as 'bert.surprise'"),
    (
      lambda t: t.update(
        {"bert.encoder.layer.0.output.dense.weight": t["bert.encoder.layer.0.output.dense.weight"].T.copy()}
      ),
      "has shape (12, 20) as a leaf; config.json implies (20, 12)",
    ),
  ],
)
def test_wrong_tensors_are_errors(folder, change, expected):
  edit(folder, change)
  with pytest.raises(UserError) as caught:
    peftjax.load(folder)
  assert expected in str(caught.value)


def test_broken_folders_are_errors(folder, tmp_path):
  weights = folder / "model.safetensors"
  whole = weights.read_bytes()
  weights.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(UserError, match="no whole safetensors file"):
    peftjax.load(folder)
  weights.unlink()
  with pytest.raises(UserError, match=r"no \*\.safetensors"):
    peftjax.load(folder)
  (folder / "pytorch_model.bin").write_bytes(b"x")
  with pytest.raises(UserError, match="pickle"):
    peftjax.load(folder)
  (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
  with pytest.raises(UserError, match=r"names 'model-1\.safetensors', which is not there"):
    peftjax.load(folder)


def test_bfloat16_leaves_round_once(folder):
  model = peftjax.load(folder, dtype="bfloat16")
  exact = peftjax.load(folder)
  for path, leaf in masks.flatten(model.params).items():
    assert leaf.dtype == jnp.bfloat16
    np.testing.assert_array_equal(leaf, masks.flatten(exact.params)[path].astype(jnp.bfloat16))
  np.testing.assert_allclose(model(**INPUTS)["logits"], exact(**INPUTS)["logits"], atol=0.15)


def test_the_content_hash_sees_every_byte(folder):
  first = pretrained.content_hash(folder)
  assert first == pretrained.content_hash(folder)
  edit(folder, lambda t: t["bert.embeddings.LayerNorm.bias"].__setitem__(0, 1e-8))
  assert pretrained.content_hash(folder) != first
