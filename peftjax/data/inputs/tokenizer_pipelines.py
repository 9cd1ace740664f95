"""How the tokenizer classes of transformers make a tokenizer, and what they put around texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

from peftjax.errors import UserError

if TYPE_CHECKING:
  from peftjax.data.inputs.tokenizer_classes import Parts
  from peftjax.data.inputs.tokenizer_folder import Settings

Fast = tokenizers.Tokenizer
Build = Callable[["Parts", "Settings"], Fast]
Finish = Callable[[Fast, "Settings"], Any]

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
QWEN2_WORDS = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN3_5_WORDS = (
  _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def word_piece(parts: Parts, settings: Settings) -> Fast:
  """WordPiece, as BERT and its kin have it."""
  fast = Fast(models.WordPiece(parts.vocab, unk_token=str(settings.special.get("unk_token"))))
  fast.normalizer = normalizers.BertNormalizer(
    clean_text=True,
    handle_chinese_chars=settings.flag("tokenize_chinese_chars", True),
    strip_accents=settings.flag("strip_accents", None),
    lowercase=settings.flag("do_lower_case", True),
  )
  fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  fast.decoder = decoders.WordPiece(prefix="##")
  return fast


def byte_level(normalizer: Any = None, pattern: str = "", digits: bool = False) -> Build:
  """Byte-level BPE: GPT-2's words, or those of a pattern."""

  def build(parts: Parts, settings: Settings) -> Fast:
    fast = Fast(
      models.BPE(parts.vocab, parts.merges, continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False)
    )
    space = bool(settings.flag("add_prefix_space", None))
    steps: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
    steps += [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=space, use_regex=not pattern))
    fast.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    if normalizer is not None:
      fast.normalizer = normalizer
    fast.decoder = decoders.ByteLevel()
    return fast

  return build


gpt2 = byte_level()


def llama(parts: Parts, settings: Settings) -> Fast:
  """Pieces with a space in front, and bytes for what has none."""
  fast = Fast(models.BPE(parts.vocab, parts.merges, fuse_unk=True, byte_fallback=True))
  space = settings.flag("add_prefix_space", None) is not False
  scheme = ("always" if settings.flag("legacy", False) else "first") if space else "never"
  fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
  strip = [decoders.Strip(content=" ", left=1)] if space else []
  fast.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
  return fast


def gemma(parts: Parts, settings: Settings) -> Fast:
  """Pieces, spaces written as ▁, and bytes for what has none."""
  unknown = str(settings.special.get("unk_token"))
  fast = Fast(models.BPE(parts.vocab, parts.merges, fuse_unk=True, unk_token=unknown, byte_fallback=True))
  fast.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
  fast.normalizer = normalizers.Replace(" ", "▁")
  fast.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
  return fast


def clip(parts: Parts, settings: Settings) -> Fast:
  """Byte-level BPE of lower-case words that end in </w>."""
  unknown = str(settings.special.get("unk_token"))
  model = models.BPE(
    parts.vocab,
    parts.merges,
    continuing_subword_prefix="",
    end_of_word_suffix="</w>",
    fuse_unk=False,
    unk_token=unknown,
  )
  fast = Fast(model)
  fast.normalizer = normalizers.Sequence(
    [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
  )
  words = pre_tokenizers.Split(Regex(_CLIP_WORDS), "removed", invert=True)
  fast.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
  fast.decoder = decoders.ByteLevel()
  return fast


def _unigram(parts: Parts, unknown: int, scheme: str, steps: list[Any], splits_spaces: bool = True) -> Fast:
  fast = Fast(models.Unigram(parts.vocab, unk_id=unknown, byte_fallback=False))
  steps = steps + ([normalizers.Precompiled(parts.charsmap)] if parts.charsmap is not None else [])
  if steps:
    fast.normalizer = normalizers.Sequence(steps) if len(steps) > 1 else steps[0]
  spaces = [pre_tokenizers.WhitespaceSplit()] if splits_spaces else []
  fast.pre_tokenizer = pre_tokenizers.Sequence([*spaces, pre_tokenizers.Metaspace(prepend_scheme=scheme)])
  fast.decoder = decoders.Metaspace(prepend_scheme=scheme)
  return fast


def _scheme(settings: Settings, otherwise: str = "never") -> str:
  return "always" if settings.flag("add_prefix_space", True) else otherwise


def whisper_ends(fast: Fast, settings: Settings) -> Any:
  """The start of a transcript, its language, task and the word for no timestamps, as far as the folder names them."""
  language, task = settings.text("language"), settings.text("task")
  if task not in ("", "transcribe", "translate"):
    raise UserError(f"{settings.folder}: task={task!r}, expected transcribe or translate")
  names = ["startoftranscript", language.lower(), task]
  names += [] if settings.flag("predict_timestamps", False) else ["notimestamps"]
  before, end = [f"<|{name}|>" for name in names if name], _spelling(settings, "eos_token")
  return processors.TemplateProcessing(
    single=[*before, "$A", end],
    pair=[*(f"{one}:0" for one in before), "$A:0", "$B:1", f"{end}:1"],
    special_tokens=[(token, _id(fast, token)) for token in dict.fromkeys([*before, end])],
  )


def t5(parts: Parts, settings: Settings) -> Fast:
  """A unigram model whose unknown token is the third."""
  return _unigram(parts, 2, "always", [])


def xlm_roberta(parts: Parts, settings: Settings) -> Fast:
  """A unigram model whose unknown token is the fourth."""
  return _unigram(parts, 3, _scheme(settings), [])


def albert(parts: Parts, settings: Settings) -> Fast:
  """A unigram model after ALBERT's normalisation."""
  steps: list[Any] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
  steps += [] if settings.flag("keep_accents", False) else [normalizers.NFKD(), normalizers.StripAccents()]
  steps += [normalizers.Lowercase()] if settings.flag("do_lower_case", True) else []
  fast = _unigram(parts, 1, _scheme(settings), steps)
  fast.post_processor = bert_ends(fast, settings)  # unless tokenizer.json has one
  return fast


def deberta_v2(parts: Parts, settings: Settings) -> Fast:
  """A unigram model after DeBERTa's normalisation."""
  unknown = (str(settings.special.get("unk_token")), 0.0)
  index = parts.vocab.index(unknown) if unknown in parts.vocab else 1
  steps: list[Any] = [normalizers.Lowercase()] if settings.flag("do_lower_case", False) else []
  steps += [normalizers.Replace(Regex(r"\s{2,}|[\n\r\t]"), " "), normalizers.NFC(), normalizers.Strip(left=False)]
  parts = dataclasses.replace(parts, charsmap=None)
  fast = _unigram(parts, index, _scheme(settings, "first"), steps, splits_spaces=False)
  if settings.flag("split_by_punct", False):
    fast.pre_tokenizer = pre_tokenizers.Sequence(
      [pre_tokenizers.Punctuation("isolated"), pre_tokenizers.Metaspace(prepend_scheme=_scheme(settings, "first"))]
    )
  return fast


def as_found(fast: Fast, settings: Settings) -> Any:
  """What tokenizer.json says stays."""
  return None


def bert_ends(fast: Fast, settings: Settings) -> Any:
  """[CLS] A [SEP], then B [SEP] of type 1."""
  return _around([_spelling(settings, "cls_token")], [_spelling(settings, "sep_token")], fast)


def roberta_ends(fast: Fast, settings: Settings) -> Any:
  """<s> A </s>, then </s> B </s>."""
  trims, spaces = settings.flag("trim_offsets", True), settings.flag("add_prefix_space", False)
  return _roberta(fast, settings, "cls_token", "sep_token", trims, spaces)


def mpnet_ends(fast: Fast, settings: Settings) -> Any:
  """RoBERTa's, offsets without spaces."""
  return _roberta(fast, settings, "cls_token", "sep_token", True)


def clip_ends(fast: Fast, settings: Settings) -> Any:
  """The start token before a text, the end token behind it."""
  return _roberta(fast, settings, "bos_token", "eos_token", False)


def deberta_ends(fast: Fast, settings: Settings) -> Any:
  """[CLS] A [SEP], then [SEP] B [SEP]."""
  return _two_ends_between(fast, _spelling(settings, "cls_token"), _spelling(settings, "sep_token"))


def xlm_roberta_ends(fast: Fast, settings: Settings) -> Any:
  """<s> A </s>, then </s> B </s>, all of type 0."""
  return _two_ends_between(fast, _spelling(settings, "bos_token"), _spelling(settings, "eos_token"))


def t5_ends(fast: Fast, settings: Settings) -> Any:
  """A </s>, then B </s>."""
  end = [("</s>", _id(fast, _spelling(settings, "eos_token")))]
  return processors.TemplateProcessing(single=["$A", "</s>"], pair=["$A", "</s>", "$B", "</s>"], special_tokens=end)


def _roberta(fast: Fast, settings: Settings, start: str, end: str, trims: bool, spaces: bool = False) -> Any:
  first, last = _spelling(settings, start), _spelling(settings, end)
  return processors.RobertaProcessing((last, _id(fast, last)), (first, _id(fast, first)), trims, spaces)


def _around(before: list[str], behind: list[str], fast: Fast) -> Any:
  """`before`, the first text, `behind`; then a second text and `behind`, of type 1."""
  single, second = [*before, "$A", *behind], ["$B", *behind]
  return processors.TemplateProcessing(
    single=[f"{one}:0" for one in single],
    pair=[f"{one}:0" for one in single] + [f"{one}:1" for one in second],
    special_tokens=[(token, _id(fast, token)) for token in dict.fromkeys([*before, *behind])],
  )


def _two_ends_between(fast: Fast, start: str, end: str) -> Any:
  return processors.TemplateProcessing(
    single=[start, "$A", end],
    pair=[start, "$A", end, end, "$B", end],
    special_tokens=[(token, _id(fast, token)) for token in dict.fromkeys([start, end])],
  )


def _spelling(settings: Settings, role: str) -> str:
  token = settings.special.get(role)
  if token is None:
    raise UserError(f"{settings.folder}: a {settings.kind} needs a {role}, and its settings take it away")
  return str(token)


def _id(fast: Fast, token: str) -> int:
  found = fast.token_to_id(token)
  if found is None:
    raise UserError(f"the tokenizer's vocabulary lacks the special token {token!r}")
  return int(found)
