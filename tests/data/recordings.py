"""Recordings made on the spot, and folders of them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import soundfile
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

TONES = {"high": 1000.0, "low": 250.0, "middle": 500.0}  # Hz


def tone(
  hertz: float = 440.0, seconds: float = 0.5, rate: int = 16_000, seed: int = 0, noise: float = 0.02
) -> np.ndarray:
  """float32 [samples]: a tone with a little noise."""
  time = np.arange(round(seconds * rate)) / rate
  random = np.random.default_rng(seed)
  return (0.5 * np.sin(2 * np.pi * hertz * time) + noise * random.normal(size=len(time))).astype(np.float32)


def encoded(samples: np.ndarray, rate: int = 16_000, kind: str = "WAV", subtype: str | None = None) -> bytes:
  """The bytes of a file of sound."""
  buffer = io.BytesIO()
  soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
  return buffer.getvalue()


def toned(folder: Path, splits: dict[str, int], classes: tuple[str, ...] = tuple(TONES), rate: int = 8000) -> Path:
  """FOLDER/SPLIT/CLASS/N.wav with `splits[SPLIT]` recordings a class: its tone, shorter or longer."""
  for split, count in splits.items():
    for name in classes:
      (folder / split / name).mkdir(parents=True, exist_ok=True)
      for index in range(count):
        samples = tone(TONES[name], 0.12 + 0.02 * (index % 3), rate, seed=len(name) + 100 * index + len(split))
        (folder / split / name / f"{index}.wav").write_bytes(encoded(samples, rate))
  return folder


WHISPER = {
  "model_type": "whisper",
  "architectures": ["WhisperForConditionalGeneration"],
  "num_mel_bins": 16,
  "d_model": 16,
  "encoder_layers": 2,
  "decoder_layers": 2,
  "encoder_attention_heads": 2,
  "decoder_attention_heads": 2,
  "encoder_ffn_dim": 24,
  "decoder_ffn_dim": 24,
  "max_source_positions": 10,
  "max_target_positions": 24,
  "classifier_proj_size": 12,
}
ENDS = ("<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>")


def whisper_folder(folder: Path, **changed: object) -> Path:
  """A Whisper's config.json with a tokenizer of single bytes and no weights."""
  folder.mkdir(parents=True)
  letters = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
  tokenizer = Tokenizer(models.BPE(letters, []))
  tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
  tokenizer.add_special_tokens(list(ENDS))
  tokenizer.save(str(folder / "tokenizer.json"))
  end, start, _ = (tokenizer.token_to_id(name) for name in ENDS)
  ids = {"vocab_size": len(letters) + len(ENDS), "eos_token_id": end, "pad_token_id": end, "bos_token_id": start}
  settings = {"tokenizer_class": "WhisperTokenizer", **dict.fromkeys(("eos_token", "pad_token", "bos_token"), ENDS[0])}
  for name, content in (
    ("config.json", {**WHISPER, **ids, "decoder_start_token_id": start, **changed}),
    ("tokenizer_config.json", settings),
    ("generation_config.json", {"eos_token_id": end, "is_multilingual": False}),
  ):
    (folder / name).write_text(json.dumps(content))
  return folder
