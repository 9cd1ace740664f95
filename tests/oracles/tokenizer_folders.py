"""Tokenizer folders drawn at random: classes, vocabularies, post-processors, special and added tokens, switches."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
  "The quick brown fox, user and assistant; answers are good or bad.",
  "déjà vu — naïve Über-coöperation, 中文 and 日本, 100% OK? I've been there!",
  "hello world  hello   World HELLO\tnew\nlines and don't he's we'll 3.14 42",
] * 5
TEXTS = [
  "hello world",
  "Hello WORLD, I've   been there!",
  " leading and trailing \n",
  "",
  "naïve déjà-vu 中文ok 🙂 end",
  "a<s>b </s> c [SEP] d <mask> e <|endoftext|>f",
  "new <ent>token</ent> and  <ent> again, NewToken newtoken",
  "the quick brown fox " * 6,
]
PAIRS = ["second text", "x", "", "longer second text than the first one", "y", "b</s>", "c", "z " * 20]

_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_SPELLINGS = {
  "bert": ("[CLS]", "[SEP]", "[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"),
  "roberta": ("<s>", "</s>", "<unk>", "</s>", "<pad>", "<s>", "<mask>"),
  "gpt2": ("<|endoftext|>", "<|endoftext|>", "<|endoftext|>", "</s>", "<pad>", "<s>", "<mask>"),
  "gemma": ("<bos>", "<eos>", "<unk>", "<eos>", "<pad>", "<bos>", "<mask>"),
}
_CLASSES = {
  "WordPiece": ("BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer", "MPNetTokenizer", "MobileBertTokenizer"),
  "bytes": (
    "GPT2Tokenizer", "GPT2TokenizerFast", "RobertaTokenizer", "RobertaTokenizerFast", "Qwen2Tokenizer", "BartTokenizer",
    "GPTNeoXTokenizer", "GPTNeoXTokenizerFast", "DebertaTokenizer", "CLIPTokenizer", "LlamaTokenizerFast",
    "Qwen3_5Tokenizer", "BloomTokenizerFast",
  ),
  "pieces": ("LlamaTokenizer", "LlamaTokenizerFast", "GemmaTokenizer", "GemmaTokenizerFast"),
  "Unigram": ("T5Tokenizer", "XLMRobertaTokenizer", "AlbertTokenizer", "DebertaV2Tokenizer"),
  "words": (),
}  # fmt: skip
_GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend", "MadeUpTokenizer")
_TYPES = {
  "WordPiece": ("bert", "distilbert", "electra", "mpnet"),
  "bytes": ("gpt2", "roberta", "qwen2", "gpt_neox", "llama", "mistral", "opt", "bloom", "gptj", "bart", "phi3"),
  "pieces": ("llama", "gemma", "gemma2", "mistral", "phi3"),
  "Unigram": ("t5", "mt5", "xlm-roberta", "albert", "deberta-v2"),
  "words": ("llama", "bert"),
}  # fmt: skip


def draw(rng: random.Random, folder: Path) -> dict[str, Any]:
  """Writes a tokenizer folder; what was drawn, for the message of a failure."""
  kind = rng.choice(list(_CLASSES))
  style = {"WordPiece": "bert", "pieces": rng.choice(["roberta", "gemma"]), "Unigram": rng.choice(["roberta", "bert"])}
  spelt = dict(zip(_ROLES, _SPELLINGS[style.get(kind) or rng.choice(["roberta", "gpt2"])], strict=True))
  fast = _trained(rng, kind, spelt)
  settings, named = _settings(rng, kind, spelt)
  types = _TYPES[kind]
  config = {"model_type": rng.choice(types)} if rng.random() < 0.6 else {}
  drawn = {"kind": kind, "config": config, "settings": settings}
  if config:
    (folder / "config.json").write_text(json.dumps(config))
  if _is_bare(rng, kind, settings):
    fast.model.save(str(folder))
    drawn["bare"] = True
  else:
    if (post := _post_processor(rng, fast, spelt)) is not None:
      fast.post_processor = post
    _bake(rng, fast, spelt)
    fast.save(str(folder / "tokenizer.json"))
    drawn["post"] = str(post)[:300]
  if rng.random() < 0.9 or named:
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
  if rng.random() < 0.25:
    drawn["map"] = {role: rng.choice([spelt[role], _flags(rng, spelt[role], False)]) for role in rng.sample(_ROLES, 3)}
    (folder / "special_tokens_map.json").write_text(json.dumps(drawn["map"]))
  if rng.random() < 0.2:
    count = fast.get_vocab_size()
    drawn["added"] = {
      token: count + index for index, token in enumerate(rng.sample(["<ent>", "</ent>", "newtoken"], 2))
    }
    (folder / "added_tokens.json").write_text(json.dumps(drawn["added"]))
  return drawn


def _trained(rng: random.Random, kind: str, spelt: dict[str, str]) -> tokenizers.Tokenizer:
  specials = list(dict.fromkeys(spelt.values()))
  rng.shuffle(specials)
  options: dict[str, Any] = {"special_tokens": specials, "show_progress": False}
  if kind == "WordPiece":
    fast = tokenizers.Tokenizer(models.WordPiece(unk_token=spelt["unk_token"]))
    fast.normalizer = normalizers.BertNormalizer(lowercase=rng.random() < 0.7)
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.decoder = decoders.WordPiece()
    trainer: Any = trainers.WordPieceTrainer(vocab_size=200, **options)
  elif kind == "bytes":
    fast = tokenizers.Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=rng.random() < 0.3)
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=350, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **options)
  elif kind == "pieces":
    fast = tokenizers.Tokenizer(models.BPE(unk_token=spelt["unk_token"], byte_fallback=True, fuse_unk=True))
    fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=rng.choice(["always", "first", "never"]), split=False)
    fast.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    options["special_tokens"] = specials + [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=450, **options)
  elif kind == "Unigram":
    fast = tokenizers.Tokenizer(models.Unigram())
    fast.normalizer = rng.choice(
      [normalizers.NFKC(), normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])]
    )
    fast.pre_tokenizer = pre_tokenizers.Metaspace()
    fast.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=150, unk_token=spelt["unk_token"], **options)
  else:
    fast = tokenizers.Tokenizer(models.WordLevel(unk_token=spelt["unk_token"]))
    fast.pre_tokenizer = rng.choice([pre_tokenizers.Whitespace(), pre_tokenizers.WhitespaceSplit()])
    trainer = trainers.WordLevelTrainer(**options)
  fast.train_from_iterator(CORPUS, trainer)
  return fast


def _post_processor(rng: random.Random, fast: tokenizers.Tokenizer, spelt: dict[str, str]) -> Any:
  ids = {role: (token, fast.token_to_id(token)) for role, token in spelt.items()}
  start, end, sep, cls = (ids[role] for role in ("bos_token", "eos_token", "sep_token", "cls_token"))
  template = processors.TemplateProcessing
  return rng.choice(
    [
      None,
      template(single=f"{start[0]} $A", pair=f"{start[0]} $A $B", special_tokens=[start]),
      template(single=f"$A {end[0]}", pair=f"$A {end[0]} $B:1 {end[0]}:1", special_tokens=[end]),
      template(single=f"{cls[0]} $A {sep[0]}", pair=f"{cls[0]} $A {sep[0]} $B:1 {sep[0]}:1", special_tokens=[cls, sep]),
      processors.BertProcessing(sep, cls),
      processors.RobertaProcessing(sep, cls, rng.random() < 0.5, rng.random() < 0.5),
      processors.ByteLevel(trim_offsets=rng.random() < 0.5),
      processors.Sequence(
        [processors.ByteLevel(trim_offsets=True), template(single=f"{start[0]} $A", special_tokens=[start])]
      ),
    ]
  )


def _bake(rng: random.Random, fast: tokenizers.Tokenizer, spelt: dict[str, str]) -> None:
  """What a tokenizer.json may hold beside the pipeline: added tokens, cutting, padding."""
  if rng.random() < 0.3:
    fast.add_tokens([AddedToken("<ent>", lstrip=rng.random() < 0.5, rstrip=rng.random() < 0.5)])
  if rng.random() < 0.2:
    fast.add_special_tokens([AddedToken("</ent>", normalized=rng.random() < 0.5)])
  if rng.random() < 0.2:
    fast.enable_truncation(9, direction=rng.choice(["left", "right"]))
  if rng.random() < 0.2:
    pad = spelt["pad_token"]
    fast.enable_padding(pad_token=pad, pad_id=fast.token_to_id(pad), direction=rng.choice(["left", "right"]))


def _flags(rng: random.Random, content: str, typed: bool = True) -> dict[str, Any]:
  flags = {name: rng.random() < 0.3 for name in ("lstrip", "rstrip", "single_word", "normalized")}
  return {"content": content, **flags, **({"__type": "AddedToken"} if typed else {})}


def _settings(rng: random.Random, kind: str, spelt: dict[str, str]) -> tuple[dict[str, Any], bool]:
  settings: dict[str, Any] = {}
  named = rng.random() < 0.8
  if named:
    settings["tokenizer_class"] = rng.choice([*_CLASSES[kind] * 2, *_GENERIC])
  for role in rng.sample(_ROLES, rng.randrange(len(_ROLES) + 1)):
    settings[role] = rng.choice([spelt[role]] * 4 + [_flags(rng, spelt[role])] * 2 + [None, f"<new_{role}>"])
  choices: dict[str, list[Any]] = {
    "truncation_side": ["left", "right"],
    "padding_side": ["left", "right"],
    "add_prefix_space": [True, False],
    "do_lower_case": [True, False],
    "strip_accents": [True, False, None],
    "tokenize_chinese_chars": [True, False],
    "add_bos_token": [True, False],
    "add_eos_token": [True, False],
    "clean_up_tokenization_spaces": [True, False],
    "split_special_tokens": [True],
    "model_max_length": [16, 512, 1e30],
    "legacy": [True, False],
    "keep_accents": [True, False],
    "split_by_punct": [True, False],
    "trim_offsets": [True, False],
    "model_input_names": [["input_ids", "attention_mask"], ["input_ids", "token_type_ids", "attention_mask"]],
    "additional_special_tokens": [["<ent>"], ["</ent>", "<ent>"], []],
    "extra_special_tokens": [["<ent>"], {"image_token": "<ent>"}],
    "image_token": ["</ent>"],
    "added_tokens_decoder": [
      {"350": {**_flags(rng, "<ent>", False), "special": True}},
      {"350": {**_flags(rng, "NewToken", False), "special": False}, "351": {"content": "</ent>", "special": False}},
    ],
  }
  for name in rng.sample(list(choices), rng.randrange(8)):
    settings[name] = rng.choice(choices[name])
  return settings, named


def _is_bare(rng: random.Random, kind: str, settings: dict[str, Any]) -> bool:
  """Whether the folder has vocabulary files and no tokenizer.json."""
  return kind in ("WordPiece", "bytes") and rng.random() < 0.25
