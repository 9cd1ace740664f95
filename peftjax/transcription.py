"""Text from speech: recordings in, what is said in them out, window by window."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from peftjax.data.inputs.log_mel import LogMel, read_log_mel
from peftjax.data.inputs.sound import decode, resampled
from peftjax.data.inputs.speech import Form, first_tokens
from peftjax.data.inputs.tokenizing import load_tokenizer
from peftjax.data.sources.media import AUDIO, medium_of, read
from peftjax.errors import UserError
from peftjax.kinds import whole_of_text
from peftjax.loading import folder_of, load
from peftjax.model import Model
from peftjax.models.generate import generate
from peftjax.models.generation_config import stated
from peftjax.models.layers import Runtime
from peftjax.models.sampling import Sampling

_NOT_OURS = ("forced_decoder_ids",)  # of generation_config.json: language and task are settings here


def windows(samples: np.ndarray, log_mel: LogMel) -> np.ndarray:
  """float32 [windows, bins, frames]: a recording from its start on, one window after the other, the last filled up."""
  starts = range(0, len(samples), log_mel.samples)
  return np.stack([log_mel(log_mel.windowed(samples[start:])) for start in starts])


def sampling_of(model: Model, form: Form, max_new_tokens: int = 0, num_beams: int = 1) -> Sampling:
  """How the model writes: as its generation_config.json says, up to `max_new_tokens`, or 0: its positions."""
  said = stated(model.folder, model.hf_config, passed_over=_NOT_OURS)
  room = model.config.max_target_positions - len(form.first)
  end = () if form.tokenizer.eos_id is None else (form.tokenizer.eos_id,)
  beams = {name: value for name, value in said.beams.items() if name != "num_beams"} if num_beams > 1 else {}
  return Sampling(
    **{**said.rules, **beams},
    max_new_tokens=min(max_new_tokens or room, room),
    num_beams=num_beams,
    eos_ids=tuple(sorted({*said.eos_ids, *end})),
    pad_id=form.tokenizer.pad_id,
  )


def transcribe(
  model: Model,
  recordings: Sequence[np.ndarray],
  form: Form,
  sampling: Sampling,
  batch_size: int = 8,
  on_text: Callable[[int, str], None] | None = None,
) -> list[str]:
  """What is said in each recording, float32 samples at the model's rate of any length.

  A longer recording than the model's window is read in windows next to each other, and their texts are joined by
  spaces: a word that is cut by a border may be lost.

  Args:
    on_text: called with (recording, text) of every window, in order.
  """
  parts = [(at, window) for at, one in enumerate(recordings) for window in windows(one, form.log_mel)]
  texts: list[list[str]] = [[] for _ in recordings]
  for start in range(0, len(parts), batch_size):
    chosen = parts[start : start + batch_size]
    features = np.stack([window for _, window in chosen])
    filled = np.concatenate([features, np.repeat(features[-1:], batch_size - len(chosen), axis=0)])  # one program
    read = {"input_features": jnp.asarray(filled if len(parts) > batch_size else features)}
    rows = generate(model, [form.first] * len(read["input_features"]), sampling, encoder_inputs=read)
    for (at, _), row in zip(chosen, rows):
      text = form.tokenizer.decode(row).strip()
      texts[at].append(text)
      if on_text is not None:
        on_text(at, text)
  return [" ".join(filter(None, one)) for one in texts]


def normalised(text: str) -> str:
  """As transcripts are compared: lower case, nothing in brackets, letters, digits and single spaces alone.

  Whisper's normalisation for languages other than English (arXiv 2212.04356, appendix C); numbers stay as they are
  written.

  >>> normalised("Mr. Ōe said [laughs] “it’s 4 o'clock”")
  'mr ōe said it s 4 o clock'
  """
  text = re.sub(r"[<\[][^>\]]*[>\]]", "", text.lower())
  text = re.sub(r"\(([^)]+?)\)", "", text)
  kept = (" " if unicodedata.category(one)[0] in "MSP" else one for one in unicodedata.normalize("NFKC", text))
  return re.sub(r"\s+", " ", "".join(kept).lower()).strip()


def from_flags(flags: Any, show: Callable[[str], None] | None) -> dict[str, Any]:
  """What `peftjax transcribe` does: {"text": ..., "audio": FILE}.

  Args:
    flags: the command line's: model, adapter, audio, language, translate, num_beams, max_new_tokens.
    show: called with the text of every window.

  Raises:
    UserError: a folder, the file or a flag is not what was expected.
  """
  path = Path(flags.audio).expanduser()
  if medium_of(path.name) is not AUDIO:
    raise UserError(f"transcribe --audio: {flags.audio!r:.200} is no recording by its ending; "
                    f"expected {', '.join(AUDIO.endings)}")  # fmt: skip
  most, beams = _count(flags.max_new_tokens), _count(flags.num_beams) or 1
  folder = folder_of(flags.model)
  log_mel = read_log_mel(folder)
  samples, rate = decode(read(path), str(path))
  tokenizer = load_tokenizer(folder, max_length=2**30)
  form = Form(log_mel, tokenizer, tuple(first_tokens(folder, tokenizer, flags.language, bool(flags.translate))))
  model = load(
    folder, flags.adapter or None, runtime=Runtime(scan_layers=False), other_base=getattr(flags, "other_base", False)
  )
  sampling = sampling_of(model, form, most, beams)
  on_text = None if show is None else lambda _, text: show(text + " ")
  (text,) = transcribe(model, [resampled(samples, rate, log_mel.rate)], form, sampling, 1, on_text)
  return {"text": text, "audio": str(path)}


def _count(text: str) -> int:
  found = whole_of_text(text or "0", 0, 2**31 - 1)
  if found is None:
    raise UserError(f"transcribe: expected a whole number, got {text!r:.40}")
  return found
