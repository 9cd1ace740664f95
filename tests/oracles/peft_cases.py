"""PEFT's configs and the methods that they are here, for tests that compare adapters with Hugging Face PEFT."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import peft

from peftjax import methods
from peftjax.methods.base import Method

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
  "tokens-by-the-end-of-a-name": Case(
    lambda **c: peft.TrainableTokensConfig(token_indices=[9, 3], target_modules=["word_embeddings"], **c),
    methods.TrainableTokens(token_indices=(9, 3), targets=("word_embeddings",)),
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
