"""Generated tokens against transformers on torch: greedy with ragged batches, penalties, sampling's cuts, beams."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from peftjax import methods
from peftjax.errors import UserError
from peftjax.models.generate import generate
from peftjax.models.sampling import Sampling, narrowed, penalised, repeating
from tests.models.decoder_models import with_method
from tests.oracles import test_decoders, test_llama, test_t5
from tests.oracles.decoders import load_pair

PROMPTS = [[7, 30, 11, 45, 8], [19, 5], [40, 41, 42, 6, 9, 33, 50]]
DECODERS = {
  "llama": test_llama,
  "gemma": test_llama,
  "gemma2": test_llama,
  "gemma3": test_llama,
  "mistral": test_llama,
  "qwen2-windows": test_llama,
  "qwen3": test_llama,
  "mixtral": test_llama,
  "qwen3_moe": test_llama,
  "granite": test_llama,
  "llama-dynamic": test_llama,
  "gpt2": test_decoders,
  "opt": test_decoders,
  "bloom": test_decoders,
  "neox": test_decoders,
  "gptj": test_decoders,
}


def left_padded(prompts):
  longest = max(map(len, prompts))
  ids = np.array([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
  return torch.tensor(ids), torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])


def right_padded(prompts):
  longest = max(map(len, prompts))
  ids = np.array([list(prompt) + [0] * (longest - len(prompt)) for prompt in prompts])
  return torch.tensor(ids), torch.tensor([[1] * len(p) + [0] * (longest - len(p)) for p in prompts])


def tokens_of_theirs(model, prompts, new_tokens, **options):
  is_decoder = not model.config.is_encoder_decoder
  ids, mask = left_padded(prompts) if is_decoder else right_padded(prompts)
  model.generation_config.eos_token_id = options.pop("eos_token_id", None)
  model.generation_config.pad_token_id = 0
  settings = {"max_new_tokens": new_tokens, "do_sample": False, **options}
  with torch.no_grad():
    found = model.generate(input_ids=ids, attention_mask=mask, **settings)
  return found[:, ids.shape[1] if is_decoder else 1 :].tolist()


@pytest.mark.parametrize("name", DECODERS)
def test_64_greedy_tokens_of_a_ragged_batch(name, tmp_path):
  config = DECODERS[name].config_of(name)
  for limit in ("n_positions", "max_position_embeddings"):
    if name != "llama-dynamic" and limit in config.to_dict():
      setattr(config, limit, 128)
  theirs, ours = load_pair(config, tmp_path / "model")
  found = generate(ours, PROMPTS, Sampling(max_new_tokens=64))
  assert found == tokens_of_theirs(theirs, PROMPTS, 64)
  assert len({tuple(row) for row in found}) == 3


@pytest.mark.parametrize("name", ["t5", "mt5"])
def test_encoder_decoder_greedy_tokens(name, tmp_path):
  theirs, ours = load_pair(test_t5.config_of(name), tmp_path / "model", kind="Seq2SeqLM")
  found = generate(ours, PROMPTS, Sampling(max_new_tokens=64))
  assert found == tokens_of_theirs(theirs, PROMPTS, 64)


def test_end_of_sequence_and_repetition_penalty(tmp_path):
  theirs, ours = load_pair(test_llama.config_of("llama"), tmp_path / "model")
  free = generate(ours, PROMPTS, Sampling(max_new_tokens=30, repetition_penalty=1.7))
  for row, prompt in zip(free, PROMPTS):
    assert [row] == tokens_of_theirs(theirs, [prompt], 30, repetition_penalty=1.7)
  end = free[0][4]
  stopped = generate(ours, PROMPTS, Sampling(max_new_tokens=30, repetition_penalty=1.7, eos_ids=(end,)))
  assert stopped[0] == free[0][: free[0].index(end) + 1]


@pytest.mark.parametrize("options", [{}, {"length_penalty": 0.3}, {"early_stopping": True}], ids=str)
def test_beams_of_an_encoder_decoder(options, tmp_path):
  theirs, ours = load_pair(test_t5.config_of("t5"), tmp_path / "model", kind="Seq2SeqLM")
  sampling = Sampling(max_new_tokens=12, num_beams=4, eos_ids=(9,), **options)
  expected = tokens_of_theirs(theirs, PROMPTS, 12, num_beams=4, eos_token_id=9, **options)
  found = generate(ours, PROMPTS, sampling)
  assert found == [row[: row.index(9) + 1] if 9 in row else row for row in expected]


def test_beams_of_a_decoder(tmp_path):
  theirs, ours = load_pair(test_llama.config_of("qwen3"), tmp_path / "model")
  found = generate(ours, PROMPTS, Sampling(max_new_tokens=10, num_beams=3))
  assert found == tokens_of_theirs(theirs, PROMPTS, 10, num_beams=3)


RULES = {
  "penalty": {"repetition_penalty": 1.4},
  "ngram": {"no_repeat_ngram_size": 2},
  "single": {"no_repeat_ngram_size": 1},
  "least": {"min_new_tokens": 6, "eos_token_id": [9, 17, 30]},
  "ends": {"eos_token_id": list(range(3, 33, 3))},
  "all": {"repetition_penalty": 0.8, "no_repeat_ngram_size": 3, "min_new_tokens": 4, "eos_token_id": [9, 21, 44]},
}
_RULED = {}


def ruled_pair(kind, folder):
  if kind not in _RULED:
    module, head = (test_t5, "Seq2SeqLM") if kind == "t5" else (test_llama, "CausalLM")
    _RULED[kind] = load_pair(module.config_of(kind), folder, kind=head)
  return _RULED[kind]


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", [one if one == "all" else pytest.param(one, marks=pytest.mark.slow) for one in RULES])
@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_rules_that_look_back(kind, name, beams, tmp_path):
  theirs, ours = ruled_pair(kind, tmp_path / "model")
  rules, prompts = RULES[name], [[7, 30, 7, 30, 7], [40, 41, 42, 6, 40, 41, 50]]
  ends = tuple(rules.get("eos_token_id", ()))
  mine = {key: value for key, value in rules.items() if key != "eos_token_id"}
  found = generate(ours, prompts, Sampling(max_new_tokens=14, num_beams=beams, eos_ids=ends, **mine))
  for row, prompt in zip(found, prompts):
    (expected,) = tokens_of_theirs(theirs, [prompt], 14, num_beams=beams, **rules)
    stop = next((at + 1 for at, token in enumerate(expected) if token in ends), len(expected))
    assert row == expected[:stop]


@pytest.mark.parametrize(
  ("given", "said"),
  [
    ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens=9: more than max_new_tokens=8"),
    ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size: expected at least 0"),
    ({"repetition_penalty": float("inf")}, "expected a positive number"),
    ({"length_penalty": float("nan")}, "expected a finite number"),
  ],
)
def test_rules_that_make_no_sense_are_refused(given, said):
  with pytest.raises(UserError, match=said):
    Sampling(**given)


@pytest.mark.parametrize("length", [1, 2, 5, 20, 24, 30, 10**9])
def test_long_sequences_that_may_not_repeat(length):
  """Also of a file's own length, which no program may be unrolled by."""
  from transformers.generation import logits_process

  random = np.random.default_rng(length)
  history = np.concatenate([random.integers(0, 5, (3, 4)), np.tile(random.integers(0, 5, (3, 1)), 24)], axis=1)
  free = logits_process.NoRepeatNGramLogitsProcessor(length)(torch.tensor(history), torch.zeros(3, 8)).numpy() == 0
  padded = jnp.asarray(np.pad(history, ((0, 0), (0, 6)), constant_values=-1), jnp.int32)
  np.testing.assert_array_equal(repeating(padded, jnp.int32(28), length, 8), ~free)


def test_prompts_and_ends_that_the_model_does_not_embed_are_refused(tmp_path):
  _, ours = ruled_pair("llama", tmp_path / "model")
  for prompt, sampling in (([3, 61], Sampling()), ([-1], Sampling()), ([3], Sampling(eos_ids=(99,)))):
    with pytest.raises(UserError, match="the model has 61, from 0 to 60"):
      generate(ours, [prompt], sampling)


def test_sampling_cuts_as_transformers_does():
  from transformers.generation import logits_process

  scores = np.random.default_rng(0).normal(0, 3, size=(5, 40)).astype(np.float32)
  ids = torch.tensor([[3, 4, 4, 39]] * 5)
  expected = torch.tensor(scores)
  chain = [
    logits_process.RepetitionPenaltyLogitsProcessor(1.3),
    logits_process.TemperatureLogitsWarper(0.7),
    logits_process.TopKLogitsWarper(12),
    logits_process.TopPLogitsWarper(0.8),
  ]
  for one in chain:
    expected = one(ids, expected)
  seen = jnp.zeros((5, 40), bool).at[:, jnp.array([3, 4, 39])].set(True)
  sampling = Sampling(temperature=0.7, top_k=12, top_p=0.8)
  found = narrowed(penalised(jnp.asarray(scores), seen, 1.3), sampling)
  np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6)


@pytest.mark.parametrize(
  "method", [methods.LoRA(rank=3, targets=("q_proj", "v_proj")), methods.IA3()], ids=["lora", "ia3"]
)
def test_adapters_generate_as_merged_into_a_torch_model(method, tmp_path):
  theirs, ours = load_pair(test_llama.config_of("llama"), tmp_path / "model")
  adapted = with_method(ours, method)
  adapted.merge().save(tmp_path / "merged")
  merged = type(theirs).from_pretrained(tmp_path / "merged").eval()
  assert generate(adapted, PROMPTS, Sampling(max_new_tokens=20)) == tokens_of_theirs(merged, PROMPTS, 20)
