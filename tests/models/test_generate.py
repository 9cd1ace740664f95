"""Generation with the cache against plain passes over the whole sequence, for every kind of method."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from peftjax import adapters, methods, text_generation
from peftjax.errors import UserError
from peftjax.loading import from_config
from peftjax.models.generate import Generator, _advance, generate, rehearse, up_to_end
from peftjax.models.sampling import Sampling
from tests.models.decoder_models import LLAMA, random_model, with_method

PROMPTS = [[7, 30, 11], [19, 5, 40, 41, 42, 6, 9]]
GEMMA = {**LLAMA, "model_type": "gemma2", "sliding_window": 4}
T5 = {"model_type": "t5", "vocab_size": 61, "d_model": 20, "d_kv": 6, "d_ff": 28, "num_layers": 2, "num_heads": 3}
GPT2 = {"model_type": "gpt2", "vocab_size": 61, "n_embd": 20, "n_layer": 2, "n_head": 4, "n_positions": 40}
METHODS = {
  "none": None,
  "lora": methods.LoRA(rank=3, targets="all-linear"),
  "houlsby": methods.Houlsby(bottleneck_dim=5),
  "prompt": methods.Prompt(num_virtual_tokens=3),
  "prefix": methods.Prefix(num_virtual_tokens=3),
  "reft": methods.METHODS["reft"](rank=2, suffix_positions=0),
}


def adapted(config, name):
  model = random_model(config)
  return model if METHODS[name] is None else with_method(model, METHODS[name])


@pytest.mark.parametrize("name", METHODS)
def test_tokens_are_those_of_passes_without_a_cache(name):
  model = adapted(GEMMA, name)
  found = generate(model, PROMPTS, Sampling(max_new_tokens=9))
  for prompt, tokens in zip(PROMPTS, found):
    logits = np.asarray(model(input_ids=np.array([prompt + tokens]))["logits"])[0]
    assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == tokens


def test_edits_of_the_last_token_are_those_of_the_prompt_alone():
  model = with_method(random_model(GEMMA), methods.METHODS["reft"](rank=2))
  plain = generate(random_model(GEMMA), PROMPTS, Sampling(max_new_tokens=5))
  found = generate(model, PROMPTS, Sampling(max_new_tokens=5))
  for prompt, tokens in zip(PROMPTS, found):
    logits = np.asarray(model(input_ids=np.array([prompt]))["logits"])[0]
    assert logits[-1].argmax() == tokens[0]
  assert found != plain


@pytest.mark.parametrize("name", ["lora", "prompt"])
def test_every_prompt_may_name_its_adapter(name):
  base, several = random_model(LLAMA), [with_method(random_model(LLAMA), METHODS[name], seed) for seed in (1, 2)]
  model = adapters.mixed(base, [adapters.take(one) for one in several])
  found = generate(model, [PROMPTS[0]] * 3, Sampling(max_new_tokens=7), adapter_ids=[1, -1, 0])
  alone = [generate(one, PROMPTS[:1], Sampling(max_new_tokens=7))[0] for one in (several[1], base, several[0])]
  assert found == alone
  assert len({tuple(row) for row in alone}) == 3
  if name == "lora":
    beams = Sampling(max_new_tokens=4, num_beams=2)
    found = generate(model, PROMPTS, beams, adapter_ids=[1, 0])
    assert found == [generate(several[at], [prompt], beams)[0] for at, prompt in zip((1, 0), PROMPTS)]
    with pytest.raises(UserError, match="1 adapter_ids for 2 prompts"):
      generate(model, PROMPTS, beams, adapter_ids=[1])
    with pytest.raises(UserError, match="adapter_ids: 1 to 2; the model holds 2"):
      generate(model, PROMPTS, beams, adapter_ids=[1, 2])


@pytest.mark.parametrize("name", ["none", "prompt", "prefix"])
def test_learned_positions_go_on_from_each_row(name):
  model = adapted(GPT2, name)
  found = generate(model, PROMPTS, Sampling(max_new_tokens=9))
  for prompt, tokens in zip(PROMPTS, found):
    logits = np.asarray(model(input_ids=np.array([prompt + tokens]))["logits"])[0]
    assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == tokens


@pytest.mark.parametrize("name", ["lora", "prompt", "prefix"])
def test_an_encoder_decoder_answers_from_its_cache(name):
  model = adapted(T5, name)
  found = generate(model, PROMPTS, Sampling(max_new_tokens=9))
  for prompt, tokens in zip(PROMPTS, found):
    decoder_ids = np.array([[0, *tokens]])
    logits = np.asarray(model(input_ids=np.array([prompt]), decoder_input_ids=decoder_ids)["logits"])[0]
    assert logits[:-1].argmax(-1).tolist() == tokens


def test_chunks_add_up_and_rows_end_on_their_own():
  model = random_model(LLAMA)
  whole = generate(model, PROMPTS, Sampling(max_new_tokens=11))
  generator = Generator(model, Sampling(max_new_tokens=11))
  chunks = list(generator.stream(PROMPTS, chunk=4))
  assert [chunk.shape[1] for chunk in chunks] == [4, 4, 3]
  assert np.concatenate(chunks, axis=1).tolist() == whole
  end = whole[0][2]
  sampling = Sampling(max_new_tokens=11, eos_ids=(end,), pad_id=0)
  stopped = generate(model, PROMPTS, sampling)
  assert stopped == [up_to_end(row, sampling) for row in whole]
  assert stopped[0] == whole[0][: whole[0].index(end) + 1]


def test_sampling_follows_its_key_and_the_distribution():
  model = random_model({**LLAMA, "vocab_size": 7})
  prompt = [3, 4]
  sampling = Sampling(max_new_tokens=1, temperature=0.8)
  logits = np.asarray(model(input_ids=np.array([prompt]))["logits"])[0, -1]
  expected = np.exp(logits / 0.8) / np.exp(logits / 0.8).sum()
  draws = generate(model, [prompt] * 4000, sampling, jax.random.key(1))
  found = np.bincount([row[0] for row in draws], minlength=7) / 4000
  assert np.abs(found - expected).max() < 4 * np.sqrt(0.25 / 4000)
  assert generate(model, [prompt] * 9, sampling, jax.random.key(1)) == draws[:9]
  assert generate(model, [prompt] * 9, sampling, jax.random.key(2)) != draws[:9]


class Letters:
  """A tokenizer whose id n is the n-th letter."""

  def decode(self, ids):
    return "".join(chr(ord("A") + int(token)) for token in ids)


def test_text_ends_before_a_stop_string_and_streams_in_pieces():
  model = random_model(LLAMA)
  sampling = Sampling(max_new_tokens=20)
  (free,) = text_generation.complete(model, Letters(), PROMPTS[:1], sampling)
  stop = free[11:13]
  pieces = []
  (text,) = text_generation.complete(
    model, Letters(), PROMPTS[:1], sampling, stop=(stop,), on_text=lambda row, piece: pieces.append(piece)
  )
  assert text == free[: free.index(stop)] == "".join(pieces)


def test_a_step_copies_neither_weights_nor_cache():
  large = {**LLAMA, "vocab_size": 3000, "hidden_size": 64, "max_position_embeddings": 400, "num_hidden_layers": 2}
  generator = Generator(random_model(large), Sampling(max_new_tokens=320))
  state = generator.start([list(range(3, 30))])
  compiled = _advance.lower(generator._program, generator._params, state, 320).compile()
  memory = compiled.memory_analysis()
  cache = sum(leaf.nbytes for leaf in jax.tree.leaves(state["cache"]))
  weights = sum(leaf.nbytes for leaf in jax.tree.leaves(generator._params))
  assert weights > 1.5e6
  assert memory.temp_size_in_bytes < weights / 10  # and that little holds for any number of layers
  assert memory.alias_size_in_bytes >= cache


@pytest.mark.parametrize(
  ("settings", "words"),
  [
    ({"top_p": 1.5}, "top_p"),
    ({"max_new_tokens": 0}, "max_new_tokens"),
    ({"num_beams": 2, "temperature": 1.0}, "beam search does not sample"),
  ],
)
def test_impossible_settings_are_refused(settings, words):
  with pytest.raises(UserError, match=words):
    Sampling(**settings)


def test_what_cannot_generate_says_so():
  with pytest.raises(UserError, match="LlamaModel cannot generate"):
    generate(from_config({**LLAMA, "architectures": ["LlamaModel"]}), PROMPTS, Sampling())
  with pytest.raises(UserError, match="at least one token"):
    generate(random_model(LLAMA), [[]], Sampling())
  with pytest.raises(UserError, match="47 tokens.* do not fit the model's 40 positions"):
    generate(random_model(GPT2), PROMPTS, Sampling(max_new_tokens=40))
  with pytest.raises(UserError, match="47 tokens.* do not fit the model's 40 positions"):
    rehearse(random_model(GPT2), PROMPTS[1], Sampling(max_new_tokens=40))
  rehearse(random_model(GPT2), PROMPTS[1], Sampling(max_new_tokens=33))
