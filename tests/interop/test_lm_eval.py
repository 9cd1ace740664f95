"""The harness on a peftjax model against the harness on the same model in transformers, by a local task file."""

from __future__ import annotations

import json

import lm_eval
import pytest
import tokenizers
import transformers
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from peftjax import methods
from peftjax.errors import UserError
from peftjax.interop.lm_eval import PeftJaxLM
from tests.models.decoder_models import with_method
from tests.oracles.decoders import load_pair

DOCS = [
  {"question": "two and two", "choices": ["four", "five or so"], "answer": 0},
  {"question": "the colour of the sky, by day", "choices": ["red", "a light blue"], "answer": 1},
  {"question": "x", "choices": ["y", "zz"], "answer": 1},
]
COMMON = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
"""
TASKS = {
  "tiny_choice": """
output_type: multiple_choice
doc_to_text: "Q: {{question}} A:"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list:
  - metric: acc
""",
  "tiny_perplexity": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}, and so on and so on, as far as it goes"
metric_list:
  - metric: word_perplexity
""",
  "tiny_generation": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs:
  until: ["e"]
  max_gen_toks: 9
metric_list:
  - metric: exact_match
""",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A tiny LLaMA with a tokenizer of bytes; its positions are few, so that the rolling texts need windows."""
  folder = tmp_path_factory.mktemp("lm") / "model"
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", *alphabet])}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  config = transformers.LlamaConfig(
    vocab_size=len(vocabulary), hidden_size=24, intermediate_size=28, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=48, bos_token_id=0, eos_token_id=1, pad_token_id=1,
  )  # fmt: skip
  load_pair(config, folder)
  fast = transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
  )
  fast.save_pretrained(folder)
  return folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
  root = tmp_path_factory.mktemp("tasks")
  (root / "data.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
  for name, text in TASKS.items():
    (root / f"{name}.yaml").write_text(COMMON.format(name=name, data=root / "data.jsonl") + text)
  return TaskManager(include_path=str(root), include_defaults=False)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path):
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))


def answers(model, tasks):
  """task -> the model's answers, document by document."""
  found = lm_eval.simple_evaluate(model, tasks=list(TASKS), task_manager=tasks, log_samples=True, bootstrap_iters=0)
  return {task: [sample["resps"] for sample in samples] for task, samples in found["samples"].items()}


def likelihoods(found):
  """Every log-likelihood and whether it is the greedy answer, in order."""
  choices = [one[0] for document in found["tiny_choice"] for one in document]
  rolling = [one[0] for document in found["tiny_perplexity"] for one in document]
  values = [float(value) for value, _ in choices] + [
    float(one[0] if isinstance(one, tuple) else one) for one in rolling
  ]
  return values, [bool(greedy) for _, greedy in choices]


@pytest.mark.parametrize("with_adapter", [False, True], ids=["base", "lora"])
def test_answers_are_those_of_the_harness_on_transformers(with_adapter, folder, tasks, tmp_path):
  ours = PeftJaxLM(str(folder), batch_size=2)
  adapter = None
  if with_adapter:
    adapter = tmp_path / "adapter"
    with_method(ours.model, methods.LoRA(rank=3, targets=("q_proj", "down_proj"))).save_adapter(adapter)
    plain = likelihoods(answers(ours, tasks))[0]
    ours = PeftJaxLM(str(folder), adapter=str(adapter), batch_size=2)
  theirs = HFLM(str(folder), peft=None if adapter is None else str(adapter), device="cpu", batch_size=2)
  found, expected = answers(ours, tasks), answers(theirs, tasks)
  values, greedy = likelihoods(found)
  wanted, wanted_greedy = likelihoods(expected)
  assert values == pytest.approx(wanted, rel=1e-5)
  assert greedy == wanted_greedy
  assert found["tiny_generation"] == expected["tiny_generation"]
  if with_adapter:
    assert values != pytest.approx(plain, rel=1e-3)


def test_an_encoder_decoder_scores_as_the_harness_does(folder, tasks, tmp_path):
  config = transformers.T5Config(
    vocab_size=258, d_model=20, d_kv=6, d_ff=28, num_layers=2, num_heads=3, decoder_start_token_id=0
  )
  load_pair(config, tmp_path / "model", kind="Seq2SeqLM")
  fast = transformers.AutoTokenizer.from_pretrained(folder)
  fast.save_pretrained(tmp_path / "model")
  theirs = HFLM(str(tmp_path / "model"), backend="seq2seq", device="cpu", batch_size=3, max_length=40)
  ours = PeftJaxLM(str(tmp_path / "model"), batch_size=3, max_length=40)
  requests = [(("a", "b"), fast.encode(doc["question"]), fast.encode(doc["choices"][1])) for doc in DOCS]
  expected = theirs._loglikelihood_tokens(requests, disable_tqdm=True)
  found = ours._loglikelihood_tokens(requests)
  assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-5)


def test_mistakes_are_one_line(folder):
  with pytest.raises(UserError, match="batch_size: expected a whole number, got 'auto'"):
    PeftJaxLM(str(folder), batch_size="auto")
  lm = PeftJaxLM(str(folder))
  with pytest.raises(UserError, match="peftjax has no 'typical_p'"):
    lm._sampling({"typical_p": 0.3})
