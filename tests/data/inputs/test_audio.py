"""The input `audio`: features against transformers', files of sound, resampling, augmentation, what is no recording."""

from __future__ import annotations

import json
import re
import struct

import numpy as np
import pytest
from transformers import WhisperFeatureExtractor

from peftjax import tasks
from peftjax.config import default
from peftjax.data import open_data
from peftjax.data.inputs.audio import Audio
from peftjax.data.inputs.log_mel import LogMel, log_mel_of, read_log_mel
from peftjax.data.inputs.sound import decode, resampled
from peftjax.data.inputs.speech import Speech
from peftjax.data.measuring import Measured
from peftjax.data.reading import example_rng
from peftjax.data.sources.types import Header
from peftjax.errors import UserError
from tests.data.recordings import encoded, tone, toned, whisper_folder

EXTRACTORS = {
  "usual": {},
  "large-v3": {"feature_size": 128},
  "odd": {"chunk_length": 2, "hop_length": 93, "n_fft": 256, "feature_size": 21, "padding_value": 0.01},
  "slow": {"sampling_rate": 8000, "chunk_length": 3, "feature_size": 40},
}


@pytest.mark.parametrize("name", EXTRACTORS)
@pytest.mark.parametrize("seconds", [0.31, 40.0])
def test_features_are_transformers(name, seconds):
  reference = WhisperFeatureExtractor(**EXTRACTORS[name])
  ours = log_mel_of(json.loads(reference.to_json_string()), name)
  recording = tone(seconds=seconds, rate=ours.rate, noise=0.1)
  found = ours(ours.windowed(recording))
  assert found.dtype == np.float32 and found.shape == (ours.bins, ours.frames)
  exact = reference._np_extract_fbank_features(ours.windowed(recording)[None], "cpu")[0]  # in float64
  np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-6)
  by_torch = reference(recording, sampling_rate=ours.rate, return_tensors="np")["input_features"][0]
  # In float32: where a filter holds next to nothing, torch's transform is off its own float64 by more.
  assert np.quantile(np.abs(found - by_torch), 0.9999) < 1e-5
  np.testing.assert_allclose(found, by_torch, atol=1e-4)


def test_silence_has_features():
  reference, ours = WhisperFeatureExtractor(chunk_length=1), LogMel(seconds=1)
  expected = reference(np.zeros(99, np.float32), sampling_rate=16_000, return_tensors="np")["input_features"][0]
  np.testing.assert_allclose(ours(ours.windowed(np.zeros(99, np.float32))), expected, atol=1e-6)


def test_a_model_folder_without_a_processor_has_whispers(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps({"model_type": "whisper", "num_mel_bins": 128}))
  assert read_log_mel(tmp_path) == LogMel(bins=128)
  (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
  with pytest.raises(UserError, match="has no preprocessor_config.json, and 'vit' models read no sound"):
    read_log_mel(tmp_path)


@pytest.mark.parametrize(
  ("given", "said"),
  [
    ({"feature_extractor_type": "Wav2Vec2FeatureExtractor"}, "'Wav2Vec2FeatureExtractor' is not supported; "),
    ({"sampling_rate": 3}, "sampling_rate=3: expected a whole number from 1000 to 768000"),
    ({"hop_length": 0}, "hop_length=0: expected a whole number from 1"),
    ({"feature_size": "80"}, 'feature_size="80": expected a whole number'),
    ({"dither": 0.1}, "dither=0.1 is not computed here; expected 0"),
    ({"padding_side": "left"}, "padding_side='left' is not computed here; expected 'right'"),
    ({"chunk_length": 3600, "hop_length": 1}, "give 80 x 57600000 features"),
  ],
)
def test_a_processor_that_is_none(given, said):
  with pytest.raises(UserError, match=re.escape(said)):
    log_mel_of(given, "f")


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
@pytest.mark.parametrize(("subtype", "step"), [("PCM_16", 2**-15), ("PCM_24", 2**-23)])
def test_files_are_read_as_they_were_written(kind, subtype, step):
  samples = tone(rate=11_025)
  found, rate = decode(encoded(samples, 11_025, kind, subtype), "a.wav")
  assert rate == 11_025 and found.dtype == np.float32
  np.testing.assert_allclose(found, samples, atol=1.01 * step)


def test_channels_are_averaged_and_arrays_scaled():
  left, right = tone(300.0), tone(500.0)
  both = np.stack([left, right], axis=1)
  found, _ = decode(encoded(both, subtype="FLOAT"), "a.wav")
  np.testing.assert_allclose(found, (left + right) / 2, atol=1e-6)
  np.testing.assert_array_equal(decode(np.array([-32768, 16384], np.int16), "a", 8000)[0], [-1, 0.5])
  np.testing.assert_array_equal(decode(np.array([-32768, 16384], np.int64), "a", 8000)[0], [-1, 0.5])
  np.testing.assert_array_equal(decode(np.array([0, 192], np.uint8), "a", 8000)[0], [-1, 0.5])


@pytest.mark.parametrize(("rate", "wanted"), [(8000, 16_000), (44_100, 16_000), (22_050, 16_000), (48_000, 8000)])
def test_a_tone_stays_a_tone_at_another_rate(rate, wanted):
  before = tone(700.0, 1.0, rate, noise=0.0)
  after = resampled(before, rate, wanted)
  assert len(after) == -(-len(before) * wanted // rate)
  middle = slice(wanted // 10, -wanted // 10)
  np.testing.assert_allclose(after[middle], tone(700.0, 1.0, wanted, noise=0.0)[: len(after)][middle], atol=2e-3)


WAV = encoded(tone(), kind="WAV", subtype="PCM_16")
FLAC = encoded(tone(), kind="FLAC")


RF64 = encoded(tone(), kind="RF64")
AT = FLAC.index(b"fLaC") + 8 + 13  # of 36 bits that count the samples; programs which write as they hear leave them 0
UNTOLD = FLAC[:AT] + bytes([FLAC[AT] & 0xF0]) + bytes(4) + FLAC[AT + 5 :]


def with_rate(rate):
  return WAV[:24] + struct.pack("<I", rate) + WAV[28:]


@pytest.mark.parametrize(
  ("content", "said"),
  [
    (b"", "it is empty; a recording was expected"),
    (b"no sound at all", "no WAV or FLAC file by its first bytes"),
    (WAV[:-100], "the recording is cut off: 15,900 of 16,000 bytes"),
    (RF64[:-100], "the recording is cut off: 15,900 of 16,000 bytes"),
    (UNTOLD, "its header does not say how many samples it has; write it again as WAV"),
    (WAV[:30], "the recording cannot be read"),
    (FLAC[:-900], "the recording"),
    (FLAC[:60], "the recording"),
    (with_rate(0), "a sample rate of 0 Hz; expected 1,000 to 768,000"),
    (with_rate(4_000_000_000), "a sample rate of 4000000000 Hz"),
    (encoded(np.zeros(0, np.float32)), "the recording has no samples; it lasts 0 seconds"),
    (encoded(np.array([0.1, np.nan], np.float32), subtype="FLOAT"), "holds NaN or infinite samples"),
    (encoded(np.array([0.1, np.inf], np.float32), subtype="FLOAT"), "holds NaN or infinite samples"),
    (np.zeros(5, np.int16), "a sample rate of 0 Hz"),
  ],
  ids=range(14),  # libsndfile writes the time into what it encodes
)
def test_what_is_no_recording_takes_one_line_with_its_file(content, said):
  with pytest.raises(UserError, match=rf"^a\.wav: .*{re.escape(said)}") as error:
    decode(content, "a.wav")
  assert "\n" not in str(error.value) and "object at" not in str(error.value)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "RF64"])
def test_changed_bytes_are_read_or_take_one_line(kind):
  random = np.random.default_rng(0)
  whole = encoded(tone(seconds=0.05), kind=kind)
  said = []
  for _ in range(200):
    content = bytearray(whole)
    for at in random.integers(0, 80, 3):
      content[at : at + random.integers(0, 3)] = random.integers(
        0, 256, random.integers(0, 3), dtype=np.uint8
      ).tobytes()
    try:
      samples, _ = decode(bytes(content), "a.wav")
      assert np.isfinite(samples).all()
    except UserError as error:
      said.append(str(error))
  assert said and all(one.startswith("a.wav: ") and "\n" not in one and "object at" not in one for one in said)


def inputs(tmp_path, **settings):
  (tmp_path / "config.json").write_text(json.dumps({"model_type": "whisper", "max_source_positions": 50}))
  config = default()
  with config.unlocked():
    config.input.update(settings)
  header = Header("sounds", label_names=("a", "b", "c"), fields=("audio", "label"), label_kind="class")
  return Audio(config, header, tasks.make("audio_classification", header.label_names), tmp_path)


def test_an_example_is_resampled_and_cut_or_filled_up(tmp_path):
  read = inputs(tmp_path)
  assert {name: one.shape for name, one in read.spec(3, 0).items()} == {"input_features": (3, 80, 100)}
  for seconds in (0.2, 5.0):
    example = {"audio": encoded(tone(seconds=seconds, rate=8000), 8000), "where": "a.wav"}
    found = read.encode(example, None)["input_features"]
    log_mel = LogMel(seconds=1)
    samples = resampled(decode(example["audio"], "a.wav")[0], 8000, 16_000)
    np.testing.assert_array_equal(found, log_mel(log_mel.windowed(samples)))
  short = inputs(tmp_path, seconds=0.333)
  assert short.log_mel.frames == 32 and short.fingerprint() != read.fingerprint()


def test_augmentation_is_a_function_of_seed_epoch_and_example(tmp_path):
  read = inputs(tmp_path, shift=0.2, time_masks=2, time_width=20, mel_masks=1, mel_width=30)
  example = {"audio": tone(), "where": "a", "sampling_rate": 16_000}

  def features(*key):
    return read.encode(example, example_rng(*key))["input_features"]

  np.testing.assert_array_equal(features(1, 2, 3), features(1, 2, 3))
  for other in ((0, 2, 3), (1, 1, 3), (1, 2, 4)):
    assert np.abs(features(1, 2, 3) - features(*other)).max() > 0.1
  plain = inputs(tmp_path).encode(example, None)["input_features"]
  np.testing.assert_array_equal(read.encode(example, None)["input_features"], plain)
  masked = inputs(tmp_path, time_masks=3, time_width=20).encode(example, example_rng(0, 0, 0))["input_features"]
  changed = (masked != plain).any(axis=0)
  assert 0 < changed.sum() <= 60 and not changed[50:].any()  # within the recording, which lasts 50 frames
  assert (masked[:, changed] == 0).all()


@pytest.mark.parametrize(
  ("settings", "said"),
  [
    ({"seconds": 2.0}, "input.seconds=2: the model reads 1 seconds at most"),
    ({"time_masks": 1.5}, "input.time_masks=1.5: expected a whole number from 0 to 100"),
    ({"shift": -1}, "input.shift=-1: expected a number from 0 to 3600"),
    ({"flip": True}, "input.flip: no such field of Audio"),
  ],
)
def test_a_setting_that_makes_no_sense(tmp_path, settings, said):
  with pytest.raises(UserError, match=re.escape(said)):
    inputs(tmp_path, **settings).spec(1, 0)


def test_recordings_that_are_longer_than_the_window_of_their_text_are_told(tmp_path):
  folder = whisper_folder(tmp_path / "whisper")
  config = default()
  with config.unlocked():
    config.input.update({"seconds": 0.2})
  header = Header("said", fields=("audio", "text"))
  read = Speech(config, header, tasks.make("speech_recognition", ()), folder)
  examples = [
    {"audio": encoded(tone(seconds=one, rate=8000), 8000, kind="FLAC"), "text": "a"} for one in (0.1, 0.2, 0.3)
  ]
  examples += [{"audio": tone(seconds=one), "sampling_rate": 16_000, "text": "a"} for one in (0.15, 0.25)]
  sizes = read.sizes([*examples, {"audio": b"none", "text": "a"}])
  assert sizes.lost == 2 and sizes.cut == 0
  (line,) = read.notes(Measured(sizes.lengths, sizes.cut, sizes.lost))
  assert line.startswith("train: 2 of 6 recordings are longer than a window of 0.2 seconds")
  assert not read.notes(Measured(sizes.lengths, 0, 0))


def test_a_folder_of_recordings_by_class(tmp_path):
  data = open_data(f"folder:{toned(tmp_path / 'd', {'train': 2, 'test': 1})}")
  assert (data.task, data.fields, data.splits) == ("audio_classification", ("audio", "label"), {"train": 6, "test": 3})
  example = data.split("test")[1]
  assert example["label"] == 1 and decode(example["audio"], example["where"])[1] == 8000
  (tmp_path / "d" / "test" / "deep").mkdir()
  (tmp_path / "d" / "test" / "deep" / "0.wav").write_bytes(WAV)
  with pytest.raises(UserError, match=r"test/deep/0.wav: class 'deep' is none of the 3 of the training split"):
    open_data(f"folder:{tmp_path / 'd'}")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("text", ["text", "transcription"])
def test_a_table_of_recordings_and_what_is_said_in_them(tmp_path, kind, text):
  rows = [{"file_name": f"{index}.flac", text: f"word {index}"} for index in range(3)]
  for split in ("train", "test"):
    (tmp_path / split).mkdir()
    for index in range(3):
      (tmp_path / split / f"{index}.flac").write_bytes(FLAC)
    lines = [json.dumps(row) for row in rows]
    if kind == "csv":
      lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    (tmp_path / split / f"metadata.{kind}").write_text("\n".join(lines) + "\n")
  data = open_data(f"folder:{tmp_path}")
  assert (data.task, data.fields, data.label_names) == ("speech_recognition", ("audio", "text"), ())
  example = data.split("train")[2]
  assert example["text"] == "word 2" and example["audio"] == FLAC and example["where"].endswith("train/2.flac")


def test_a_table_with_classes_elsewhere_and_what_is_wrong_with_it(tmp_path):
  toned(tmp_path / "sounds", {"": 2})
  rows = [f"{name}/{index}.wav,{name}" for name in ("high", "low") for index in range(2)]
  for split in ("train", "test"):
    (tmp_path / f"{split}.csv").write_text("\n".join(["clip,kind", *rows]) + "\n")
  named = {"audio_column": "clip", "label_column": "kind", "audio_root": str(tmp_path / "sounds")}
  data = open_data(f"csv:{tmp_path}", **named)
  assert (data.task, data.label_names) == ("audio_classification", ("high", "low"))
  with pytest.raises(UserError, match=r"train.csv:2: no file 'high/0.wav' in "):
    open_data(f"csv:{tmp_path}", audio_column="clip", label_column="kind")
  (tmp_path / "test.csv").write_text("clip,kind\nhigh/0.mp3,high\n")
  with pytest.raises(UserError, match=r"test.csv:2: 'high/0.mp3' is no recording by its ending; expected .wav, .flac"):
    open_data(f"csv:{tmp_path}", **named)
  (tmp_path / "test.csv").write_text("clip,kind\nhigh/0.wav,hihg\n")
  with pytest.raises(UserError, match=r"test.csv:2: .*'hihg'.*did you mean 'high'"):
    open_data(f"csv:{tmp_path}", **named)
