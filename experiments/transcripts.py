"""What a Whisper writes of a data set's recordings as it is, without training, beside what is said.

    python -m experiments.transcripts --model=packaged:whisper-tiny.en --data=packaged:ljspeech_samples --split=test

prints one JSON line a recording and, at last, the word and character error rates as a run's evaluator computes them.
"""

from __future__ import annotations

import argparse
import json

from peftjax.data import open_data
from peftjax.data.inputs.log_mel import read_log_mel
from peftjax.data.inputs.sound import decode, resampled
from peftjax.data.inputs.speech import Form, first_tokens
from peftjax.data.inputs.tokenizing import load_tokenizer
from peftjax.loading import folder_of, load
from peftjax.tasks.text_metrics import score
from peftjax.transcription import normalised, sampling_of, transcribe


def main() -> None:
  """Runs the command line."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--model", default="packaged:whisper-tiny.en")
  parser.add_argument("--data", default="packaged:ljspeech_samples")
  parser.add_argument("--split", default="test")
  parser.add_argument("--language", default="")
  given = parser.parse_args()
  folder = folder_of(given.model)
  tokenizer = load_tokenizer(folder, 2**30)
  form = Form(read_log_mel(folder), tokenizer, tuple(first_tokens(folder, tokenizer, given.language)))
  source = open_data(given.data).split(given.split)
  examples = [source[at] for at in range(len(source))]
  heard = [decode(one["audio"], str(one["where"]), int(one.get("sampling_rate", 0))) for one in examples]
  recordings = [resampled(samples, rate, form.log_mel.rate) for samples, rate in heard]
  model = load(folder)
  texts = transcribe(model, recordings, form, sampling_of(model, form), batch_size=4)
  for one, text in zip(examples, texts, strict=True):
    print(json.dumps({"text": text, "target": one["text"]}, ensure_ascii=False))
  found, wanted = ([normalised(text) for text in side] for side in (texts, [one["text"] for one in examples]))
  print(json.dumps(score(("word_error_rate", "character_error_rate"), found, wanted)))


if __name__ == "__main__":
  main()
