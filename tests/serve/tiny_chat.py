"""A tiny LLaMA with a byte-level tokenizer and a chat template, and two LoRAs of it, made and saved by transformers and
peft, which also say what each of them answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import tokenizers
import torch
import transformers

TEMPLATE = (
  "{% for one in messages %}<|{{ one.role }}|>{{ one.content }}</s>{% endfor %}"
  "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TEXT = ["the quick brown fox jumps over the lazy dog", "grüße aus köln, ça va, 你好", "0 1 2 3 4 5 6 7 8 9"] * 4
POSITIONS = 256


class TinyChat:
  """The model and its adapters, on disk and in torch.

  Attributes:
    folder: of the base; adapters: name -> folder.
  """

  def __init__(self, root: Path):
    self.folder = root / "tiny-chat"
    fast = tokenizers.ByteLevelBPETokenizer()
    fast.train_from_iterator(TEXT, 300, special_tokens=["</s>", "<|user|>", "<|assistant|>", "<|system|>"])
    self.tokenizer = transformers.PreTrainedTokenizerFast(
      tokenizer_object=fast._tokenizer, eos_token="</s>", pad_token="</s>", chat_template=TEMPLATE
    )
    self.tokenizer.save_pretrained(self.folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
      vocab_size=len(self.tokenizer), hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3,
      num_key_value_heads=1, max_position_embeddings=POSITIONS, initializer_range=0.4,
      eos_token_id=self.tokenizer.eos_token_id, bos_token_id=None, pad_token_id=self.tokenizer.pad_token_id,
    )  # fmt: skip
    self.model = transformers.LlamaForCausalLM(config).eval()
    self.model.save_pretrained(self.folder)
    self.adapters: dict[str, Path] = {}
    for name, rank in (("formal", 3), ("plain", 5)):
      lora = peft.LoraConfig(
        r=rank, lora_alpha=7, target_modules=["q_proj", "v_proj", "up_proj"], task_type="CAUSAL_LM"
      )
      tuned = peft.get_peft_model(transformers.LlamaForCausalLM.from_pretrained(self.folder), lora)
      for _, parameter in (found for found in tuned.named_parameters() if "lora_" in found[0]):
        torch.nn.init.normal_(parameter, std=0.4)
      self.adapters[name] = root / name
      tuned.save_pretrained(self.adapters[name])

  def says(self, ids: list[int], name: str = "", most: int = 12) -> list[int]:
    """The likeliest tokens after a prompt, as transformers and peft have them."""
    model: Any = transformers.LlamaForCausalLM.from_pretrained(self.folder)
    model = peft.PeftModel.from_pretrained(model, self.adapters[name]) if name else model
    given = torch.tensor([ids])
    with torch.no_grad():
      out = model.eval().generate(
        input_ids=given, attention_mask=torch.ones_like(given), max_new_tokens=most, do_sample=False
      )
    return out[0, len(ids) :].tolist()

  def answer(self, text: str, name: str = "", most: int = 12) -> str:
    """What is said after a text, special tokens left out."""
    return self.tokenizer.decode(self.says(self.tokenizer.encode(text), name, most), skip_special_tokens=True)

  def reply(self, messages: list[dict[str, str]], name: str = "", most: int = 12) -> str:
    """What is said in a conversation."""
    text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return self.answer(text, name, most)
