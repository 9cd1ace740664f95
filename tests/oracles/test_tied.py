"""Tied word embeddings in every family: what acts on one use of the table leaves the other, merged or saved."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

import peftjax
from peftjax import UserError, adapters, masks
from peftjax.methods import LoRA, TrainableTokens
from peftjax.vocabulary import tied_site, untied
from tests.models.decoder_models import token_ids, with_method
from tests.oracles.decoders import assert_close, random_model, run_theirs
from tests.oracles.test_t5 import SHAPE as T5

LAYERS = {"vocab_size": 61, "hidden_size": 20, "num_attention_heads": 5}
LLAMA = {**LAYERS, "intermediate_size": 28, "num_hidden_layers": 2, "num_key_value_heads": 5, "head_dim": 4}
CONFIGS = {
  "llama": (transformers.LlamaConfig, {**LLAMA, "tie_word_embeddings": True}, "embed_tokens"),
  "gemma2": (transformers.Gemma2Config, {**LLAMA, "query_pre_attn_scalar": 4}, "embed_tokens"),
  "granite": (
    transformers.GraniteConfig,
    {**LLAMA, "tie_word_embeddings": True, "logits_scaling": 3.0, "embedding_multiplier": 2.0},
    "embed_tokens",
  ),
  "gpt2": (transformers.GPT2Config, {"vocab_size": 61, "n_embd": 20, "n_layer": 2, "n_head": 5}, "wte"),
  "bloom": (
    transformers.BloomConfig,
    {"vocab_size": 61, "hidden_size": 20, "n_layer": 2, "n_head": 5},
    "word_embeddings",
  ),
  "opt": (
    transformers.OPTConfig,
    {**LAYERS, "ffn_dim": 28, "num_hidden_layers": 2, "max_position_embeddings": 40, "word_embed_proj_dim": 12},
    "embed_tokens",
  ),
  **{
    name: (kind, {**LLAMA, **more, "tie_word_embeddings": True}, "embed_tokens")
    for name, kind, more in (
      ("gemma", transformers.GemmaConfig, {}),
      ("gemma3_text", transformers.Gemma3TextConfig, {"query_pre_attn_scalar": 4}),
      ("mistral", transformers.MistralConfig, {}),
      ("mixtral", transformers.MixtralConfig, {"num_local_experts": 3}),
      ("qwen2", transformers.Qwen2Config, {}),
      ("qwen3", transformers.Qwen3Config, {}),
      (
        "qwen3_moe",
        transformers.Qwen3MoeConfig,
        {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 12},
      ),
    )
  },
  "gpt_neox": (
    transformers.GPTNeoXConfig,
    {**LAYERS, "intermediate_size": 28, "num_hidden_layers": 2, "rotary_pct": 0.5, "tie_word_embeddings": True},
    "embed_in",
  ),
  "mt5": (transformers.MT5Config, T5, "shared"),
  "t5": (transformers.T5Config, T5, "shared"),
  "t5-v1.1": (
    transformers.T5Config,
    {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "shared",
  ),
}
IDS = token_ids(2, 9)


def is_t5(name: str) -> bool:
  return "t5" in name


def output_of(name: str) -> str:
  return "embed_out" if name == "gpt_neox" else "lm_head"


@functools.cache
def saved(name: str) -> Path:
  """A random model's folder; other families than T5 without the dropout of their configs, which is off anyway."""
  kind, settings, _ = CONFIGS[name]
  folder = Path(tempfile.mkdtemp(prefix="tied-"))
  random_model(kind(**settings), "Seq2SeqLM" if is_t5(name) else "CausalLM").save_pretrained(folder)
  return folder


def inputs(name: str) -> dict[str, np.ndarray]:
  return {"input_ids": IDS, **({"decoder_input_ids": IDS[:, :5]} if is_t5(name) else {})}


def in_torch(name: str, folder: Path):
  kind = transformers.AutoModelForSeq2SeqLM if is_t5(name) else transformers.AutoModelForCausalLM
  model, report = kind.from_pretrained(folder, attn_implementation="eager", output_loading_info=True)
  assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
  return run_theirs(model.eval(), **inputs(name)).logits


def on_table(name: str):
  """Methods, and whether the merged model still has one table."""
  table, output = CONFIGS[name][2], output_of(name)
  return {
    "embeddings": (LoRA(rank=3, alpha=5.0, targets=(table,)), False),
    "output": (LoRA(rank=3, alpha=5.0, targets=(output,)), False),
    "both alike": (LoRA(rank=3, alpha=5.0, targets=(table,), ensure_weight_tying=True), True),
    "each by itself": (LoRA(rank=3, alpha=5.0, targets=(table, output)), False),
    "rows of both": (TrainableTokens(token_indices=(4, 9, 30)), True),
  }


@pytest.mark.parametrize("name", CONFIGS)
def test_forward_equals_merged_equals_saved_equals_torch_on_tied_embeddings(name: str, tmp_path: Path) -> None:
  base = peftjax.load(saved(name))
  assert tied_site(base) is not None
  plain = np.asarray(base(**inputs(name))["logits"])
  assert_close(plain, in_torch(name, saved(name)))
  for what, (method, stays_tied) in on_table(name).items():
    model = with_method(base, method)
    wanted = np.asarray(model(**inputs(name))["logits"])
    assert np.abs(wanted - plain).max() > 1e-2 * np.abs(plain).max(), what
    merged = model.merge()
    assert (tied_site(merged) is not None) == stays_tied, what
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(merged(**inputs(name))["logits"], wanted, rtol=1e-5, atol=1e-5 * scale, err_msg=what)
    merged.save(tmp_path / what)
    again = peftjax.load(tmp_path / what)
    assert (tied_site(again) is not None) == stays_tied, what
    np.testing.assert_allclose(again(**inputs(name))["logits"], wanted, rtol=1e-5, atol=1e-5 * scale, err_msg=what)
    assert_close(wanted, in_torch(name, tmp_path / what))


@pytest.mark.parametrize("name", CONFIGS)
def test_an_untied_model_computes_the_same(name: str) -> None:
  base = peftjax.load(saved(name))
  own = untied(base)
  assert tied_site(own) is None and untied(own) is own
  wanted = np.asarray(base(**inputs(name))["logits"])
  np.testing.assert_allclose(own(**inputs(name))["logits"], wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


def edited(name: str, folder: Path, edit) -> Path:
  for file in saved(name).iterdir():
    (folder / file.name).write_bytes(file.read_bytes())
  tensors = load_file(folder / "model.safetensors")
  edit(tensors)
  save_file(tensors, folder / "model.safetensors", {"format": "pt"})
  return folder


def table_key(name: str) -> str:
  (key,) = (key for key in load_file(saved(name) / "model.safetensors") if key.endswith(f"{CONFIGS[name][2]}.weight"))
  return key


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("case", ["differs", "equal", "instead"])
def test_an_output_layer_in_the_files_counts_as_in_transformers(name: str, case: str, tmp_path: Path) -> None:
  key = table_key(name)

  def edit(tensors):
    tensors[f"{output_of(name)}.weight"] = tensors[key] * (0.5 if case == "differs" else 1.0)
    if case == "instead":
      del tensors[key]

  folder = edited(name, tmp_path, edit)
  model = peftjax.load(folder)
  assert (tied_site(model) is None) == (case == "differs")
  assert_close(np.asarray(model(**inputs(name))["logits"]), in_torch(name, folder))


@pytest.mark.parametrize("name", ["t5", "t5-v1.1"])
def test_copies_of_a_shared_table(name: str, tmp_path: Path) -> None:
  def instead(tensors):
    tensors["encoder.embed_tokens.weight"] = tensors.pop("shared.weight")

  folder = edited(name, tmp_path, instead)
  assert_close(np.asarray(peftjax.load(folder)(**inputs(name))["logits"]), in_torch(name, folder))

  def beside(tensors):
    tensors["decoder.embed_tokens.weight"] = tensors["shared.weight"] * 2

  with pytest.raises(UserError, match=r"'decoder\.embed_tokens\.weight' differs from 'shared\.weight'"):
    peftjax.load(edited(name, tmp_path, beside))


@pytest.mark.parametrize("ensure", [False, True])
def test_modules_to_save_trains_a_copy_unless_tying_is_ensured(ensure: bool) -> None:
  base = peftjax.load(saved("llama"))
  model = base.add(LoRA(rank=2, modules_to_save=("embed_tokens",), ensure_weight_tying=ensure))
  assert (tied_site(model) is not None) == ensure
  flat = masks.flatten(model.params)
  flat["model.embed_tokens.embedding"] = flat["model.embed_tokens.embedding"] * 2
  assert masks.flatten(model.labels())["model.embed_tokens.embedding"] == "saved"
  assert ("lm_head.kernel" in flat) != ensure
  merged = model.with_params(masks.unflatten(flat)).merge()
  hidden = merged(input_ids=IDS)["last_hidden_state"]
  table = np.asarray(masks.flatten(base.params)["model.embed_tokens.embedding"])
  np.testing.assert_allclose(merged(input_ids=IDS)["logits"], hidden @ (table.T * (2 if ensure else 1)), rtol=1e-4)


def test_ensuring_a_tie_that_is_none_is_refused() -> None:
  own = untied(peftjax.load(saved("llama")))
  with pytest.raises(UserError, match="the model has no output layer that is tied"):
    own.add(LoRA(ensure_weight_tying=True))


def test_adapters_on_one_use_travel_between_banks_combinations_and_conversions() -> None:
  base = peftjax.load(saved("llama"))
  given = {"input_ids": IDS}
  one, both, output = (with_method(base, on_table("llama")[what][0]) for what in ("embeddings", "both alike", "output"))
  scale = np.abs(np.asarray(base(**given)["logits"])).max()

  def same(found, wanted):
    np.testing.assert_allclose(found(**given)["logits"], wanted(**given)["logits"], rtol=1e-5, atol=2e-5 * scale)

  bank = adapters.Bank(base).add("one", one).add("output", output).add("both", both)
  for name, model in (("one", one), ("output", output), ("both", both)):
    same(bank.use(name), model)
  mixed = bank.mixed("one", "output")(**given, adapter_ids=[0, 1])["logits"]
  np.testing.assert_allclose(mixed[0], one(**given)["logits"][0], rtol=1e-5, atol=2e-5 * scale)
  np.testing.assert_allclose(mixed[1], output(**given)["logits"][1], rtol=1e-5, atol=2e-5 * scale)
  with pytest.raises(UserError):
    bank.mixed("output", "both")
  same(adapters.combine([one, one], (0.5, 0.5), "svd", into="base"), one)
  same(adapters.combine([both, both], (0.5, 0.5), "svd", into="base"), both)
  same(adapters.combine([one], (1.0,), "cat"), one)
  same(adapters.combine([both], (1.0,), "cat"), both)
  same(adapters.to_lora(one, rank=20).model, one)
  total = adapters.combine([one, output], (1.0, 1.0), "svd", into="base")
  hidden = one(**given)["last_hidden_state"]
  np.testing.assert_allclose(
    total(**given)["logits"], hidden @ output.merge().params["lm_head"]["kernel"], rtol=1e-4, atol=1e-4 * scale
  )
  with pytest.raises(UserError, match="differ in ensure_weight_tying"):
    adapters.combine([one, both], (1.0, 1.0), "cat")
  with pytest.raises(UserError, match="is also the output layer"):
    adapters.to_lora(both, rank=3)
