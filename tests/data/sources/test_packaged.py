"""The packaged data sets, made for real: sizes as documented, splits without a text in common, a stable order."""

from __future__ import annotations

import gettext
import io
import itertools
import struct
import sys

import numpy as np
import pytest

from peftjax.data import open_data
from peftjax.data.builders.interface_pt import interface_pt_dataset_builder
from peftjax.data.builders.molecules import molecules_dataset_builder
from peftjax.data.inputs import sound
from peftjax.data.inputs.pictures import decode
from peftjax.data.sources.packaged import PACKAGED, prepared_builder
from peftjax.data.sources.splits import normalised
from peftjax.errors import UserError

SIZES = {
  "movie_reviews": (7362, 1070, 2134),
  "reviews_tweets": (1603, 424, 2013),
  "reviews_products": (1444, 366, 1782),
  "reviews_editorials": (1949, 508, 2421),
  "reuters_r52": (5878, 646, 2568),
  "reuters_r8": (4928, 552, 2189),
  "newsgroups20": (10144, 1142, 7528),
  "banking77": (9001, 977, 3080),
  "banking77_pairs": (9001, 1954, 6160),
  "ner_optimus": (1595, 238, 451),
  "wnut17": (3394, 1009, 1287),
  "wnut17_questions": (1776, 601, 798),
  "cmudict": (103754, 5826, 5880),
  "cmudict_names": (998, 205, 830),
  "interface_pt": (1817, 182, 240),
  "self_instruct": (143, 19, 13),
  "gsm8k": (6700, 773, 1319),
  "sign_digits": (370, 80, 150),
  "spoken_digits": (320, 80, 200),
  "spoken_digits_unheard": (160, 40, 100),
  "ljspeech_samples": (4, 1, 3),
  "molecules": (11070, 1441, 1454),
}


def rows(builder, split: str) -> list[dict]:
  source = builder.as_data_source(split)
  return source.__getitems__(list(range(len(source))))


def texts(builder, split: str) -> set[str]:
  column = next(
    name for name in ("audio", "text", "source", "tokens", "context", "image") if name in builder.info.features
  )
  if column in ("audio", "image"):
    return {row[column].tobytes().hex() for row in rows(builder, split)}
  found = [row[column] for row in rows(builder, split)]
  return {normalised((b" ".join(one) if isinstance(one, list) else one).decode()) for one in found}


@pytest.mark.parametrize("name", PACKAGED)
def test_sizes_are_the_documented_ones_and_no_text_crosses_a_split(name):
  builder = prepared_builder(name)
  assert tuple(builder.info.splits[split].num_examples for split in ("train", "validation", "test")) == SIZES[name]
  train, validation, test = (texts(builder, split) for split in ("train", "validation", "test"))
  if not name.startswith("wnut17"):  # the shared task's own splits
    assert not train & validation
    assert not train & test
    assert not validation & test
  for split in ("train", "validation", "test"):
    assert (builder.data_path / f"{builder.name}-{split}.array_record-00000-of-00001").exists()


def test_pictures_are_read_as_their_files():
  data = open_data("packaged:sign_digits")
  assert data.task == "image_classification" and data.fields == ("image", "label") and len(data.label_names) == 10
  source = data.split("test")
  counts = [sum(source[at]["label"] == digit for at in range(len(source))) for digit in range(10)]
  assert counts == [15] * 10
  example = source[3]
  assert decode(example["image"], example["where"]).size == (100, 100)
  assert example["image"][:2] == b"\xff\xd8" and example["where"] == "packaged:sign_digits test: example 3"


def test_recordings_are_read_as_samples_with_their_rate():
  data = open_data("packaged:spoken_digits")
  assert data.task == "audio_classification" and data.fields == ("audio", "sampling_rate", "label")
  source = data.split("test")
  assert [sum(source[at]["label"] == digit for at in range(len(source))) for digit in range(10)] == [20] * 10
  samples, rate = sound.decode(source[3]["audio"], source[3]["where"], source[3]["sampling_rate"])
  assert rate == 8000 and 0.1 < len(samples) / rate < 2 and 0.01 < np.abs(samples).max() <= 1
  speech = open_data("packaged:ljspeech_samples")
  assert speech.task == "speech_recognition" and speech.fields == ("audio", "sampling_rate", "text")
  assert speech.split("test")[2]["text"] == "has never been surpassed."
  assert open_data("packaged:spoken_digits_unheard").label_names == data.label_names


def test_a_movie_label_is_the_sign_of_its_rating():
  for row in rows(prepared_builder("movie_reviews"), "train"):
    assert row["rating"] != 0
    assert row["label"] == (row["rating"] > 0)


def test_tags_fit_tokens_and_every_inside_follows_its_begin():
  for name in ("ner_optimus", "wnut17"):
    builder = prepared_builder(name)
    names = builder.info.features["tags"].feature.names
    assert names[0] == "O"
    for row in rows(builder, "test"):
      assert len(row["tokens"]) == len(row["tags"])
      tags = ["O"] + [names[tag] for tag in row["tags"]]
      for before, tag in itertools.pairwise(tags):
        assert tag[0] != "I" or before[2:] == tag[2:]


def test_names_are_a_part_of_the_dictionary_that_no_other_split_shows():
  words, names = (prepared_builder(name) for name in ("cmudict", "cmudict_names"))
  splits = ("train", "validation", "test")
  spellings = {row["source"].decode() for split in splits for row in rows(names, split)}
  assert {"kowalski", "martini", "rossetti"} <= spellings
  assert not spellings & {row["source"].decode() for split in splits for row in rows(words, split)}


def test_a_compiled_catalogue_is_read_as_gettext_reads_it(tmp_path):
  catalogue = {
    "": "Content-Type: text/plain; charset=UTF-8\n",
    "menu\x04Save": "Salvar",
    "%d page\0%d pages": "%d página\0%d páginas",
  }
  pairs = [(key.encode(), value.encode()) for key, value in sorted(catalogue.items())]
  texts, places = b"", []
  for side in (0, 1):
    for pair in pairs:
      places.append((len(pair[side]), 28 + 16 * len(pairs) + len(texts)))
      texts += pair[side] + b"\0"
  header = struct.pack("<7I", 0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, 0)
  content = header + b"".join(struct.pack("<2I", *place) for place in places) + texts
  theirs = gettext.GNUTranslations(io.BytesIO(content))
  ours = dict(interface_pt_dataset_builder.read_mo(content))
  assert ours == {"Save": "Salvar", "%d page": "%d página", "%d pages": "%d páginas"}
  assert theirs.pgettext("menu", "Save") == ours["Save"]
  assert theirs.ngettext("%d page", "%d pages", 1) == ours["%d page"]


def test_molecules_have_the_properties_that_rdkit_s_guide_prints(monkeypatch):
  """TPSA and logP of benzoic acid, from its Getting Started, "Descriptor Calculation"."""
  found = molecules_dataset_builder.properties("c1ccccc1C(=O)O")
  assert (found["tpsa"], round(found["logp"], 4)) == (37.3, 1.3848)
  with pytest.raises(UserError, match="RDKit reads no molecule in 'c1ccccc'"):
    molecules_dataset_builder.properties("c1ccccc")
  data = open_data("packaged:molecules", label_column="logp")
  assert (data.task, data.label_names, data.label_kind) == ("text_classification", (), "number")
  assert open_data("packaged:molecules").fields == ("text",)
  example = data.split("test")[5]
  assert example["label"] == pytest.approx(molecules_dataset_builder.properties(example["text"])["logp"], rel=1e-6)
  assert all(max(map(ord, data.split("test")[at]["text"])) < 128 for at in range(50))
  monkeypatch.setitem(sys.modules, "rdkit", None)
  with pytest.raises(UserError, match=r"pip install 'peftjax\[molecules\]'"):
    molecules_dataset_builder.properties("C")


def test_two_preparations_give_the_same_rows_in_the_same_order(tmp_path, monkeypatch):
  first = rows(prepared_builder("banking77"), "validation")
  monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path))
  assert rows(prepared_builder("banking77"), "validation") == first


def test_preparing_leaves_stdout_alone(tmp_path, monkeypatch, capsys):
  monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path))
  prepared_builder("wnut17")
  assert capsys.readouterr().out == ""


def test_an_unknown_name_names_the_nearest():
  with pytest.raises(UserError, match="did you mean 'movie_reviews'"):
    prepared_builder("movie_review")
