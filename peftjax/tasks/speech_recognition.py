"""Speech recognition: a decoder writes what is said in a recording."""

from __future__ import annotations

from peftjax.tasks.seq2seq_lm import Seq2SeqLM


class SpeechRecognition(Seq2SeqLM):
  """Cross entropy of the text's tokens `labels` [B, L] int32, given the recording and the text before each.

  Metrics as of `Seq2SeqLM`; the evaluator `transcribe` adds the error rates of what the model writes.
  """

  name = "speech_recognition"
  head = "speech_recognition"
  fields = ("audio", "text")
  input = "speech"
  evaluators = ("predict", "transcribe")
  writes_text = False  # of a prompt
