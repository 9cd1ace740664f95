"""From a recording as it is stored to one channel of samples at the rate that a model reads."""

from __future__ import annotations

import io
import math
import struct
from typing import Any

import numpy as np

from peftjax.errors import UserError

FORMATS = ("WAV", "WAVEX", "RF64", "FLAC")
LEAST_RATE, MOST_RATE = 1_000, 768_000  # samples a second of what is read
MOST_SAMPLES = 2**27  # of one recording, over all channels: above two hours at 16 kHz
_UNKNOWN = 0xFFFFFFFF  # the size that programs write which do not know yet how much will come


def decode(audio: Any, where: str, rate: int = 0) -> tuple[np.ndarray, int]:
  """(float32 [samples] in about [-1, 1], the mean of all channels; samples a second).

  Args:
    audio: the bytes of a WAV or FLAC file, or samples [n] or [n, channels], integers in their type's range (int64 in
      that of int16, as TFDS stores them) or floats.
    where: names it in errors: its file.
    rate: samples a second of an array.

  Raises:
    UserError: it is cut off, damaged, empty, of no format that is read, not finite, or has an impossible rate.
  """
  samples, rate = _of_file(audio, where) if isinstance(audio, bytes) else (_of_array(audio), rate)
  check_rate(rate, where)
  if samples.ndim not in (1, 2) or not samples.size:
    raise UserError(f"{where}: the recording has no samples; it lasts 0 seconds")
  if samples.size > MOST_SAMPLES:
    raise UserError(f"{where}: {samples.size:,} samples; at most {MOST_SAMPLES:,} are read")
  if not np.isfinite(samples).all():
    raise UserError(f"{where}: the recording holds NaN or infinite samples")
  return (samples if samples.ndim == 1 else samples.mean(axis=1)), rate


def check_rate(rate: int, where: str) -> None:
  """Raises `UserError` for samples a second that no recording has."""
  if not LEAST_RATE <= rate <= MOST_RATE:
    raise UserError(f"{where}: a sample rate of {rate} Hz; expected {LEAST_RATE:,} to {MOST_RATE:,}")


def _of_array(audio: Any) -> np.ndarray:
  array = np.asarray(audio)
  if np.issubdtype(array.dtype, np.floating):
    return array.astype(np.float32)
  if array.dtype == np.uint8:
    return (array.astype(np.float32) - 128) / 128
  kind = np.int16 if array.dtype == np.int64 else array.dtype
  return (array / -float(np.iinfo(kind).min)).astype(np.float32)


def _of_file(content: bytes, where: str) -> tuple[np.ndarray, int]:
  import soundfile  # loads a library in C, which only recordings need

  if not content:
    raise UserError(f"{where}: it is empty; a recording was expected")
  if content[:4] not in (b"RIFF", b"RF64", b"fLaC"):  # before the library guesses among formats that are not read
    raise UserError(f"{where}: no WAV or FLAC file by its first bytes")
  _check_whole(content, where)
  try:
    with soundfile.SoundFile(io.BytesIO(content)) as file:
      if file.format not in FORMATS:
        raise UserError(f"{where}: a {file.format} file; WAV or FLAC was expected")
      check_rate(file.samplerate, where)
      if file.frames > 2**62:
        raise UserError(f"{where}: its header does not say how many samples it has; write it again as WAV")
      if file.frames * file.channels > MOST_SAMPLES:
        raise UserError(f"{where}: {file.frames * file.channels:,} samples; at most {MOST_SAMPLES:,} are read")
      samples = file.read(dtype="float32")
      if len(samples) != file.frames:
        raise UserError(f"{where}: the recording is cut off: {len(samples):,} of {file.frames:,} samples are there")
      return samples, file.samplerate
  except (soundfile.SoundFileError, RuntimeError, ValueError, MemoryError) as error:
    why = str(getattr(error, "error_string", error)).strip() or type(error).__name__
    raise UserError(f"{where}: the recording cannot be read: {why.splitlines()[0]}") from None


def _check_whole(content: bytes, where: str) -> None:
  """Raises `UserError` for a WAV file without a rate, or whose samples end before its header says; readers would take
  what is there."""
  if content[:4] not in (b"RIFF", b"RF64"):
    return
  at, long = 12, _UNKNOWN
  while at + 8 <= len(content):
    name, size = struct.unpack_from("<4sI", content, at)
    if name == b"fmt " and at + 16 <= len(content):
      check_rate(struct.unpack_from("<I", content, at + 12)[0], where)
    if name == b"ds64" and at + 24 <= len(content):
      (long,) = struct.unpack_from("<Q", content, at + 16)  # of samples; the 32 bits of "data" then hold `_UNKNOWN`
    if name == b"data":
      size = long if size == _UNKNOWN else size
      held = len(content) - at - 8
      if size > held and size != _UNKNOWN:
        raise UserError(f"{where}: the recording is cut off: {held:,} of {size:,} bytes of samples are there")
      return
    at += 8 + size + size % 2


def seconds_of(audio: Any, rate: int = 0) -> float:
  """How long a recording is, as `decode` takes it, by its header; 0.0 of one that cannot be read."""
  if not isinstance(audio, bytes):
    return len(np.asarray(audio)) / rate if rate else 0.0
  import soundfile

  try:
    with soundfile.SoundFile(io.BytesIO(audio)) as file:
      return float(file.frames / file.samplerate)
  except (soundfile.SoundFileError, RuntimeError, ValueError, ZeroDivisionError):
    return 0.0


def resampled(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
  """The samples at another rate, by a polyphase filter (`scipy.signal.resample_poly`)."""
  if rate == wanted:
    return samples
  from scipy import signal  # slow to import

  shared = math.gcd(rate, wanted)
  found = signal.resample_poly(samples, wanted // shared, rate // shared)
  return np.asarray(found, np.float32)
