"""Every method on a vision transformer: it acts, its leaves get gradients, or the reason why not."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax import masks, methods
from peftjax.errors import UserError
from peftjax.loading import from_config, initialise
from peftjax.models.layers import Runtime
from peftjax.models.vit import Embeddings, ViTLayer
from peftjax.testing import bases
from peftjax.train.flops import count_flops
from tests.methods import matrix

FAMILIES = {
  "vit": {"model_type": "vit", "intermediate_size": 40},
  "deit": {"model_type": "deit", "intermediate_size": 40},
  "dinov2": {"model_type": "dinov2", "mlp_ratio": 2},
  "registers": {"model_type": "dinov2_with_registers", "use_swiglu_ffn": True},
  "clip": {"model_type": "clip_vision_model", "intermediate_size": 40},
  "yolos": {"model_type": "yolos", "intermediate_size": 40, "image_size": [12, 12], "num_detection_tokens": 3},
}
DETR = {
  "model_type": "detr", "d_model": 24, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 3,
  "decoder_attention_heads": 3, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40, "num_queries": 3,
  "backbone_config": {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8], "depths": [1],
                      "layer_type": "basic"},
  "initializer_range": 0.3,  # behind two stacks of layers and a ResNet gradients would be near rounding
}  # fmt: skip
SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 12, "patch_size": 4}
SETTINGS = {**matrix.SETTINGS, "vpt_deep": {"num_virtual_tokens": 3, "deep": True}}
WITHOUT = {"trainable_tokens": "this model declares no word embeddings"}
NAMES = [*(name for name in matrix.NAMES if name not in WITHOUT), "vpt_deep"]
# One of each kind on DETR, whose steps compile for long.
ON_DETR = ("full", "bitfit", "lora", "ia3", "oft", "houlsby", "prompt", "prefix", "reft")
GRID = [*((family, name) for family in FAMILIES for name in NAMES), *(("detr", name) for name in ON_DETR)]
PIXELS = np.random.default_rng(0).normal(size=(2, 3, 12, 12)).astype(np.float32)


def make(name):
  return methods.Prompt(**SETTINGS[name]) if name == "vpt_deep" else matrix.make(name, SETTINGS.get(name, {}))


def fitting(family, name):
  """The method; the pattern that `patterns` trains is a module's name."""
  return methods.Patterns(train=("q_proj",)) if (family, name) == ("clip", "patterns") else make(name)


def task_of(family):
  return "object_detection" if family in ("yolos", "detr") else "image_classification"


@functools.cache
def base(family):
  config = DETR if family == "detr" else {**SIZES, **FAMILIES[family]}
  return initialise(from_config(config, task=task_of(family), num_labels=5), jax.random.key(0))


def moved(model):
  """With what trains moved a little, so that no gradient is zero at the start."""
  return bases.replaced(model, bases.noise_on(bases.trainable(model), seed=1, scale=0.05))


@pytest.mark.parametrize(("family", "name"), GRID)
def test_a_method_acts_and_every_leaf_of_it_has_a_gradient(family, name):
  model = moved(base(family).add(fitting(family, name), jax.random.key(1)))
  trainable, frozen = masks.partition(model.params, model.labels())

  def loss(leaves):
    outputs = model.forward(masks.combine(leaves, frozen), {"pixel_values": PIXELS})
    return sum((outputs[name] ** 2).sum() for name in ("logits", "pred_boxes") if name in outputs), outputs

  gradients, outputs = jax.jit(jax.grad(loss, has_aux=True))(trainable)
  plain = base(family)(pixel_values=PIXELS)
  assert {key: one.shape for key, one in outputs.items()} == {key: one.shape for key, one in plain.items()}
  assert np.abs(outputs["logits"] - plain["logits"]).max() > 1e-6
  # The base has leaves that no logit depends on: the mask token, keys' biases, which softmax does not see, and the
  # normalisation of CLIP's class token, of which its classifier reads nothing.
  unread = ("mask_token", "key.bias", "k_proj.bias", "post_layernorm.scale", "post_layernorm.bias")
  for path, gradient in masks.flatten(gradients).items():
    assert path.endswith(unread) or np.abs(gradient).max() > 1e-9, path


@pytest.mark.parametrize(("name", "why"), WITHOUT.items())
def test_a_method_that_does_not_apply_says_why(name, why):
  with pytest.raises(UserError, match=why):
    base("vit").add(make(name))


def test_a_deep_prompt_replaces_what_became_of_the_last_layers():
  """By hand: one layer after the other, each with its own prompt behind the class token."""
  model = moved(base("vit").add(make("vpt_deep"), jax.random.key(1)))
  params, config = model.params, base("vit").config
  prompts = params["vit"]["encoder"]["layer"]["prompt_embeddings"]
  assert prompts.shape == (2, 3, 24)
  layers = {name: leaves for name, leaves in params["vit"]["encoder"]["layer"].items() if name != "prompt_embeddings"}
  embeddings = Embeddings(config, Runtime())
  states = embeddings.apply({"params": params["vit"]["embeddings"]}, PIXELS)
  for index in range(2):
    rest = states[:, 1 if index == 0 else 4 :]
    states = jnp.concatenate([states[:, :1], jnp.broadcast_to(prompts[index], (2, 3, 24)), rest], axis=1)
    leaves = jax.tree.map(lambda leaf, at=index: leaf[at], layers)
    states, _ = ViTLayer(config, Runtime()).apply({"params": leaves}, states)
  hidden = Runtime().layer_norm(config.layer_norm_eps).apply({"params": params["vit"]["layernorm"]}, states)
  expected = hidden[:, 0] @ params["classifier"]["kernel"] + params["classifier"]["bias"]
  np.testing.assert_allclose(model(pixel_values=PIXELS)["logits"], expected, rtol=1e-5, atol=1e-6)


def test_visual_prompts_are_drawn_as_published():
  """Within ±√(6 / (values of a patch + hidden)), and close to it."""
  prompt = base("vit").add(methods.Prompt(num_virtual_tokens=50)).params["from_embeds"]["prompt_embeddings"]
  bound = np.sqrt(6 / (4 * 4 * 3 + 24))
  assert 0.99 * bound < np.abs(prompt).max() <= bound


@pytest.mark.parametrize("init", ["text", "class_labels"])
def test_visual_prompts_start_from_no_text(init):
  with pytest.raises(UserError):
    base("vit").add(methods.Prompt(init=init, init_ids=(1,), label_ids=((1,),)))


def test_flops_of_lora_on_all_linears_are_at_most_seven_tenths_of_full():
  sizes = {"hidden_size": 768, "num_attention_heads": 12, "image_size": 112, "patch_size": 16}
  for family in FAMILIES:
    wide = {
      **sizes,
      **({"intermediate_size": 3072} if family in ("vit", "deit", "clip", "yolos") else {"mlp_ratio": 4}),
    }
    wide |= {"image_size": [112, 112]} if family == "yolos" else {}
    found = [_flops(family, method, wide) for method in (methods.LoRA(rank=8, targets="all-linear"), methods.Full())]
    assert found[0] <= 0.70 * found[1], (family, found[0] / found[1])


def _flops(family, method, sizes):
  config = {**SIZES, **FAMILIES[family], **sizes}
  model = from_config(config, task=task_of(family), num_labels=5).add(method, jax.random.key(0))
  inputs = {"pixel_values": jax.ShapeDtypeStruct((4, 3, 112, 112), jnp.float32)}

  def gradient(flat, rest, inputs):
    return jax.grad(lambda leaves: jnp.sum(model.forward(masks.unflatten({**rest, **leaves}), inputs)["logits"]))(flat)

  return count_flops(gradient, bases.trainable(model), bases.rest_of(model), inputs)


def test_what_tells_the_tokens_of_a_fresh_yolos_apart_is_as_large_as_their_states():
  config = {**SIZES, **FAMILIES["yolos"], "use_mid_position_embeddings": True, "num_detection_tokens": 40}
  leaves = masks.flatten(initialise(from_config(config), jax.random.key(0)).params)
  spread = {name.rpartition(".")[2]: float(jnp.std(leaf)) for name, leaf in leaves.items()}
  assert spread["detection_tokens"] == pytest.approx(1.0, abs=0.1)
  assert spread["mid_position_embeddings"] == pytest.approx(1.0, abs=0.1)
  assert spread["cls_token"] < 0.05 > spread["position_embeddings"]
