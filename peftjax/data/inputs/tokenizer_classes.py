"""The tokenizer classes of transformers that make their tokenizer themselves, whatever ``tokenizer.json`` says of it.

Of that file such a class takes the vocabulary, the merges and the post-processor. Normalizer, pre-tokenizer and decoder
are its own, by the settings of the folder (`do_lower_case`, `add_prefix_space`). Special tokens that no file names
have the class's own spelling. All other classes are read from tokenizer.json alone (`GENERIC`).
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers
from tokenizers import AddedToken, models, normalizers

from peftjax.data.inputs import tokenizer_pipelines as pipelines
from peftjax.errors import UserError

if TYPE_CHECKING:
  from peftjax.data.inputs.tokenizer_folder import Settings

Fast = tokenizers.Tokenizer

GENERIC = "TokenizersBackend"  # as transformers 5 calls PreTrainedTokenizerFast
BARE = "ByteLevelBPE"  # vocab.json and merges.txt to which no file gives a class


@dataclasses.dataclass(frozen=True)
class Parts:
  """What a class takes from the files.

  Attributes:
    vocab: token -> id; of a unigram model (token, log probability) by id.
    merges: pairs of tokens, the most frequent first; of byte pair encoding only.
    post_processor: of tokenizer.json; None: the class's own, or none.
    truncation: as tokenizer.json has it, or empty.
    padding: as tokenizer.json has it, or empty.
    charsmap: how SentencePiece normalises characters, or None.
  """

  vocab: Any
  merges: list[tuple[str, str]] = dataclasses.field(default_factory=list)
  post_processor: Any = None
  truncation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  padding: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  charsmap: bytes | None = None

  @classmethod
  def of_json(cls, stated: Mapping[str, Any], model: str, path: Path) -> Parts:
    """The parts that a tokenizer.json holds for a class with this kind of `model`.

    Raises:
      UserError: its own model is of another kind.
    """
    own = stated.get("model")
    if not isinstance(own, dict) or own.get("type", model) != model:
      kind = own.get("type") if isinstance(own, dict) else None
      raise UserError(f"{path}: its model is {kind!r:.40}, but the tokenizer's class is one of {model}")
    file = Fast.from_file(str(path))
    vocab, merges = own["vocab"], own.get("merges", [])
    return cls(
      vocab=[(token, score) for token, score in vocab] if model == "Unigram" else vocab,
      merges=[_pair(one.split(" ") if isinstance(one, str) else one) for one in merges],
      post_processor=file.post_processor,
      truncation=file.truncation or {},
      padding=file.padding or {},
      charsmap=_charsmap(stated.get("normalizer")),
    )

  @classmethod
  def of_files(cls, folder: Path, names: tuple[str, ...]) -> Parts | None:
    """The parts in vocab.txt, or vocab.json and merges.txt, by `names`; None if one is missing."""
    if not names or not all((folder / name).is_file() for name in names):
      return None
    if names == ("vocab.txt",):
      return cls(models.WordPiece.read_file(str(folder / "vocab.txt")))
    vocab, merges = models.BPE.read_file(*(str(folder / name) for name in names))
    return cls(vocab, merges)


def _pair(merge: Sequence[str]) -> tuple[str, str]:
  left, right = merge
  return left, right


def _charsmap(normalizer: Any) -> bytes | None:
  steps = normalizer.get("normalizers", [normalizer]) if isinstance(normalizer, dict) else []
  for step in steps:
    if isinstance(step, dict) and step.get("type") == "Precompiled":
      return base64.b64decode(step["precompiled_charsmap"])
  return None


def _none(settings: Settings) -> list[str | AddedToken]:
  return []


def _sentinels(settings: Settings) -> list[str | AddedToken]:
  """T5's <extra_id_0> and so on, unless the folder lists its own."""
  count = settings.values.get("extra_ids", 100)
  if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= 10_000:
    raise UserError(f"{settings.folder}: extra_ids={count!r:.40}, expected a number of tokens")
  if settings.lists_extra_tokens or any("<extra_id_" in str(token) for token in settings.extra):
    return []
  return [f"<extra_id_{number}>" for number in range(count)]


@dataclasses.dataclass(frozen=True)
class TokenizerClass:
  """How a class makes its tokenizer.

  Attributes:
    model: "BPE", "WordPiece" or "Unigram".
    tokens: role -> special token where the folder names none.
    build: vocabulary and settings -> tokenizer.
    finish: the post-processor, once all special tokens have their ids; None: what the file says stays.
    files: what the class reads where there is no tokenizer.json.
    gives_type_ids: its models read token type ids.
    padding_side: where transformers pads.
    extra: special tokens without a role that it adds.
    adds: whether start and end tokens are added, where the class and not the post-processor of the file decides it.
    takes_padding: the token that tokenizer.json pads with is the padding token, where no other file names one.
    resets_flags: special tokens match exactly as they are spelt, whatever flags a file gives them.
    wraps: a token given as text -> its flags in matching; None: those of a special token.
  """

  model: str = "BPE"
  tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)
  build: pipelines.Build = pipelines.gpt2
  finish: pipelines.Finish = pipelines.as_found
  files: tuple[str, ...] = ()
  gives_type_ids: bool = False
  padding_side: str = "right"
  extra: Callable[[Settings], list[str | AddedToken]] = _none
  adds: Mapping[str, bool] = dataclasses.field(default_factory=dict)
  takes_padding: bool = False
  resets_flags: bool = False
  wraps: Callable[[str, str], AddedToken] | None = None


def _spelt(**roles: str) -> dict[str, str]:
  return {f"{role}_token": token for role, token in roles.items()}


_PIECES = ("vocab.json", "merges.txt")
_BERT = _spelt(unk="[UNK]", sep="[SEP]", pad="[PAD]", cls="[CLS]", mask="[MASK]")
_ROBERTA = _spelt(bos="<s>", eos="</s>", sep="</s>", cls="<s>", unk="<unk>", pad="<pad>", mask="<mask>")
_END = "<|endoftext|>"
_QWEN = _spelt(unk=_END, eos=_END, pad=_END)

BUILT: dict[str, TokenizerClass] = {
  GENERIC: TokenizerClass(takes_padding=True),
  BARE: TokenizerClass(files=_PIECES),
  "BertTokenizer": TokenizerClass(
    "WordPiece", _BERT, pipelines.word_piece, pipelines.bert_ends, ("vocab.txt",), gives_type_ids=True
  ),
  "DistilBertTokenizer": TokenizerClass("WordPiece", _BERT, pipelines.word_piece, pipelines.bert_ends, ("vocab.txt",)),
  "MPNetTokenizer": TokenizerClass(
    "WordPiece",
    {**_ROBERTA, "unk_token": "[UNK]"},
    pipelines.word_piece,
    pipelines.mpnet_ends,
    ("vocab.txt",),
    wraps=lambda role, token: AddedToken(token, lstrip=role == "mask_token"),
  ),
  "RobertaTokenizer": TokenizerClass(tokens=_ROBERTA, finish=pipelines.roberta_ends, files=_PIECES),
  "DebertaTokenizer": TokenizerClass(
    tokens=_BERT | _spelt(bos="[CLS]", eos="[SEP]"),
    finish=pipelines.deberta_ends,
    files=_PIECES,
    gives_type_ids=True,
  ),
  "GPT2Tokenizer": TokenizerClass(tokens=_spelt(unk=_END, bos=_END, eos=_END), files=_PIECES),
  "WhisperTokenizer": TokenizerClass(
    tokens=_spelt(unk=_END, bos=_END, eos=_END), finish=pipelines.whisper_ends, files=_PIECES, takes_padding=True
  ),
  "GPTNeoXTokenizer": TokenizerClass(
    tokens=_spelt(unk=_END, bos=_END, eos=_END, pad="<|padding|>"),
    build=pipelines.byte_level(normalizers.NFC()),
    files=_PIECES,
    adds={"add_bos_token": False, "add_eos_token": False},
  ),
  "Qwen2Tokenizer": TokenizerClass(
    tokens=_QWEN,
    build=pipelines.byte_level(normalizers.NFC(), pipelines.QWEN2_WORDS),
    files=_PIECES,
    resets_flags=True,
  ),
  "Qwen3_5Tokenizer": TokenizerClass(
    tokens=_QWEN, build=pipelines.byte_level(normalizers.NFC(), pipelines.QWEN3_5_WORDS)
  ),
  "LlamaTokenizer": TokenizerClass(
    tokens=_spelt(unk="<unk>", bos="<s>", eos="</s>"),
    build=pipelines.llama,
    padding_side="left",
    takes_padding=True,
  ),
  "GemmaTokenizer": TokenizerClass(
    tokens=_spelt(unk="<unk>", bos="<bos>", eos="<eos>", pad="<pad>", mask="<mask>"),
    build=pipelines.gemma,
    padding_side="left",
  ),
  "CLIPTokenizer": TokenizerClass(
    tokens=_spelt(unk=_END, bos="<|startoftext|>", eos=_END, pad=_END),
    build=pipelines.clip,
    finish=pipelines.clip_ends,
    files=_PIECES,
  ),
  "T5Tokenizer": TokenizerClass(
    "Unigram",
    _spelt(eos="</s>", unk="<unk>", pad="<pad>"),
    pipelines.t5,
    pipelines.t5_ends,
    extra=_sentinels,
  ),
  "XLMRobertaTokenizer": TokenizerClass("Unigram", _ROBERTA, pipelines.xlm_roberta, pipelines.xlm_roberta_ends),
  "AlbertTokenizer": TokenizerClass(
    "Unigram", _BERT | _spelt(bos="[CLS]", eos="[SEP]", unk="<unk>", pad="<pad>"), pipelines.albert
  ),
  "DebertaV2Tokenizer": TokenizerClass(
    "Unigram",
    _BERT | _spelt(bos="[CLS]", eos="[SEP]"),
    pipelines.deberta_v2,
    pipelines.bert_ends,
    gives_type_ids=True,
  ),
}
