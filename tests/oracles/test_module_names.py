"""What a module is called in transformers and PEFT, for every family; adapters where that is another name than here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import jax
import numpy as np
import peft
import pytest
import torch
import transformers

import peftjax
from peftjax import UserError, masks, methods
from peftjax.interop.leaves import base_names, module_key
from peftjax.loading import from_config
from peftjax.models.registry import FAMILIES
from tests.oracles.decoders import VOCABULARY, random_model, run_theirs

# What a config needs beside a family's defaults; families that transformers has no class for are None.
SETTINGS: dict[str, dict[str, Any] | None] = {
  "clip": {"vision_config": {"num_hidden_layers": 2}, "text_config": {"num_hidden_layers": 2}},
  "deci": None,
  "detr": {"use_timm_backbone": False, "backbone_config": {"model_type": "resnet", "out_features": ["stage4"]}},
  "mixtral": {"num_local_experts": 3},
  "opt": {"word_embed_proj_dim": 12},
  "qwen3_moe": {"num_experts": 3, "num_experts_per_tok": 2, "mlp_only_layers": [0]},
}
LAYERS = {"num_hidden_layers": 2, "num_layers": 2, "num_decoder_layers": 2, "encoder_layers": 2, "decoder_layers": 2}
FIXED = {"clip", "detr", "wav2vec2"}  # whose layers are set elsewhere, or hang together with other fields


def made(model_type: str, settings: dict[str, Any]) -> tuple[torch.nn.Module, dict[str, Any]] | None:
  """(a torch model without values, its config.json) of the family's first architecture that transformers has."""
  family = FAMILIES[model_type]
  for name in family.architectures:
    if cls := getattr(diffusers, name, None):
      with torch.device("meta"):
        model = cls()
      return model, {**model.config, "_class_name": name}
    cls = getattr(transformers, name, None)
    if cls is None or cls.config_class.model_type != model_type:
      continue
    layers = {} if model_type in FIXED else {key: size for key, size in LAYERS.items() if key in str(family.table)}
    config = cls.config_class(**{**layers, **settings, "tie_word_embeddings": False})
    with torch.device("meta"):
      model = cls(config)
    return model, {**json.loads(config.to_json_string(use_diff=False)), "architectures": [name]}
  return None


@pytest.mark.parametrize("model_type", FAMILIES)
def test_modules_are_called_as_in_transformers(model_type: str) -> None:
  settings = SETTINGS.get(model_type, {})
  if settings is None:
    return
  theirs, config = made(model_type, settings)
  ours = from_config({key: value for key, value in config.items() if value is not None})
  holders = {name.rpartition(".")[0] for name in base_names(ours) if not name.startswith("buffers.")}
  found = {module_key(ours, name) for name in holders}
  fused = {name for name in found if ".experts." in name}  # one array in transformers
  assert found - fused - {""} <= {name for name, _ in theirs.named_modules()}
  assert bool(fused) == (model_type in ("mixtral", "qwen3_moe"))


SIZES = {"vocab_size": VOCABULARY, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
         "max_position_embeddings": 32}  # fmt: skip
MOE = {**SIZES, "num_key_value_heads": 3, "intermediate_size": 20, "num_experts_per_tok": 2}
CONFIGS = {
  "neox": lambda: transformers.GPTNeoXConfig(**SIZES, intermediate_size=40, tie_word_embeddings=False),
  "mixtral": lambda: transformers.MixtralConfig(**MOE, num_local_experts=3),
  "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
    **MOE, head_dim=8, num_experts=3, moe_intermediate_size=12, mlp_only_layers=[1]
  ),
}
IDS = np.array([[5, 6, 7, 8, 9, 11], [3, 4, 9, 10, 12, 20]])


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
  jax.config.update("jax_disable_most_optimizations", True)  # models this small spend their time in the compiler
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
  folders = {name: tmp_path_factory.mktemp(name) for name in CONFIGS}
  for name, folder in folders.items():
    random_model(CONFIGS[name]()).save_pretrained(folder)
  return folders


def theirs_of(folder: Path) -> Any:
  return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")


def close(found: Any, wanted: Any) -> None:
  found, wanted = np.asarray(found), np.asarray(wanted)
  np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


def logits(model: Any) -> np.ndarray:
  return np.asarray(model(input_ids=IDS)["logits"])


def torch_logits(model: Any) -> np.ndarray:
  return run_theirs(model.eval(), input_ids=IDS).logits.numpy()


def randomised(model: peftjax.Model) -> peftjax.Model:
  trained, frozen = masks.partition(model.params, model.labels())
  keys = jax.random.split(jax.random.key(3), len(masks.flatten(trained)))
  moved = {
    path: leaf + 0.2 * jax.random.normal(key, leaf.shape)
    for key, (path, leaf) in zip(keys, sorted(masks.flatten(trained).items()))
  }
  return model.with_params(masks.combine(masks.unflatten(moved), frozen))


THEIRS = {
  "neox output": ("neox", {"target_modules": ["lm_head", "query_key_value"]}),
  "neox output saved": ("neox", {"target_modules": ["dense"], "modules_to_save": ["lm_head"]}),
  "mixtral router": ("mixtral", {"target_modules": ["gate", "q_proj"], "alpha_pattern": {"gate.weight": 40}}),
  "mixtral pattern that PEFT passes over": ("mixtral", {"target_modules": ["gate"], "rank_pattern": {"mlp.gate": 4}}),
  "qwen3 router": ("qwen3_moe", {"target_modules": ["gate", "q_proj"], "rank_pattern": {"gate.weight": 4}}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", THEIRS)
def test_an_adapter_of_peft_on_what_has_another_name(name: str, bases: dict[str, Path], tmp_path: Path) -> None:
  base, settings = THEIRS[name]
  theirs = peft.get_peft_model(theirs_of(bases[base]), peft.LoraConfig(r=2, task_type="CAUSAL_LM", **settings))
  torch.manual_seed(5)
  for value in theirs.parameters():
    if value.requires_grad:
      value.data += 0.2 * torch.randn_like(value)
  theirs.save_pretrained(tmp_path / "theirs")
  ours = peftjax.load(bases[base], adapter=tmp_path / "theirs")
  close(logits(ours), torch_logits(theirs))
  ours.save_adapter(tmp_path / "ours")
  written = [(tmp_path / who / "adapter_model.safetensors").read_bytes() for who in ("theirs", "ours")]
  assert written[0] == written[1]


OURS = {
  "neox output": ("neox", {"targets": ("embed_out", "query_key_value")}),
  "neox output saved": ("neox", {"targets": ("dense",), "modules_to_save": ("embed_out",)}),
  "mixtral router": (
    "mixtral",
    {"targets": ("gate", "q_proj"), "alpha_pattern": {"gate": 40, "q_proj": 3}, "rank_pattern": {"gate": 4}},
  ),
  "mixtral router of one layer": ("mixtral", {"targets": ("gate", "q_proj"), "layers": (1,), "rslora": True}),
  "mixtral experts": ("mixtral", {"targets": ("w1", "w2", "w3", "gate"), "init": "pissa"}),
  "qwen3 router": ("qwen3_moe", {"targets": ("mlp.gate", "q_proj"), "rank_pattern": {"mlp.gate": 3}}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OURS)
def test_our_adapter_on_what_has_another_name(name: str, bases: dict[str, Path], tmp_path: Path) -> None:
  base, settings = OURS[name]
  ours = randomised(peftjax.load(bases[base]).add(methods.LoRA(rank=2, **settings), jax.random.key(1)))
  ours.save_adapter(tmp_path)
  close(torch_logits(peft.PeftModel.from_pretrained(theirs_of(bases[base]), tmp_path)), logits(ours))
  close(logits(peftjax.load(bases[base], adapter=tmp_path)), logits(ours))


@pytest.mark.parametrize(
  ("base", "method", "says"),
  [
    ("mixtral", methods.IA3(), "LoRA alone for routers and experts, not ia3"),
    ("mixtral", methods.DoRA(targets=("gate",)), "LoRA alone for routers and experts, not dora"),
    ("mixtral", methods.LoRA(targets=("gate",), dropout=0.1), "no dropout"),
    ("mixtral", methods.LoRA(targets=("w1", "w2")), "target both and not 'w1' alone"),
    ("mixtral", methods.LoRA(targets=("w1", "w3")), "without one of down"),
    ("mixtral", methods.LoRA(targets=("w2",), rank_pattern={"w2": 3}), "no rank_pattern"),
    ("mixtral", methods.LoRA(targets=("w1", "w2", "w3"), rslora=True), "no rslora"),
    ("mixtral", methods.LoRA(targets=("w2",), layers=(1,)), "experts of all layers"),
    ("qwen3_moe", methods.LoRA(targets=("down_proj",)), "takes a target 'model.layers.1.mlp.down_proj'"),
  ],
)
def test_what_peft_cannot_say_of_routers_and_experts_is_refused(
  base: str, method: Any, says: str, bases: dict[str, Path], tmp_path: Path
) -> None:
  with pytest.raises(UserError, match=says):
    peftjax.load(bases[base]).add(method, jax.random.key(1)).save_adapter(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_another_method_of_peft_passes_over_experts(bases: dict[str, Path], tmp_path: Path) -> None:
  config = peft.IA3Config(
    task_type="CAUSAL_LM", target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]
  )
  theirs = peft.get_peft_model(theirs_of(bases["qwen3_moe"]), config)
  for value in theirs.parameters():
    if value.requires_grad:
      value.data += 0.2 * torch.randn_like(value)
  theirs.save_pretrained(tmp_path)
  close(logits(peftjax.load(bases["qwen3_moe"], adapter=tmp_path)), torch_logits(theirs))
