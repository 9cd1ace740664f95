"""What transformers' pipelines make of an exported classifier: scores of the kind of labels that it was trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers
from tokenizers import models, pre_tokenizers, processors

from peftjax import cli

WORDS = ["hello", "world", "the", "quick", "brown", "fox", "good", "bad"]
KINDS = {
  "multi_label_classification": ("labels", lambda index: ["x"] if index % 3 else ["x", "y"], torch.sigmoid),
  "regression": ("label", lambda index: 10.0 * index + 0.5, lambda value: value),
  "single_label_classification": ("label", lambda index: "pqr"[index % 3], lambda value: value.softmax(-1)),
}


def base(folder: Path, family: str) -> Path:
  vocabulary = {word: index for index, word in enumerate(("<s>", "<unk>", "<pad>", *WORDS))}
  made = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
  made.pre_tokenizer = pre_tokenizers.Whitespace()
  if family == "llama":  # as published ones, which open every text
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
  folder.mkdir()
  made.save(str(folder / "tokenizer.json"))
  names = {"bos_token": "<s>", "unk_token": "<unk>", "pad_token": "<pad>"}
  (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names}))
  sizes = {"vocab_size": 16, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3}
  if family == "llama":
    config = transformers.LlamaConfig(**sizes, intermediate_size=32, pad_token_id=None)
    transformers.LlamaModel(config).save_pretrained(folder)
  else:
    transformers.BertModel(transformers.BertConfig(**sizes, intermediate_size=32)).save_pretrained(folder)
  return folder


@pytest.mark.parametrize(("kind", "family"), [*((kind, "bert") for kind in KINDS), ("regression", "llama")])
def test_the_pipeline_scores_an_export_as_it_was_trained(kind: str, family: str, tmp_path: Path) -> None:
  key, label, score = KINDS[kind]
  model = base(tmp_path / "base", family)
  rows = [{"text": f"{WORDS[i % 8]} {WORDS[(3 * i) % 8]}", key: label(i)} for i in range(12)]
  (tmp_path / "data").mkdir()
  for split in ("train", "validation"):
    (tmp_path / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  flags = {"model.path": model, "data.name": f"jsonl:{tmp_path / 'data'}", "train.batch_size": 4, "train.steps": 2,
           "data.max_length": 16, "data.buckets": "(16,)", "train.tensorboard": False}  # fmt: skip
  overrides = [f"--config.{name}={value}" for name, value in flags.items()]
  assert cli.main(["train", f"--workdir={tmp_path / 'run'}", *overrides]) == 0
  assert cli.main(["export", f"--workdir={tmp_path / 'run'}", "--format=merged", f"--out={tmp_path / 'out'}"]) == 0
  config = json.loads((tmp_path / "out" / "config.json").read_text())
  assert config["problem_type"] == kind
  assert config.get("pad_token_id", 0) == (2 if family == "llama" else 0)
  exported = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
  texts = ["hello world", "good"]
  found = transformers.pipeline("text-classification", model=exported, tokenizer=tokenizer, top_k=None, batch_size=2)(
    texts
  )
  for text, scores in zip(texts, found):
    with torch.no_grad():
      wanted = score(exported(torch.tensor([tokenizer(text)["input_ids"]])).logits[0])
    assert sorted(one["score"] for one in scores) == pytest.approx(sorted(wanted.tolist()), rel=1e-4, abs=1e-5)
