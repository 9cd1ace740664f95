"""Transcripts: texts as they are compared, long recordings in windows, the verb and what is wrong with its flags."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from peftjax import cli
from peftjax.data.inputs.log_mel import LogMel, read_log_mel
from peftjax.data.inputs.speech import Form, first_tokens
from peftjax.data.inputs.tokenizing import load_tokenizer
from peftjax.errors import UserError
from peftjax.loading import from_config, initialise
from peftjax.models.pretrained import read_config
from peftjax.train.evaluators.transcribe import worst
from peftjax.transcription import normalised, sampling_of, transcribe, windows
from tests.data.recordings import encoded, tone, whisper_folder

TEXTS = [
  "Mr. Ōe said [laughs] “it’s 4 o'clock”",
  "A (whispered) word,  another\n<unk> line",
  "ﬁnal £5—10%; naïve élan",
  "日本語、テスト。",
  "",
  "already plain",
]


@pytest.mark.parametrize("text", TEXTS)
def test_texts_are_compared_as_whispers_authors_do(text):
  assert normalised(text) == BasicTextNormalizer()(text).strip()


def test_rows_of_recordings_in_which_nothing_is_said_have_no_rate_and_come_first_where_something_is_written():
  rows = [{"word_error_rate": rate, "text": text} for rate, text in ((0.5, "a"), (None, ""), (2.0, "b"), (None, "c"))]
  assert [row["text"] for row in sorted(rows, key=worst)] == ["c", "b", "a", ""]


def test_a_long_recording_is_read_in_windows_side_by_side():
  log_mel = LogMel(seconds=0.2)
  samples = tone(seconds=0.5)
  found = windows(samples, log_mel)
  assert found.shape == (3, 80, 20)
  np.testing.assert_array_equal(found[1], log_mel(samples[3200:6400]))
  assert windows(samples[:3200], log_mel).shape[0] == 1


def test_the_verb_writes_what_the_windows_give(tmp_path, capsys):
  folder = whisper_folder(tmp_path / "whisper")
  made = initialise(from_config(read_config(folder)), jax.random.key(0))
  made.save(folder, overwrite=True)
  samples = tone(seconds=0.5)
  (tmp_path / "a.flac").write_bytes(encoded(samples, kind="FLAC", subtype="PCM_24"))
  given = [f"--model={folder}", f"--audio={tmp_path / 'a.flac'}", "--max_new_tokens=3"]
  assert cli.main(["transcribe", "--json", *given]) == 0
  found = json.loads(capsys.readouterr().out)
  tokenizer = load_tokenizer(folder, 2**30)
  form = Form(read_log_mel(folder), tokenizer, tuple(first_tokens(folder, tokenizer)))
  parts: list[str] = []
  sampling = sampling_of(made, form, 3)
  text = transcribe(made, [samples], form, sampling, 1, lambda _, part: parts.append(part))[0]
  assert found == {"text": text, "audio": str(tmp_path / "a.flac")} and len(parts) == 3
  assert text == " ".join(filter(None, parts))


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    ({"audio": "a.mp3"}, "'a.mp3' is no recording by its ending; expected .wav, .flac"),
    ({"audio": "none.wav"}, "cannot read none.wav: No such file"),
    ({"language": "de"}, "input.language='de': this model knows English alone"),
    ({"max_new_tokens": "few"}, "expected a whole number, got 'few'"),
  ],
)
def test_flags_that_make_no_sense_take_one_line(tmp_path, capsys, flags, said):
  (tmp_path / "a.wav").write_bytes(encoded(tone()))
  given = {"model": whisper_folder(tmp_path / "whisper"), "audio": tmp_path / "a.wav", **flags}
  assert cli.main(["transcribe", *(f"--{name}={value}" for name, value in given.items())]) == 2
  (line,) = capsys.readouterr().err.strip().splitlines()
  assert said in line


def test_a_multilingual_model_asks_for_the_language(tmp_path):
  folder = whisper_folder(tmp_path / "whisper")
  said = {"is_multilingual": True, "lang_to_id": {"<|en|>": 1, "<|de|>": 2}}
  (folder / "generation_config.json").write_text(json.dumps(said))
  tokenizer = load_tokenizer(folder, 2**30)
  with pytest.raises(UserError, match="input.language='': which language is spoken"):
    first_tokens(folder, tokenizer)
  with pytest.raises(UserError, match=r"input.language='dee': .*did you mean 'de'"):
    first_tokens(folder, tokenizer, "dee")
  with pytest.raises(UserError, match=r"the tokenizer has no <\|de\|>"):
    first_tokens(folder, tokenizer, "de")
