"""Chat templates of fourteen families, multi-turn: text, ids and assistant masks against transformers.

The masks that transformers gives need {% generation %} in a template. Published templates have none, so each is tried
in both forms, and the labels of the plain form are compared with the mask of the marked one.
"""

from __future__ import annotations

import collections
import json
import random
from pathlib import Path

import pytest
import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers, trainers

from peftjax.data.inputs.base import IGNORED
from peftjax.data.inputs.chat import encode_chat, load_chat_template
from peftjax.data.inputs.tokenizing import load_tokenizer
from peftjax.errors import UserError
from tests.oracles.chat_templates import FAMILIES, conversation, unmarked


def chat_folder(folder: Path, template: str) -> Path:
  """A byte-level tokenizer whose words begin with their space, and the template."""
  fast = tokenizers.Tokenizer(models.BPE())
  fast.pre_tokenizer, fast.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=330,
    special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>"],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  fast.train_from_iterator(["hello world good bad user assistant system model answer"] * 5, trainer)
  folder.mkdir()
  fast.save(str(folder / "tokenizer.json"))
  settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
  (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
  return folder


@pytest.mark.parametrize("count", [10, pytest.param(200, marks=pytest.mark.slow)], ids=["quick", "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_text_ids_and_masks_are_those_of_transformers(family, count, tmp_path, record_property):
  counts: collections.Counter[str] = collections.Counter()
  forms = {"marked": FAMILIES[family], "plain": unmarked(FAMILIES[family])}
  folders = {form: chat_folder(tmp_path / form, template) for form, template in forms.items()}
  theirs = {form: transformers.AutoTokenizer.from_pretrained(folder) for form, folder in folders.items()}
  for form, folder in folders.items():
    tokenizer, template = load_tokenizer(folder, 10**6), load_chat_template(folder)
    for seed in range(count):
      messages = conversation(random.Random(seed))
      options = [{"add_generation_prompt": asks} for asks in (False, True)]
      try:
        right = [theirs[form].apply_chat_template(messages, tokenize=False, **one) for one in options]
      except Exception:
        with pytest.raises(UserError, match="chat template"):
          template.render(messages)
        counts["refused by both"] += 1
        continue
      assert [template.render(messages, asks_for_answer=asks) for asks in (False, True)] == right
      masked = theirs["marked"].apply_chat_template(messages, return_assistant_tokens_mask=True)
      if 1 not in masked["assistant_masks"]:
        with pytest.raises(UserError, match="needs a message of the role 'assistant'"):
          encode_chat(tokenizer, template, messages)
        counts["without an answer"] += 1
        continue
      ids, labels = encode_chat(tokenizer, template, messages)
      assert ids == masked["input_ids"]
      mask = list(masked["assistant_masks"])
      if form == "plain" and messages[-1]["role"] == "assistant":  # what ends the conversation ends its last answer
        last = len(mask) - mask[::-1].index(1)
        mask[last:] = [1] * (len(mask) - last)
      assert [int(label != IGNORED) for label in labels] == mask, messages
      assert all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=True))
      counts["equal"] += 1
  parts = ", ".join(f"{number} {name}" for name, number in sorted(counts.items()))
  record_property("counted", f"compared with apply_chat_template: {family}, {2 * count} conversations ({parts})")
  assert counts["equal"] >= count
