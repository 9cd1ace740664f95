"""Pairs of texts from files."""

from __future__ import annotations

import pytest

from peftjax.data import open_data
from peftjax.errors import UserError
from tests.data.tiny import jsonl
from tests.tasks import small


def test_columns_are_found_or_named(tmp_path):
  scored = open_data(f"pairs:{small.pairs(tmp_path / 'scored.csv', rows=40)}")
  assert (scored.task, scored.fields, scored.label_kind) == ("contrastive", ("text", "text_pair", "label"), "number")
  assert isinstance(scored.split("train")[0]["label"], float)
  rows = [{"q": f"a {index}", "p": f"b {index}", "category": "x", "how": index / 40} for index in range(40)]
  path = jsonl(tmp_path / "rows.jsonl", rows)
  plain = open_data(f"pairs:{path}", text_column="q,p")
  assert plain.fields == ("text", "text_pair") and sum(plain.splits.values()) == 40
  assert open_data(f"pairs:{path}", text_column="q,p", label_column="how").fields == scored.fields
  with pytest.raises(UserError, match="which columns are the two texts.*set data.text_column to two of q, p, category"):
    open_data(f"pairs:{path}")
  with pytest.raises(UserError, match="expected two columns, divided by a comma"):
    open_data(f"pairs:{path}", text_column="q")
  with pytest.raises(UserError, match="no column 'z'"):
    open_data(f"pairs:{path}", text_column="q,z")


@pytest.mark.parametrize(
  ("row", "message"),
  [
    ({"anchor": "a", "positive": " "}, ":21: column 'positive' is empty, expected a text"),
    ({"anchor": 3, "positive": "b"}, ":21: column 'anchor' holds 3, expected a string"),
    ({"anchor": "a"}, ":21: no column 'positive'"),
  ],
)
def test_a_mistake_in_a_pair_is_one_line(row, message, tmp_path):
  path = jsonl(tmp_path / "rows.jsonl", [*[{"anchor": f"{i}", "positive": "b"} for i in range(20)], row])
  with pytest.raises(UserError) as error:
    open_data(f"pairs:{path}")
  assert message in str(error.value)


def test_a_score_that_is_no_number(tmp_path):
  path = tmp_path / "rows.csv"
  path.write_text("anchor,positive,score\n" + "a,b,0.5\n" * 9 + "c,d,high\n")
  with pytest.raises(UserError, match="rows.csv:11: label 'high', expected a finite number"):
    open_data(f"pairs:{path}")
