"""Model folders of tiny language models, with a tokenizer trained on the spot, and data of text to text."""

from __future__ import annotations

import json
from pathlib import Path

from peftjax.data.inputs.tokenizer_training import train_tokenizer, write_folder
from peftjax.files import write_text
from tests.data.tiny import jsonl

LLAMA = {
  "model_type": "llama",
  "architectures": ["LlamaForCausalLM"],
  "vocab_size": 300,
  "hidden_size": 16,
  "intermediate_size": 24,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 4,
  "max_position_embeddings": 64,
  "initializer_range": 0.2,
  "pad_token_id": 0,
  "eos_token_id": 1,
}
T5 = {
  "model_type": "t5",
  "architectures": ["T5ForConditionalGeneration"],
  "vocab_size": 300,
  "d_model": 16,
  "d_kv": 4,
  "d_ff": 24,
  "num_layers": 2,
  "num_heads": 3,
  "dropout_rate": 0.0,
  "initializer_range": 0.2,
}
CHAT = (
  "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
  "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def language_folder(folder: Path, hf_config: dict, chat: bool = False) -> Path:
  """config.json and a byte-level tokenizer of 300 ids, without weights."""
  texts = [row["source"] + " " + row["target"] for row in reversals(200)]
  like = folder.parent / f"{folder.name}.json"
  write_text(like, json.dumps(hf_config))
  write_folder(folder, train_tokenizer(texts, 300), like)
  if chat:
    write_text(folder / "chat_template.jinja", CHAT)
  return folder


def reversals(count: int) -> list[dict]:
  """Sources of 1 to 6 letters and the same letters backwards, all different."""
  letters = "abcdefg"
  sources = [
    " ".join(letters[(index // 7**place) % 7] for place in range(index % 6 + 1)) + f" {index}" for index in range(count)
  ]
  return [{"source": source, "target": source[::-1]} for source in sources]


def reversal_data(folder: Path, count: int = 40) -> str:
  """A data set of them; its name for `data.name`."""
  jsonl(folder / "train.jsonl", reversals(count))
  jsonl(folder / "validation.jsonl", reversals(count + 10)[count:])
  return f"jsonl:{folder}"
