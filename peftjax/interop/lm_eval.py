"""A model class of lm-evaluation-harness (`lm_eval`), so that the harness runs on a peftjax model.

    python -m peftjax.interop.lm_eval --model peftjax --model_args pretrained=F,adapter=A --tasks ...

is the harness's own command line with this class registered as "peftjax"; in Python:

    lm = PeftJaxLM("packaged:smollm2-135m-instruct")
    lm_eval.simple_evaluate(lm, tasks=[...])

A text is scored by the chunked token losses, so that its logits never exist as a whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from peftjax.data.inputs.chat import load_chat_template
from peftjax.data.inputs.tokenizing import load_tokenizer
from peftjax.errors import UserError
from peftjax.extras import require
from peftjax.files import read_json
from peftjax.loading import folder_of, load
from peftjax.model import Model
from peftjax.models.family import CAUSAL_LM, SEQ2SEQ_LM
from peftjax.models.generation_config import stated
from peftjax.models.sampling import Sampling
from peftjax.models.token_loss import IGNORED
from peftjax.text_generation import complete

try:
  from lm_eval.api.model import TemplateLM
  from lm_eval.api.registry import register_model
  from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ModuleNotFoundError:
  require("peftjax.interop.lm_eval", "lm_eval", "eval")
  raise

_LENGTH_STEP = 32  # texts are padded in steps of this, so that few programs are compiled
_DEFAULT_LENGTH = 2048
Pair = tuple[list[int], list[int]]
"""Token ids of (context, continuation)."""


@register_model("peftjax")
class PeftJaxLM(TemplateLM):
  """A causal or an encoder-decoder language model for the harness.

  Args:
    pretrained: a model as `peftjax.load` takes it, or a loaded one.
    adapter: a PEFT adapter folder to add.
    tokenizer: a folder with the tokenizer, where the model's has none.
    dtype: how the base's leaves are stored.
    batch_size: texts at once.
    max_length: tokens of context and continuation; 0: what config.json says.

  Raises:
    UserError: a model that gives no distribution over tokens, or one of the folders is not what was expected.
  """

  def __init__(
    self,
    pretrained: str | Model,
    adapter: str = "",
    tokenizer: str = "",
    dtype: str = "float32",
    batch_size: int | str = 8,
    max_length: int | str = 0,
    max_gen_toks: int | str = 256,
    device: str | None = None,
    max_batch_size: int | None = None,
  ):
    super().__init__()
    del device, max_batch_size  # the harness gives them to every class; JAX chooses its device by itself
    self.model = load(pretrained, adapter or None, dtype) if isinstance(pretrained, str) else pretrained
    if self.model.task not in (CAUSAL_LM, SEQ2SEQ_LM):
      raise UserError(f"{self.model.architecture} gives no probabilities of tokens; the harness needs a language model")
    folder = folder_of(tokenizer) if tokenizer else self.model.folder
    if folder is None:
      raise UserError("the model came without a folder; name the tokenizer's")
    if not str(batch_size).isdigit():
      raise UserError(f"batch_size: expected a whole number, got {batch_size!r}")
    self.folder = folder
    self.backend = "causal" if self.model.task == CAUSAL_LM else "seq2seq"
    self.batch_size = max(1, int(batch_size))
    self.max_gen_toks = int(max_gen_toks)
    self.max_length = int(max_length) or self._longest()
    self._text = load_tokenizer(folder, max_length=2**30)

  def _longest(self) -> int:
    config = self.model.hf_config
    found = (config.get(name) for name in ("n_positions", "max_position_embeddings", "n_ctx"))
    return int(next((length for length in found if length), _DEFAULT_LENGTH))

  # Tokens -----------------------------------------------------------------------------------------------------------

  @property
  def eot_token_id(self) -> int:
    """The token that ends a text."""
    found = self._special("eos_token", "eos_token_id")
    if found is None:
      raise UserError(f"{self.folder} names no end-of-sequence token")
    return found

  @property
  def prefix_token_id(self) -> int:
    """What stands before a text without context."""
    found = self._special("bos_token", "bos_token_id")
    return self.eot_token_id if found is None else found

  def _special(self, name: str, entry: str) -> int | None:
    path = self.folder / "tokenizer_config.json"
    token = read_json(path).get(name) if path.is_file() else None
    if token is not None:
      return self._text.id_of(token["content"] if isinstance(token, dict) else token)
    found = self.model.hf_config.get(entry)
    return found[0] if isinstance(found, list) else found

  def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
    """Token ids; special ones as the tokenizer adds them, unless the text starts with one already."""
    del kwargs
    plain, _ = self._text.encode_with_places(string)
    has_prefix = bool(plain) and plain[0] == self.prefix_token_id and self.backend == "causal"
    if add_special_tokens is False or (add_special_tokens is None and has_prefix):
      return plain
    return self._text.encode([string]).ids[0].tolist()

  # Likelihoods ------------------------------------------------------------------------------------------------------

  def _loglikelihood_tokens(
    self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
  ) -> list[tuple[float, bool]]:
    """(log-likelihood of the continuation, whether greedy decoding would give it) of every request, in order."""
    del kwargs
    order = sorted(range(len(requests)), key=lambda at: -len(requests[at][1]) - len(requests[at][2]))
    found: dict[int, tuple[float, bool]] = {}
    for start in range(0, len(order), self.batch_size):
      rows = order[start : start + self.batch_size]
      scored = self._score([(requests[at][1], requests[at][2]) for at in rows])
      for at, answer in zip(rows, scored):
        found[at] = answer
        if requests[at][0] is not None:
          self.cache_hook.add_partial("loglikelihood", requests[at][0], answer)
    return [found[at] for at in range(len(requests))]

  def _score(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
    inputs = self._causal_inputs(pairs) if self.backend == "causal" else self._seq2seq_inputs(pairs)
    outputs = self.model(**inputs)
    wanted = inputs["targets"] != IGNORED
    losses, hits = (np.asarray(outputs[name], np.float64) for name in ("token_losses", "token_hits"))
    totals = -(losses * wanted).sum(axis=1)
    are_greedy = ((hits > 0) | ~wanted).all(axis=1)
    return [(float(total), bool(greedy)) for total, greedy in zip(totals[: len(pairs)], are_greedy)]

  def _causal_inputs(self, pairs: Sequence[Pair]) -> dict[str, np.ndarray]:
    texts = [(context + continuation)[-(self.max_length + 1) :] for context, continuation in pairs]
    targets = []
    for text, (_, continuation) in zip(texts, pairs):
      count = min(len(continuation), len(text) - 1)
      targets.append([IGNORED] * (len(text) - 1 - count) + text[len(text) - count :])
    length = self._padded_length(text[:-1] for text in texts)
    ids, mask = self._padded([text[:-1] for text in texts], length)
    return {"input_ids": ids, "attention_mask": mask, "targets": self._padded(targets, length, IGNORED)[0]}

  def _seq2seq_inputs(self, pairs: Sequence[Pair]) -> dict[str, np.ndarray]:
    contexts = [context[-self.max_length :] for context, _ in pairs]
    answers = [continuation[-self.max_length :] for _, continuation in pairs]
    ids, mask = self._padded(contexts, self._padded_length(contexts))
    targets, _ = self._padded(answers, self._padded_length(answers), IGNORED)
    return {"input_ids": ids, "attention_mask": mask, "targets": targets}

  def _padded_length(self, rows: Iterable[Sequence[int]]) -> int:
    longest = max(map(len, rows))
    rounded = -(-longest // _LENGTH_STEP) * _LENGTH_STEP
    return rounded if rounded <= self.max_length else longest

  def _padded(self, rows: Sequence[Sequence[int]], length: int, fill: int = 0) -> tuple[np.ndarray, np.ndarray]:
    ids = np.full((self.batch_size, length), fill, np.int32)
    mask = np.zeros((self.batch_size, length), np.int32)
    mask[:, 0] = 1  # a row that only fills the batch still attends to something
    for row, tokens in enumerate(rows):
      ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
    return ids, mask

  def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
    """The log-likelihood of whole texts, window by window, each token predicted once."""
    del disable_tqdm
    windows: list[tuple[int, Pair]] = []
    for at, request in enumerate(requests):
      (text,) = request.args
      rolling = get_rolling_token_windows(
        token_list=self.tok_encode(text), prefix_token=self.prefix_token_id, max_seq_len=self.max_length, context_len=1
      )
      windows += [(at, make_disjoint_window(window)) for window in rolling]
    scores = self._loglikelihood_tokens([(None, *pair) for _, pair in windows])
    totals = [0.0] * len(requests)
    for (at, _), (score, _) in zip(windows, scores):
      totals[at] += score
    for request, total in zip(requests, totals):
      self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
    return totals

  # Generation -------------------------------------------------------------------------------------------------------

  def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
    """What follows each context, up to a stop string."""
    del disable_tqdm
    found = [""] * len(requests)
    groups: dict[str, list[int]] = {}
    for at, request in enumerate(requests):
      groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(at)
    for settings, members in groups.items():
      sampling, stop = self._sampling(json.loads(settings))
      members = sorted(members, key=lambda at: -len(requests[at].args[0]))
      for start in range(0, len(members), self.batch_size):
        rows = members[start : start + self.batch_size]
        room = self.max_length - (sampling.max_new_tokens if self.backend == "causal" else 0)
        if room < 1:
          raise UserError(f"max_gen_toks={sampling.max_new_tokens} leaves no room in {self.max_length} positions")
        prompts = [self.tok_encode(requests[at].args[0])[-room:] for at in rows]
        texts = complete(self.model, self._text, prompts, sampling, stop=stop, key=jax.random.key(0))
        for at, text in zip(rows, texts):
          found[at] = text
          self.cache_hook.add_partial("generate_until", requests[at].args, text)
    return found

  def _sampling(self, settings: dict[str, Any]) -> tuple[Sampling, tuple[str, ...]]:
    until = settings.pop("until", None) or []
    limits = [settings.pop(name, None) for name in ("max_gen_toks", "max_new_tokens")]
    is_greedy = not settings.pop("do_sample", float(settings.get("temperature", 0.0)) > 0.0)
    known = ("temperature", "top_k", "top_p", "repetition_penalty", "num_beams", "length_penalty")
    for name in settings:
      if name not in known:
        raise UserError(f"generation_kwargs: peftjax has no {name!r}; it has until, max_gen_toks, {', '.join(known)}")
    given = {name: value for name, value in settings.items() if not (is_greedy and name in ("temperature", "top_k"))}
    if is_greedy:
      given.pop("top_p", None)
    elif not given.get("temperature"):
      given["temperature"] = 1.0
    said = stated(self.folder, self.model.hf_config)
    longest = next((int(limit) for limit in limits if limit), self.max_gen_toks)
    if not is_greedy:
      said.check_drawing()
      given = {**said.drawing, **given}
    least = said.least(None if self.backend == "causal" else 1, longest)
    given = {**said.rules, **least, **(said.beams if is_greedy else {}), **given}
    ends = tuple(sorted({self.eot_token_id, *said.eos_ids}))
    sampling = Sampling(max_new_tokens=longest, eos_ids=ends, pad_id=self._text.pad_id, **given)
    return sampling, (until,) if isinstance(until, str) else tuple(until)

  # Chat -------------------------------------------------------------------------------------------------------------

  @property
  def tokenizer_name(self) -> str:
    """Names the tokenizer in the harness's cache of requests."""
    return self._text.fingerprint()

  def chat_template(self, chat_template: bool | str = False) -> str | None:
    """The template's text, for the harness's record."""
    return load_chat_template(self.folder).source if chat_template else None

  def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
    """The conversation as one text."""
    return load_chat_template(self.folder).render(chat_history, asks_for_answer=add_generation_prompt)

  def get_model_info(self) -> dict[str, Any]:
    """What the harness writes beside its results."""
    return {"model_architecture": self.model.architecture, "model_folder": str(Path(self.folder).name)}


def main() -> None:
  """The harness's command line, which now knows the model "peftjax"."""
  from lm_eval.__main__ import cli_evaluate

  cli_evaluate()


if __name__ == "__main__":
  main()
