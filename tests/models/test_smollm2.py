"""The packaged SmolLM2-135M-Instruct: its file's tokenizer, its chat template, its weights, from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from peftjax.data.inputs.chat import encode_chat, load_chat_template
from peftjax.data.inputs.tokenizing import IGNORED, load_tokenizer
from peftjax.loading import folder_of

NAME = "packaged:smollm2-135m-instruct"


@pytest.fixture(scope="module")
def folder():
  return folder_of(NAME)


@pytest.mark.usefixtures("folder")
def test_it_answers():
  question = ["--chat=yes", "--prompt=What is the capital of France?", "--max_new_tokens=16", "--json"]
  # A process of its own, since the tests' compiler flags make large products slow.
  environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
  command = [sys.executable, "-m", "peftjax", "generate", f"--model={NAME}", *question]
  answer = json.loads(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
  assert answer["text"] == "The capital of France is Paris."
  assert answer["prompt"].endswith("user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n")


PEAK = """
import jax, jax.numpy as jnp
from peftjax.loading import load
jnp.ones(3).sum().block_until_ready()
def peak():
  (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
  return int(line.split()[1]) * 1024
before = peak()
model = load("packaged:smollm2-135m-instruct")
print((peak() - before) / sum(leaf.nbytes for leaf in jax.tree.leaves(model.params)))
"""


@pytest.mark.usefixtures("folder")
def test_the_peak_of_loading_is_little_more_than_the_model():
  """The reader's tables of 49,152 tokens and as many merges included."""
  done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, check=True, text=True)
  assert 0.9 <= float(done.stdout) <= 1.3


def test_its_tokenizer_and_template(folder):
  tokenizer = load_tokenizer(folder, max_length=64)
  ids, places = tokenizer.encode_with_places("<|im_start|>In 1987 ünder")
  assert ids[0] == 1 and tokenizer.decode(ids) == "In 1987 ünder"
  assert [tokenizer.decode([token]) for token, (start, _) in zip(ids, places) if start in range(15, 19)] == list("1987")
  messages = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4."}]
  ids, labels = encode_chat(tokenizer, load_chat_template(folder), messages)
  assert tokenizer.decode([label for label in labels if label != IGNORED]).strip() == "4."
  assert len(ids) == len(labels)
