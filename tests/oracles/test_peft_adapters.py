"""Adapters go to Hugging Face PEFT and come back: equal logits, equal bytes, equal training."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file

import peftjax
from peftjax import masks, methods
from peftjax.interop import peft as adapters
from peftjax.methods.base import Method
from peftjax.model import Model

SIZES = {"vocab_size": 47, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
LABELS = 5
INPUTS = {
  "input_ids": np.array([[5, 6, 7, 8, 9, 11], [3, 4, 9, 1, 1, 1]], np.int32),
  "attention_mask": np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]], np.int32),
}
QUERY = ("query",)
TASKS = {
  "seq": ("SEQ_CLS", "AutoModelForSequenceClassification"),
  "token": ("TOKEN_CLS", "AutoModelForTokenClassification"),
  "causal": ("CAUSAL_LM", "AutoModelForCausalLM"),
  "tied": ("CAUSAL_LM", "AutoModelForCausalLM"),
}


@dataclasses.dataclass(frozen=True)
class Case:
  """A PEFT config and the method that it is here."""

  config: Callable[..., Any]
  method: Method
  base: str = "bert-seq"
  merges: bool = True
  trains: bool = False  # the methods on linear layers train in test_reparam_peft
  same_config: bool = True  # not where PEFT's file has lost what its config speaks of, or we write names for a regex
  more: tuple[str, ...] = ()  # keys of the head, which PEFT has no place for and reads all the same
  same_bytes: bool = True  # not where what is stored was rounded


CASES: dict[str, Case] = {
  "lora": Case(
    lambda **c: peft.LoraConfig(r=3, target_modules=["query"], **c), methods.LoRA(rank=3, targets=QUERY), trains=True
  ),
  "lora-defaults": Case(lambda **c: peft.LoraConfig(**c), methods.LoRA(), base="roberta-seq", trains=True),
  "lora-patterns": Case(
    lambda **c: peft.LoraConfig(
      r=3,
      lora_alpha=7,
      target_modules=["query", "dense"],
      exclude_modules=["output.dense"],
      use_rslora=True,
      rank_pattern={"layer.1.*query": 5},
      alpha_pattern={"intermediate.dense": 2},
      **c,
    ),
    methods.LoRA(
      rank=3,
      alpha=7.0,
      targets=("query", "dense"),
      exclude=("output.dense",),
      rslora=True,
      rank_pattern={"layer.1.*query": 5},
      alpha_pattern={"intermediate.dense": 2},
    ),
  ),
  "lora-layers": Case(
    lambda **c: peft.LoraConfig(
      r=3, target_modules=["query", "dense"], layers_to_transform=[1], bias="lora_only", lora_bias=True, **c
    ),
    methods.LoRA(rank=3, targets=("query", "dense"), layers=(1,), bias="lora_only", lora_bias=True),
    base="roberta-seq",
    trains=True,
  ),
  "lora-embedding": Case(
    lambda **c: peft.LoraConfig(r=3, target_modules=["query", "word_embeddings"], **c),
    methods.LoRA(rank=3, targets=("query", "word_embeddings")),
  ),
  "lora-modules-to-save": Case(
    lambda **c: peft.LoraConfig(r=3, target_modules=["query"], modules_to_save=["value", "LayerNorm"], **c),
    methods.LoRA(rank=3, targets=QUERY, modules_to_save=("value", "LayerNorm")),
    base="bert-token",
    trains=True,
  ),
  "lora-regex": Case(
    lambda **c: peft.LoraConfig(r=3, target_modules=r".*layer\.1\..*(query|key)", **c),
    methods.LoRA(rank=3, targets=r".*layer\.1\..*(query|key)"),
    same_config=False,
  ),
  "lora-all-linear": Case(
    lambda **c: peft.LoraConfig(r=3, target_modules="all-linear", **c),
    methods.LoRA(rank=3, targets="all-linear"),
  ),
  "ia3": Case(lambda **c: peft.IA3Config(**c), methods.IA3(), trains=True),
  "ia3-output-only": Case(
    lambda **c: peft.IA3Config(target_modules=["query", "value"], feedforward_modules=[], **c),
    methods.IA3(targets=("query", "value"), feedforward=()),
    base="bert-token",
  ),
  "prompt": Case(
    lambda **c: peft.PromptTuningConfig(num_virtual_tokens=3, **c),
    methods.Prompt(num_virtual_tokens=3, init="random"),
    merges=False,
    trains=True,
  ),
  "prompt-token": Case(
    lambda **c: peft.PromptTuningConfig(num_virtual_tokens=3, **c),
    methods.Prompt(num_virtual_tokens=3, init="random"),
    base="roberta-token",
    merges=False,
  ),
}

CASES |= {
  "layernorm": Case(
    lambda **c: peft.LNTuningConfig(target_modules=["LayerNorm"], **c),
    methods.LayerNormTuning(targets=("LayerNorm",)),
    trains=True,
  ),
  "prefix": Case(
    lambda **c: peft.PrefixTuningConfig(num_virtual_tokens=3, **c),
    methods.Prefix(num_virtual_tokens=3),
    merges=False,
    trains=True,
  ),
  "prefix-projection": Case(
    lambda **c: peft.PrefixTuningConfig(num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=7, **c),
    methods.Prefix(num_virtual_tokens=3, reparametrize=True, encoder_hidden_size=7),
    base="bert-token",
    merges=False,
    same_config=False,
  ),
  "vera": Case(
    lambda **c: peft.VeraConfig(r=5, target_modules=["query", "intermediate.dense"], **c),
    methods.VeRA(rank=5, targets=("query", "intermediate.dense")),
  ),
  "vera-seed": Case(
    lambda **c: peft.VeraConfig(r=5, target_modules=["query"], save_projection=False, projection_prng_key=3, **c),
    methods.VeRA(rank=5, targets=QUERY, save_projection=False, projection_prng_key=3),
  ),
  "fourierft": Case(
    lambda **c: peft.FourierFTConfig(
      n_frequency=10, target_modules=["query", "intermediate.dense"], n_frequency_pattern={"layer.1.*query": 7}, **c
    ),
    methods.FourierFT(
      n_frequency=10, targets=("query", "intermediate.dense"), n_frequency_pattern={"layer.1.*query": 7}
    ),
  ),
  "vblora-top": Case(
    lambda **c: peft.VBLoRAConfig(
      r=3, num_vectors=7, vector_length=8, topk=3, save_only_topk_weights=True, target_modules=["query"], **c
    ),
    methods.VBLoRA(rank=3, num_vectors=7, vector_length=8, topk=3, save_only_topk_weights=True, targets=QUERY),
    same_bytes=False,
  ),
  "vblora": Case(
    lambda **c: peft.VBLoRAConfig(
      r=3, num_vectors=7, vector_length=8, target_modules=["query", "intermediate.dense"], **c
    ),
    methods.VBLoRA(rank=3, num_vectors=7, vector_length=8, targets=("query", "intermediate.dense")),
  ),
}

CASES |= {
  "dora": Case(
    lambda **c: peft.LoraConfig(r=3, lora_alpha=5, use_dora=True, target_modules=["query", "intermediate.dense"], **c),
    methods.DoRA(rank=3, alpha=5.0, targets=("query", "intermediate.dense")),
  ),
  "loha": Case(
    lambda **c: peft.LoHaConfig(r=3, alpha=5, target_modules=["query", "intermediate.dense"], **c),
    methods.LoHa(rank=3, alpha=5.0, targets=("query", "intermediate.dense")),
  ),
  "lokr": Case(
    lambda **c: peft.LoKrConfig(
      r=3, decompose_both=True, decompose_factor=4, target_modules=["query", "intermediate.dense"], **c
    ),
    methods.LoKr(rank=3, decompose_both=True, decompose_factor=4, targets=("query", "intermediate.dense")),
  ),
  "lokr-whole": Case(
    lambda **c: peft.LoKrConfig(r=16, target_modules=["query", "intermediate.dense"], **c),
    methods.LoKr(rank=16, targets=("query", "intermediate.dense")),
  ),
  "hira": Case(
    lambda **c: peft.HiraConfig(r=3, target_modules=["query", "intermediate.dense"], **c),
    methods.HiRA(rank=3, targets=("query", "intermediate.dense")),
  ),
  "gralora": Case(
    lambda **c: peft.GraloraConfig(r=4, hybrid_r=3, alpha=5, target_modules=["query", "intermediate.dense"], **c),
    methods.GraLoRA(rank=4, hybrid_r=3, alpha=5.0, targets=("query", "intermediate.dense")),
  ),
  "delora": Case(
    lambda **c: peft.DeloraConfig(
      r=3, lambda_pattern={"intermediate.dense": 7}, target_modules=["query", "intermediate.dense"], **c
    ),
    methods.DeLoRA(rank=3, lambda_pattern={"intermediate.dense": 7}, targets=("query", "intermediate.dense")),
  ),
  "oft": Case(
    lambda **c: peft.OFTConfig(oft_block_size=4, target_modules=["query", "intermediate.dense"], **c),
    methods.OFT(oft_block_size=4, targets=("query", "intermediate.dense")),
  ),
  "oft-blocks": Case(
    lambda **c: peft.OFTConfig(
      r=3,
      oft_block_size=0,
      use_cayley_neumann=False,
      block_share=True,
      target_modules=["query", "intermediate.dense"],
      **c,
    ),
    methods.OFT(
      rank=3, oft_block_size=0, use_cayley_neumann=False, block_share=True, targets=("query", "intermediate.dense")
    ),
  ),
  "boft": Case(
    lambda **c: peft.BOFTConfig(boft_block_size=4, target_modules=["query", "intermediate.dense"], **c),
    methods.BOFT(boft_block_size=4, targets=("query", "intermediate.dense")),
  ),
  "hra": Case(
    lambda **c: peft.HRAConfig(r=4, target_modules=["query", "intermediate.dense"], **c),
    methods.HRA(rank=4, targets=("query", "intermediate.dense")),
  ),
  "road": Case(
    lambda **c: peft.RoadConfig(group_size=4, target_modules=["query", "intermediate.dense"], **c),
    methods.RoAd(group_size=4, targets=("query", "intermediate.dense")),
  ),
  "road-4": Case(
    lambda **c: peft.RoadConfig(group_size=4, variant="road_4", target_modules=["query", "intermediate.dense"], **c),
    methods.RoAd(group_size=4, variant="road_4", targets=("query", "intermediate.dense")),
  ),
  "miss": Case(
    lambda **c: peft.MissConfig(r=5, target_modules=["query", "intermediate.dense"], **c),
    methods.MiSS(rank=5, targets=("query", "intermediate.dense")),
  ),
  "miss-bat": Case(
    lambda **c: peft.MissConfig(r=4, init_weights="bat", target_modules=["query", "intermediate.dense"], **c),
    methods.MiSS(rank=4, init="bat", targets=("query", "intermediate.dense")),
  ),
  "miss-mini": Case(
    lambda **c: peft.MissConfig(
      r=5, mini_r=4, init_weights="mini", target_modules=["query", "intermediate.dense"], **c
    ),
    methods.MiSS(rank=5, mini_r=4, init="mini", targets=("query", "intermediate.dense")),
  ),
  "c3a": Case(
    lambda **c: peft.C3AConfig(
      block_size=8, block_size_pattern={"query": 12}, target_modules=["query", "intermediate.dense"], **c
    ),
    methods.C3A(block_size=8, block_size_pattern={"query": 12}, targets=("query", "intermediate.dense")),
  ),
  "shira": Case(
    lambda **c: peft.ShiraConfig(r=3, random_seed=5, target_modules=["query", "intermediate.dense"], **c),
    methods.SHiRA(rank=3, random_seed=5, targets=("query", "intermediate.dense")),
  ),
  "randlora": Case(
    lambda **c: peft.RandLoraConfig(r=5, randlora_alpha=3, target_modules=["query", "intermediate.dense"], **c),
    methods.RandLoRA(rank=5, alpha=3.0, targets=("query", "intermediate.dense")),
  ),
  "randlora-seed": Case(
    lambda **c: peft.RandLoraConfig(
      r=5,
      save_projection=False,
      projection_prng_key=3,
      sparse=True,
      target_modules=["query", "intermediate.dense"],
      **c,
    ),
    methods.RandLoRA(
      rank=5, save_projection=False, projection_prng_key=3, sparse=True, targets=("query", "intermediate.dense")
    ),
  ),
}

CASES |= {
  "p-tuning": Case(
    lambda **c: peft.PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=7, **c),
    methods.PTuning(num_virtual_tokens=3, encoder_hidden_size=7),
    merges=False,
    same_config=False,
  ),
  "p-tuning-lstm": Case(
    lambda **c: peft.PromptEncoderConfig(
      num_virtual_tokens=3, encoder_hidden_size=7, encoder_reparameterization_type="LSTM", **c
    ),
    methods.PTuning(num_virtual_tokens=3, encoder_hidden_size=7, encoder_type="LSTM"),
    base="roberta-token",
    merges=False,
    same_config=False,
  ),
  "p-tuning-v2": Case(
    lambda **c: peft.PrefixTuningConfig(num_virtual_tokens=3, **c),
    methods.PTuningV2(num_virtual_tokens=3),
    base="roberta-seq",
    merges=False,
  ),
  "tokens": Case(
    lambda **c: peft.TrainableTokensConfig(token_indices=[9, 3], **c),
    methods.TrainableTokens(token_indices=(9, 3)),
    more=("base_model.model.classifier.bias", "base_model.model.classifier.weight"),
  ),
  "llama-tokens": Case(
    lambda **c: peft.TrainableTokensConfig(token_indices=[9, 3], **c),
    methods.TrainableTokens(token_indices=(9, 3)),
    base="llama-tied",
    trains=True,
  ),
  "llama-adapter": Case(
    lambda **c: peft.AdaptionPromptConfig(adapter_len=3, adapter_layers=1, **c),
    methods.LlamaAdapter(num_virtual_tokens=3, adapter_layers=1),
    base="llama-causal",
    merges=False,
    trains=True,
  ),
  "adalora": Case(
    lambda **c: peft.AdaLoraConfig(init_r=5, target_r=3, total_step=9, target_modules=["query"], **c),
    methods.AdaLoRA(init_r=5, target_r=3, targets=QUERY),
    same_config=False,
  ),
  "llama-lora": Case(
    lambda **c: peft.LoraConfig(r=3, lora_alpha=5, **c),
    methods.LoRA(rank=3, alpha=5.0),
    base="llama-causal",
    trains=True,
  ),
  "llama-lora-embedding": Case(
    lambda **c: peft.LoraConfig(
      r=3, target_modules=["embed_tokens", "down_proj"], layers_to_transform=[1], modules_to_save=["lm_head"], **c
    ),
    methods.LoRA(rank=3, targets=("embed_tokens", "down_proj"), modules_to_save=("lm_head",)),
    base="llama-causal",
  ),
  "llama-lora-all-linear": Case(
    lambda **c: peft.LoraConfig(r=3, target_modules="all-linear", **c),
    methods.LoRA(rank=3, targets="all-linear"),
    base="llama-causal",
  ),
  "llama-ia3": Case(lambda **c: peft.IA3Config(**c), methods.IA3(), base="llama-causal", trains=True),
  "llama-prompt": Case(
    lambda **c: peft.PromptTuningConfig(num_virtual_tokens=3, **c),
    methods.Prompt(num_virtual_tokens=3),
    base="llama-causal",
    merges=False,
    trains=True,
  ),
  "llama-prefix": Case(
    lambda **c: peft.PrefixTuningConfig(num_virtual_tokens=3, **c),
    methods.Prefix(num_virtual_tokens=3),
    base="llama-causal",
    merges=False,
    trains=True,
  ),
  "llama-p-tuning": Case(
    lambda **c: peft.PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=7, **c),
    methods.PTuning(num_virtual_tokens=3, encoder_hidden_size=7),
    base="llama-causal",
    merges=False,
    same_config=False,
  ),
  "beft": Case(
    lambda **c: peft.BeftConfig(target_modules=["value", "intermediate.dense"], **c),
    methods.BEFT(targets=("value", "intermediate.dense")),
    trains=True,
  ),
  "llama-beft": Case(lambda **c: peft.BeftConfig(**c), methods.BEFT(), base="llama-causal", merges=False, trains=True),
  "llama-norm": Case(
    lambda **c: peft.LNTuningConfig(target_modules=["input_layernorm", "model.norm"], **c),
    methods.LayerNormTuning(targets=("input_layernorm", "model.norm")),
    base="llama-causal",
    trains=True,
  ),
}


def _vocabulary_case(
  targets: tuple[str, ...] = (), saved: tuple[str, ...] = (), ensure: bool = False, base: str = "llama-tied"
) -> Case:
  """A LoRA on q_proj and on word embeddings or output layer, or with copies of these."""
  targets = ("q_proj", *targets)
  return Case(
    lambda **c: peft.LoraConfig(
      r=3, target_modules=list(targets), modules_to_save=list(saved) or None, ensure_weight_tying=ensure, **c
    ),
    methods.LoRA(rank=3, targets=targets, modules_to_save=saved, ensure_weight_tying=ensure),
    base=base,
    merges=False,  # PEFT merges one use of a tied table into both
  )


CASES |= {
  "output-layer": _vocabulary_case(("lm_head",), base="llama-causal"),
  "both-tables": _vocabulary_case(("lm_head", "embed_tokens"), base="llama-causal"),
  "tied-embeddings": _vocabulary_case(("embed_tokens",)),
  "tied-output": _vocabulary_case(("lm_head",)),
  "tied-each": _vocabulary_case(("lm_head", "embed_tokens")),
  "tied-ensured": _vocabulary_case(("embed_tokens",), ensure=True),
  "tied-saved": _vocabulary_case(saved=("embed_tokens",)),
  "tied-saved-output": _vocabulary_case(saved=("lm_head",)),
  "tied-saved-both": _vocabulary_case(saved=("lm_head", "embed_tokens")),
  "tied-saved-ensured": _vocabulary_case(saved=("embed_tokens",), ensure=True),
}
cases = pytest.mark.parametrize("name", CASES)


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
  threads = torch.get_num_threads()
  torch.set_num_threads(1)
  jax.config.update("jax_disable_most_optimizations", True)  # models this small spend their time in the compiler
  transformers.utils.logging.disable_progress_bar()
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    yield
  torch.set_num_threads(threads)
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
  """Tiny random models without dropout."""
  folders = {}
  for family, extra in (("Bert", {}), ("Roberta", {"pad_token_id": 1})):
    for head in ("Sequence", "Token"):
      config = getattr(transformers, f"{family}Config")(
        **SIZES,
        **extra,
        num_labels=LABELS,
        max_position_embeddings=32,
        initializer_range=0.3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
      )
      torch.manual_seed(len(folders))
      model = getattr(transformers, f"{family}For{head}Classification")(config)
      name = f"{family.lower()}-{'seq' if head == 'Sequence' else 'token'}"
      folders[name] = tmp_path_factory.mktemp(name)
      model.save_pretrained(folders[name])
  for name in ("llama-causal", "llama-tied"):
    torch.manual_seed(len(folders))
    config = transformers.LlamaConfig(
      **{**SIZES, "num_attention_heads": 4},
      num_key_value_heads=2,
      max_position_embeddings=32,
      initializer_range=0.3,
      tie_word_embeddings=name == "llama-tied",
    )
    folders[name] = tmp_path_factory.mktemp(name)
    transformers.LlamaForCausalLM(config).save_pretrained(folders[name])
  return folders


def torch_base(bases: dict[str, Path], case: Case) -> Any:
  return getattr(transformers, TASKS[case.base.split("-")[1]][1]).from_pretrained(bases[case.base])


def torch_adapted(bases: dict[str, Path], case: Case) -> Any:
  """A PEFT model whose trainable parameters have random values."""
  task_type = TASKS[case.base.split("-")[1]][0]
  model = peft.get_peft_model(torch_base(bases, case), case.config(task_type=task_type))
  torch.manual_seed(7)
  for parameter in model.parameters():
    if parameter.requires_grad:
      parameter.data += 0.3 * torch.randn_like(parameter)
  return model.eval()


def torch_logits(model: Any) -> np.ndarray:
  with torch.no_grad():
    return of_tokens(model(**{name: torch.tensor(value) for name, value in INPUTS.items()}).logits).numpy()


def torch_loaded(bases: dict[str, Path], case: Case, folder: Path) -> Any:
  with warnings.catch_warnings():
    warnings.filterwarnings("error", message="Found missing adapter keys")
    return peft.PeftModel.from_pretrained(torch_base(bases, case), folder).eval()


def of_tokens(output: Any) -> Any:
  """Logits of the texts, or of all tokens: not of padding, nor of virtual tokens, whose logits PEFT returns as well."""
  if output.ndim == 2:
    return output
  return output[:, -INPUTS["input_ids"].shape[1] :][INPUTS["attention_mask"] == 1]


def logits(model: Model) -> np.ndarray:
  return np.asarray(of_tokens(model(**INPUTS)["logits"]))


def close(actual: np.ndarray, wanted: np.ndarray) -> None:
  np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
  return load_file(folder / adapters.WEIGHTS)


def config_of(folder: Path) -> dict[str, Any]:
  config = json.loads((folder / adapters.CONFIG).read_text())
  return {key: sorted(set(value)) if key.endswith("_modules") and isinstance(value, list) else value
          for key, value in config.items() if key not in ("base_model_name_or_path", "modules_to_save")}  # fmt: skip


def randomised(model: Model) -> Model:
  """The model with random values in everything that trains."""
  trainable, frozen = masks.partition(model.params, model.labels())
  flat = masks.flatten(trainable)
  keys = jax.random.split(jax.random.key(3), len(flat))
  flat = {path: leaf + 0.3 * jax.random.normal(key, leaf.shape) for key, (path, leaf) in zip(keys, flat.items())}
  return model.with_params(masks.combine(masks.unflatten(flat), frozen))


@cases
def test_a_peft_adapter_loads_and_saves_back_the_same_bytes(name: str, bases: dict[str, Path], tmp_path: Path) -> None:
  case = CASES[name]
  theirs = torch_adapted(bases, case)
  theirs.save_pretrained(tmp_path / "theirs")
  model = peftjax.load(bases[case.base], adapter=tmp_path / "theirs")
  close(logits(model), torch_logits(theirs))
  model.save_adapter(tmp_path / "ours")
  wanted, found = tensors_of(tmp_path / "theirs"), tensors_of(tmp_path / "ours")
  assert set(found) == {*wanted, *case.more}
  for key in wanted:
    assert found[key].dtype == wanted[key].dtype
    if case.same_bytes:
      assert found[key].tobytes() == wanted[key].tobytes(), key
    else:
      np.testing.assert_allclose(found[key], wanted[key], rtol=1e-5, err_msg=key)
  again = peftjax.load(bases[case.base], adapter=tmp_path / "ours")
  close(logits(again), torch_logits(theirs))
  if case.same_config:
    assert config_of(tmp_path / "ours") == config_of(tmp_path / "theirs")


@cases
def test_our_adapter_loads_in_peft(name: str, bases: dict[str, Path], tmp_path: Path) -> None:
  case = CASES[name]
  model = randomised(peftjax.load(bases[case.base]).add(case.method, jax.random.key(5)))
  model.save_adapter(tmp_path / "ours")
  theirs = torch_loaded(bases, case, tmp_path / "ours")
  wanted = logits(model)
  close(torch_logits(theirs), wanted)
  if case.merges:
    close(torch_logits(theirs.merge_and_unload()), logits(model.merge()))
    close(logits(model.merge()), wanted)


def test_a_pruned_adalora_loads_in_peft(bases: dict[str, Path], tmp_path: Path) -> None:
  case = CASES["adalora"]
  model = randomised(peftjax.load(bases[case.base]).add(case.method, jax.random.key(5)))
  flat = masks.flatten(model.params)
  (path,) = (path for path in flat if path.endswith("lora_e"))
  flat[path] = flat[path] * jnp.asarray([[1.0, 0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0]])
  model = model.with_params(masks.unflatten(flat))
  model.save_adapter(tmp_path / "ours")
  assert sum(value.shape[0] for key, value in tensors_of(tmp_path / "ours").items() if key.endswith("lora_A")) == 4
  close(torch_logits(torch_loaded(bases, case, tmp_path / "ours")), logits(model))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.trains])
def test_five_adamw_steps_give_the_same_losses(name: str, bases: dict[str, Path], tmp_path: Path) -> None:
  case = CASES[name]
  theirs = torch_adapted(bases, case)
  theirs.save_pretrained(tmp_path / "start")
  model = peftjax.load(bases[case.base], adapter=tmp_path / "start")
  parameters = [parameter for parameter in theirs.parameters() if parameter.requires_grad]
  trainable, frozen = masks.partition(model.params, model.labels())
  assert sum(parameter.numel() for parameter in parameters) == masks.count(trainable).parameters
  wanted = torch_losses(theirs, parameters)
  found, trained = our_losses(model, trainable, frozen)
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * wanted[0])
  assert wanted[0] - wanted[-1] > 1e-3
  theirs.save_pretrained(tmp_path / "end")
  trained.save_adapter(tmp_path / "ours")
  ours, end = tensors_of(tmp_path / "ours"), tensors_of(tmp_path / "end")
  for key, value in end.items():
    # Where a gradient is next to nothing Adam turns its rounding into a step; such elements are few.
    assert np.abs(ours[key] - value).mean() < 3e-5, key


def torch_losses(model: Any, parameters: list[Any]) -> list[float]:
  optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01)
  losses = []
  inputs = {name: torch.tensor(value) for name, value in INPUTS.items()}
  for _ in range(5):
    output = of_tokens(model(**inputs).logits)
    loss = torch.nn.functional.cross_entropy(output, torch.arange(len(output)) % LABELS)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
  return losses


def our_losses(model: Model, trainable: masks.Tree, frozen: masks.Tree) -> tuple[list[float], Model]:
  optimizer = optax.adamw(2e-3, weight_decay=0.01)

  def loss_of(tree: masks.Tree) -> jax.Array:
    output = of_tokens(model.forward(masks.combine(tree, frozen), INPUTS)["logits"])
    labels = jnp.arange(len(output)) % LABELS
    return optax.softmax_cross_entropy_with_integer_labels(output, labels).mean()

  @jax.jit
  def step(tree: masks.Tree, state: Any) -> tuple[masks.Tree, Any, jax.Array]:
    loss, gradients = jax.value_and_grad(loss_of)(tree)
    updates, state = optimizer.update(gradients, state, tree)
    return optax.apply_updates(tree, updates), state, loss

  state, losses = optimizer.init(trainable), []
  for _ in range(5):
    trainable, state, loss = step(trainable, state)
    losses.append(float(loss))
  return losses, model.with_params(masks.combine(trainable, frozen))
