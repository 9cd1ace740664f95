"""generation_config.json: what transformers' `generate` obeys of it, obeyed here, noted or refused in one line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peftjax.errors import UserError
from peftjax.files import read_json
from peftjax.kinds import FLAG, NAME, Kind, either, list_of, number, shown, value_of, whole
from peftjax.models.config_fields import IDS, MOST_IDS

FILE = "generation_config.json"
_COUNT = whole(0, 2**31 - 1)
_ID = whole(-(2**31), 2**31 - 1)
_TOKENS = list_of(_ID, what="token ids")
# Fields of `Sampling` by the same names. Where one is null, or has the neutral value, it says nothing.
_RULES: dict[str, tuple[Kind, Any]] = {
  "repetition_penalty": (number(above=0.0), 1.0),
  "no_repeat_ngram_size": (_COUNT, 0),
  "min_new_tokens": (_COUNT, 0),
  "suppress_tokens": (_TOKENS, ()),
  "begin_suppress_tokens": (_TOKENS, ()),
}
_BEAMS: dict[str, tuple[Kind, Any]] = {
  "num_beams": (whole(1, 2**16), 1),
  "length_penalty": (number(), 1.0),
  "early_stopping": (FLAG, False),
}
_DRAWING: dict[str, tuple[Kind, Any]] = {
  "do_sample": (FLAG, False),
  "temperature": (number(0.0), 1.0),
  "top_k": (_COUNT, None),  # 0 and 50 are said too: neither is what transformers does without
  "top_p": (number(0.0, 1.0), 1.0),
}
_LENGTHS: dict[str, tuple[Kind, Any]] = {
  "max_new_tokens": (whole(1, 2**31 - 1), None),
  "max_length": (_COUNT, None),
  "min_length": (_COUNT, 0),
}
# What is not computed here, and the values beside null that ask for nothing.
_REFUSED: dict[str, tuple[Any, ...]] = {
  "constraints": ([],),
  "diversity_penalty": (0.0,),
  "dola_layers": (),
  "encoder_no_repeat_ngram_size": (0,),
  "encoder_repetition_penalty": (1.0,),
  "exponential_decay_length_penalty": (),
  "force_words_ids": ([],),
  "forced_bos_token_id": (),
  "forced_decoder_ids": ([],),
  "forced_eos_token_id": (),
  "guidance_scale": (1.0,),
  "max_time": (),
  "num_beam_groups": (1,),
  "penalty_alpha": (0.0,),
  "remove_invalid_values": (False,),
  "renormalize_logits": (False,),
  "sequence_bias": ({}, []),
  "token_healing": (False,),
  "watermarking_config": (),
}
_REFUSED_WHEN_DRAWING: dict[str, tuple[Any, ...]] = {
  "epsilon_cutoff": (0.0,),
  "eta_cutoff": (0.0,),
  "min_p": (0.0,),
  "top_h": (),
  "typical_p": (1.0,),
}
# How the same tokens are computed, what is returned beside them, and what config.json and the tokenizer say here.
_IRRELEVANT = (
  "assistant_confidence_threshold", "assistant_early_exit", "assistant_ensemble_weight", "assistant_lookbehind",
  "bos_token_id", "cache_config", "cache_implementation", "compile_config", "continuous_batching_config",
  "disable_compile", "is_assistant", "low_memory", "max_cache_len", "max_matching_ngram_size", "num_assistant_tokens",
  "num_assistant_tokens_schedule", "num_return_sequences", "output_attentions", "output_hidden_states",
  "output_logits", "output_scores", "pad_token_id", "prefill_chunk_size", "prompt_lookup_num_tokens",
  "return_dict_in_generate", "speculation_type", "target_lookbehind", "transformers_version", "use_cache", "use_mtp",
)  # fmt: skip
FIELDS = (*_RULES, *_BEAMS, *_DRAWING, *_LENGTHS, *_REFUSED, *_REFUSED_WHEN_DRAWING, *_IRRELEVANT, "bad_words_ids",
          "decoder_start_token_id", "eos_token_id", "stop_strings")  # fmt: skip
_TOP_K = 50  # of transformers, where a file asks for drawing and does not say it


@dataclasses.dataclass(frozen=True)
class Stated:
  """What a model folder says of generating.

  Attributes:
    eos_ids: tokens that end a sequence.
    rules: fields of `Sampling` that shape the scores.
    beams: those of beam search.
    drawing: temperature, top_k and top_p, for whoever draws.
    max_new_tokens: of an answer; None if the file does not say.
    max_length, min_length: of prompt and answer together; None and 0 if the file does not say.
    stop: texts before which an answer ends.
    draws: the file asks for drawing.
    refused_when_drawing: the names of what is not computed here and matters only then.
  """

  eos_ids: tuple[int, ...] = ()
  rules: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  beams: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  drawing: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  max_new_tokens: int | None = None
  max_length: int | None = None
  min_length: int = 0
  stop: tuple[str, ...] = ()
  draws: bool = False
  refused_when_drawing: tuple[str, ...] = ()

  def least(self, prompt_tokens: int | None, most: int) -> dict[str, int]:
    """`min_new_tokens` of answers of at most so many.

    Args:
      prompt_tokens: that count as length of an answer, 1 of an encoder-decoder; None: prompts differ.

    Raises:
      UserError: prompts differ, and `min_length` counts them.
    """
    if prompt_tokens is None and self.min_length:
      raise UserError(f"{FILE}: min_length counts the prompt, and prompts differ here; say min_new_tokens instead")
    least = max(self.rules.get("min_new_tokens", 0), self.min_length - (prompt_tokens or 0))
    return {"min_new_tokens": min(least, most)} if least > 0 else {}

  def check_drawing(self) -> None:
    """Raises a `UserError` if drawing would leave out what the file asks for."""
    if self.refused_when_drawing:
      raise UserError(f"{FILE}: {self.refused_when_drawing[0]} is not computed here; take it out, or do not sample")


def stated(folder: Path | None, hf_config: Mapping[str, Any], passed_over: Sequence[str] = ()) -> Stated:
  """What generation_config.json says; without the file, the end tokens of config.json.

  Args:
    passed_over: fields that the caller has settings of its own for.

  Raises:
    UserError: a value of another type, or one that asks for what is not computed here.
  """
  path = folder / FILE if folder is not None else None
  if path is None or not path.is_file():
    return Stated(eos_ids=_ends(hf_config.get("eos_token_id"), "config.json", hf_config))
  found = read_json(path)
  for name, neutral in _REFUSED.items():
    if name not in passed_over and found.get(name) is not None and found[name] not in neutral:
      raise UserError(f"{path}: {name}={shown(found[name])} is not computed here; take it out to generate without it")
  drawing, lengths = _values(found, _DRAWING, path), _values(found, _LENGTHS, path)
  rules = _values(found, _RULES, path)
  if drawing.get("do_sample"):
    drawing = {"top_k": _TOP_K, **drawing}
  start, known = found.get("decoder_start_token_id"), hf_config.get("decoder_start_token_id")
  if known is not None and start not in (None, known):
    raise UserError(f"{path}: decoder_start_token_id={shown(start)}, and config.json has {known}, with which the model "
                    f"was trained; make both the same")  # fmt: skip
  suppressed = (*rules.get("suppress_tokens", ()), *_single_words(found.get("bad_words_ids"), path))
  return Stated(
    eos_ids=_ends(found.get("eos_token_id", hf_config.get("eos_token_id")), str(path), hf_config),
    rules=rules | ({"suppress_tokens": suppressed} if suppressed else {}),
    beams=_values(found, _BEAMS, path),
    drawing={name: value for name, value in drawing.items() if name != "do_sample"},
    max_new_tokens=lengths.get("max_new_tokens"),
    max_length=lengths.get("max_length"),
    min_length=lengths.get("min_length", 0),
    stop=_texts(found.get("stop_strings"), path),
    draws=drawing.get("do_sample", False),
    refused_when_drawing=tuple(
      name for name, neutral in _REFUSED_WHEN_DRAWING.items() if found.get(name) not in (None, *neutral)
    ),
  )


def _values(found: Mapping[str, Any], table: Mapping[str, tuple[Kind, Any]], path: Path) -> dict[str, Any]:
  given = {
    name: value_of(str(path), name, found[name], kind)
    for name, (kind, _) in table.items()
    if found.get(name) is not None
  }
  return {name: value for name, value in given.items() if value != table[name][1]}


def _ends(value: Any, where: str, hf_config: Mapping[str, Any]) -> tuple[int, ...]:
  if value is None:
    return ()
  found, rows = value_of(where, "eos_token_id", value, IDS), hf_config.get("vocab_size", MOST_IDS)
  ids = found if isinstance(found, tuple) else (found,)
  for one in ids:
    if one >= rows:
      raise UserError(f"{where}: eos_token_id: {one} is none of the model's {rows} tokens, which count from 0")
  return tuple(one for one in ids if one >= 0)  # -1 is said for none


def _single_words(value: Any, path: Path) -> tuple[int, ...]:
  words = value_of(str(path), "bad_words_ids", value or [], list_of(_TOKENS))
  if any(len(word) != 1 for word in words):
    raise UserError(f"{path}: bad_words_ids: words of several tokens are not computed here; take them out")
  return tuple(word[0] for word in words)


def _texts(value: Any, path: Path) -> tuple[str, ...]:
  texts = value_of(str(path), "stop_strings", value or [], either(NAME, list_of(NAME, what="texts")))
  return (texts,) if isinstance(texts, str) else texts
