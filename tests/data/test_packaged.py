"""The packaged data sets, made for real: sizes as documented, splits without a text in common, a stable order."""

from __future__ import annotations

import itertools

import pytest

from peftjax.data.packaged import PACKAGED, prepared
from peftjax.data.splits import normalised
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
  "ner_optimus": (1595, 238, 451),
  "wnut17": (3394, 1009, 1287),
}


def rows(builder, split: str) -> list[dict]:
  source = builder.as_data_source(split)
  return source.__getitems__(list(range(len(source))))


def texts(builder, split: str) -> set[str]:
  return {
    normalised(row["text"].decode() if "text" in row else b" ".join(row["tokens"]).decode())
    for row in rows(builder, split)
  }


@pytest.mark.parametrize("name", PACKAGED)
def test_sizes_are_the_documented_ones_and_no_text_crosses_a_split(name):
  builder = prepared(name)
  assert tuple(builder.info.splits[split].num_examples for split in ("train", "validation", "test")) == SIZES[name]
  train, validation, test = (texts(builder, split) for split in ("train", "validation", "test"))
  if name != "wnut17":  # the shared task's own splits
    assert not train & validation
    assert not train & test
    assert not validation & test
  for split in ("train", "validation", "test"):
    assert (builder.data_path / f"{builder.name}-{split}.array_record-00000-of-00001").exists()


def test_a_movie_label_is_the_sign_of_its_rating():
  for row in rows(prepared("movie_reviews"), "train"):
    assert row["rating"] != 0
    assert row["label"] == (row["rating"] > 0)


def test_tags_fit_tokens_and_every_inside_follows_its_begin():
  for name in ("ner_optimus", "wnut17"):
    builder = prepared(name)
    names = builder.info.features["tags"].feature.names
    assert names[0] == "O"
    for row in rows(builder, "test"):
      assert len(row["tokens"]) == len(row["tags"])
      tags = ["O"] + [names[tag] for tag in row["tags"]]
      for before, tag in itertools.pairwise(tags):
        assert tag[0] != "I" or before[2:] == tag[2:]


def test_two_preparations_give_the_same_rows_in_the_same_order(tmp_path, monkeypatch):
  first = rows(prepared("banking77"), "validation")
  monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path))
  assert rows(prepared("banking77"), "validation") == first


def test_preparing_leaves_stdout_alone(tmp_path, monkeypatch, capsys):
  monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path))
  prepared("wnut17")
  assert capsys.readouterr().out == ""


def test_an_unknown_name_names_the_nearest():
  with pytest.raises(UserError, match="did you mean 'movie_reviews'"):
    prepared("movie_review")
