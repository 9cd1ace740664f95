"""Specs from shapes: the axes of leaves, of adapters beside them and of the optimizer's statistics."""

from __future__ import annotations

import types

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from peftjax import config as config_lib
from peftjax import masks, methods, tasks
from peftjax.data.inputs.text import check_positions
from peftjax.errors import UserError
from peftjax.loading import from_config
from peftjax.parallel import mesh as mesh_lib
from peftjax.parallel.sharding import layout_of
from peftjax.train import assemble
from peftjax.train import run as run_lib

LLAMA = {
  "model_type": "llama",
  "architectures": ["LlamaForCausalLM"],
  "vocab_size": 320,
  "hidden_size": 128,
  "num_hidden_layers": 3,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "intermediate_size": 192,
  "tie_word_embeddings": False,
}
GPT2 = {"model_type": "gpt2", "vocab_size": 320, "n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 64}
BERT = {
  "model_type": "bert",
  "architectures": ["BertModel"],
  "vocab_size": 320,
  "hidden_size": 128,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "intermediate_size": 192,
}


def device_mesh(data=1, fsdp=2, tensor=2, sequence=1):
  """A mesh of devices that are not there, for specs alone."""
  shape = (data, fsdp, tensor, sequence)
  devices = [types.SimpleNamespace(id=i, platform="cpu", process_index=i // 2) for i in range(np.prod(shape))]
  return types.SimpleNamespace(
    devices=np.array(devices).reshape(shape), shape=dict(zip(mesh_lib.AXES, shape)), size=len(devices)
  )


def specs(hf_config, *added, **sizes):
  model = from_config(hf_config)
  for one in added:
    model = model.add(one)
  layout = layout_of(model, device_mesh(**sizes))
  return {path: layout.spec(path, leaf) for path, leaf in masks.flatten(model.params).items()}


def test_an_adapter_follows_the_axes_of_its_leaf():
  found = specs(LLAMA, methods.LoRA(rank=64, targets="all-linear"))
  layers = "model.layers"
  assert found[f"{layers}.self_attn.q_proj.kernel"] == P(None, "fsdp", "tensor")
  assert found[f"{layers}.self_attn.q_proj.lora_a"] == P(None, "fsdp", None)
  assert found[f"{layers}.self_attn.q_proj.lora_b"] == P(None, None, ("tensor", "fsdp"))
  assert found[f"{layers}.self_attn.o_proj.kernel"] == P(None, "tensor", "fsdp")
  assert found[f"{layers}.self_attn.o_proj.lora_a"] == P(None, ("tensor", "fsdp"), None)
  assert found[f"{layers}.self_attn.o_proj.lora_b"] == P(None, None, "fsdp")
  assert found[f"{layers}.mlp.down_proj.kernel"] == P(None, "tensor", "fsdp")
  assert found["model.embed_tokens.embedding"] == P("tensor", "fsdp")
  assert found["lm_head.kernel"] == P("fsdp", "tensor")
  assert found["model.norm.scale"] == P()


@pytest.mark.parametrize(
  ("hf_config", "away", "back"),
  [
    (GPT2, "h.attn.c_attn.kernel", "h.attn.c_proj.kernel"),
    (GPT2, "h.mlp.c_fc.kernel", "h.mlp.c_proj.kernel"),
    (BERT, "encoder.layer.attention.self.query.kernel", "encoder.layer.attention.output.dense.kernel"),
    (BERT, "encoder.layer.intermediate.dense.kernel", "encoder.layer.output.dense.kernel"),
  ],
)
def test_families(hf_config, away, back):
  found = {path.removeprefix("transformer."): spec for path, spec in specs(hf_config).items()}
  assert found[away] == P(None, "fsdp", "tensor")
  assert found[back] == P(None, "tensor", "fsdp")


@pytest.mark.parametrize(
  ("changes", "away", "back"),
  [
    ({"model_type": "vit", "intermediate_size": 192}, "intermediate.dense", "output.dense"),
    ({"model_type": "yolos", "intermediate_size": 192, "image_size": [32, 32]}, "intermediate.dense", "output.dense"),
    ({"model_type": "dinov2", "mlp_ratio": 3}, "mlp.fc1", "mlp.fc2"),
    ({"model_type": "dinov2_with_registers", "use_swiglu_ffn": True}, "mlp.weights_in", "mlp.weights_out"),
  ],
)
def test_vision_transformers(changes, away, back):
  found = specs({"hidden_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2, "image_size": 32, **changes})
  layers = "encoder.layer"
  for path in (f"{layers}.attention.attention.query.kernel", f"{layers}.{away}.kernel"):
    assert found[path] == P(None, "fsdp", "tensor")
  for path in (f"{layers}.attention.output.dense.kernel", f"{layers}.{back}.kernel"):
    assert found[path] == P(None, "tensor", "fsdp")
  assert "fsdp" in str(found["embeddings.patch_embeddings.projection.kernel"])


def test_whisper():
  sizes = {"d_model": 128, "encoder_ffn_dim": 192, "decoder_ffn_dim": 192, "vocab_size": 320, "num_mel_bins": 80,
           "encoder_attention_heads": 4, "decoder_attention_heads": 4}  # fmt: skip
  found = specs({"model_type": "whisper", "tie_word_embeddings": False, **sizes}, methods.LoRA(rank=64))
  for layers, attention in (("encoder", "self_attn"), ("decoder", "self_attn"), ("decoder", "encoder_attn")):
    path = f"model.{layers}.layers.{attention}"
    assert found[f"{path}.q_proj.kernel"] == P(None, "fsdp", "tensor")
    assert found[f"{path}.q_proj.lora_a"] == P(None, "fsdp", None)
    assert found[f"{path}.out_proj.kernel"] == P(None, "tensor", "fsdp")
    assert found[f"model.{layers}.layers.fc1.kernel"] == P(None, "fsdp", "tensor")
    assert found[f"model.{layers}.layers.fc2.kernel"] == P(None, "tensor", "fsdp")
  assert found["model.decoder.embed_tokens.embedding"] == P("tensor", "fsdp")
  assert found["proj_out.kernel"] == P("fsdp", "tensor")
  assert found["model.encoder.conv2.kernel"] == P(None, "fsdp", "tensor")


def test_a_detector_on_a_convolutional_backbone():
  resnet = {"model_type": "resnet", "embedding_size": 16, "hidden_sizes": [32, 512], "depths": [1, 2]}
  sizes = {"d_model": 128, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 192, "decoder_ffn_dim": 192}
  found = specs({"model_type": "detr", "backbone_config": resnet, "architectures": ["DetrModel"], **sizes})
  for path in ("encoder.layers.self_attn.q_proj", "decoder.layers.encoder_attn.k_proj", "decoder.layers.fc1"):
    assert found[f"{path}.kernel"] == P(None, "fsdp", "tensor")
  for path in ("encoder.layers.self_attn.out_proj", "decoder.layers.fc2"):
    assert found[f"{path}.kernel"] == P(None, "tensor", "fsdp")
  stage = "backbone.conv_encoder.model.encoder.stages.1.layers.0.layer.1"
  assert "fsdp" in str(found[f"{stage}.convolution.kernel"])
  assert not any(found[f"buffers.batch_stats.{stage}.normalization.var"])


def test_experts_are_whole_along_their_axis():
  experts = {"model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 1}
  found = specs({**LLAMA, **experts, "architectures": ["MixtralForCausalLM"]})
  path = "model.layers.block_sparse_moe.experts"
  assert found[f"{path}.w1.kernel"] == P(None, None, "fsdp", "tensor")
  assert found[f"{path}.w2.kernel"] == P(None, None, "tensor", "fsdp")


def test_sizes_that_do_not_divide_are_replicated_with_a_note_for_large_leaves():
  model = from_config({**LLAMA, "vocab_size": 321, "num_hidden_layers": 1})
  layout = layout_of(model, device_mesh(fsdp=5, tensor=7))
  assert all(not any(layout.spec(path, leaf)) for path, leaf in masks.flatten(model.params).items())
  notes = layout.notes(model.params, least=2**17)
  assert sorted(notes) == [
    "lm_head.kernel [128, 321] is replicated: no axis divides by mesh.fsdp or mesh.tensor",
    "model.embed_tokens.embedding [321, 128] is replicated: no axis divides by mesh.fsdp or mesh.tensor",
  ]


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_statistics_lie_where_their_parameter_does(optimizer):
  config = config_lib.default()
  config.optim.name = optimizer
  model = from_config({**LLAMA, "architectures": ["LlamaForSequenceClassification"], "num_labels": 3}).add(
    methods.build(config_lib.ConfigDict({"name": "full"}))
  )
  made = run_lib.program(config, tasks.make("text_classification", "abc"), model, device_mesh(), 10)
  trainable, _ = masks.partition(model.params, model.labels())
  state = jax.eval_shape(made.init, trainable)
  statistics = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(state.opt_state)[0]:
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    statistics[name] = (leaf.shape, made.layout.spec(name, leaf))
  if optimizer == "adamw":
    moments = {n: s for n, s in statistics.items() if n.endswith("q_proj.kernel")}
    assert len(moments) == 2
    assert set(moments.values()) == {((3, 128, 128), P(None, "fsdp", "tensor"))}
  else:
    large = [spec for shape, spec in statistics.values() if np.prod(shape) >= 2**14]
    assert large == [] or all(any(spec) for spec in large)


def test_rows_of_processes():
  mesh = device_mesh(data=2, fsdp=2, tensor=2)  # processes of two devices each
  assert [mesh_lib.process_share(mesh, process) for process in range(4)] == [(0, 4), (1, 4), (2, 4), (3, 4)]
  mesh = device_mesh(data=1, fsdp=2, tensor=4)
  assert [mesh_lib.process_share(mesh, process) for process in range(4)] == [(0, 2), (0, 2), (1, 2), (1, 2)]
  mesh = device_mesh(data=8, fsdp=1, tensor=1)
  assert [mesh_lib.process_share(mesh, process) for process in range(4)] == [(0, 4), (1, 4), (2, 4), (3, 4)]


def test_the_longest_text_and_virtual_tokens_must_have_positions():
  bert = from_config({**BERT, "max_position_embeddings": 40})
  check_positions(bert, 40)
  with pytest.raises(UserError, match=r"data\.max_length=41: the model has 40 positions; 40 tokens fit"):
    check_positions(bert, 41)
  roberta = {**BERT, "model_type": "roberta", "architectures": ["RobertaModel"], "max_position_embeddings": 42}
  with pytest.raises(UserError, match="the model has 40 positions"):
    check_positions(from_config({**roberta, "pad_token_id": 1}), 41)
  prompted = bert.add(methods.build(config_lib.ConfigDict({"name": "prompt", "num_virtual_tokens": 8})))
  with pytest.raises(UserError, match=r"max_length=40 and 8 virtual tokens: .* 32 tokens fit"):
    check_positions(prompted, 40)
  check_positions(from_config(LLAMA), 10**6)


def test_codes_and_scales_lie_where_their_kernel_would():
  config = config_lib.default()
  config.model.quantize = "nf4"
  model = from_config(LLAMA, quantize=assemble.quantization(config)).add(methods.LoRA(rank=3))
  layout = layout_of(model, device_mesh())
  found = {
    jax.tree_util.keystr(path, simple=True, separator="."): layout.spec(
      jax.tree_util.keystr(path, simple=True, separator="."), leaf
    )
    for path, leaf in jax.tree_util.tree_flatten_with_path(model.params)[0]
  }
  assert found["model.layers.self_attn.q_proj.kernel.qvalue"] == P(None, "fsdp", "tensor")
  assert found["model.layers.mlp.down_proj.kernel.qvalue"] == P(None, "tensor", "fsdp")


def test_a_denoiser_of_many_widths():
  """Each transformer goes by the width around it; every convolution is split by its input and its output."""
  unet = {
    "_class_name": "UNet2DConditionModel",
    "block_out_channels": [128, 256],
    "down_block_types": ["CrossAttnDownBlock2D"] * 2,
    "up_block_types": ["CrossAttnUpBlock2D"] * 2,
    "layers_per_block": 1,
    "cross_attention_dim": 192,
  }
  found = specs(unet, methods.LoRA(rank=160, targets=("attn2.to_v", "conv1")))
  for block in ("down_blocks.0", "down_blocks.1"):
    inner = f"{block}.attentions.0.transformer_blocks.0"
    assert found[f"{inner}.attn1.to_q.kernel"] == P("fsdp", "tensor")
    assert found[f"{inner}.attn2.to_k.kernel"] == P(None, ("tensor", "fsdp"))
    assert found[f"{inner}.attn1.to_out.0.kernel"] == P("tensor", "fsdp")
    assert found[f"{inner}.ff.net.0.proj.kernel"] == P("fsdp", "tensor")
    assert found[f"{inner}.ff.net.2.kernel"] == P("tensor", "fsdp")
    assert found[f"{block}.resnets.0.conv1.kernel"] == P(None, None, "fsdp", "tensor")
    assert found[f"{block}.resnets.0.conv1.lora_a"] == P(None, None, "fsdp", None)
    assert found[f"{inner}.attn2.to_v.lora_b"] == P(None, ("tensor", "fsdp"))
