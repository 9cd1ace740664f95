"""JSON-lines and CSV files by row number."""

from __future__ import annotations

import csv
import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftjax.data.sources.text_files import TextFile
from peftjax.errors import UserError

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8))
def test_csv_rows_come_back_with_quotes_commas_and_line_breaks(tmp_path_factory, pairs):
  path = tmp_path_factory.mktemp("csv") / "data.csv"
  with path.open("w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file, quoting=csv.QUOTE_ALL)
    writer.writerows([("text", "label"), *pairs])
  file = TextFile(path, "csv")
  assert [(file[index]["text"], file[index]["label"]) for index in range(len(file))] == pairs


@settings(max_examples=40, deadline=None)
@given(
  st.lists(st.dictionaries(TEXT, TEXT, max_size=3), min_size=1, max_size=8), st.sampled_from(["\n", "\r\n", "\n\n"])
)
def test_json_rows_come_back_in_any_order(tmp_path_factory, rows, ending):
  path = tmp_path_factory.mktemp("jsonl") / "data.jsonl"
  path.write_bytes(ending.join(json.dumps(row, ensure_ascii=False) for row in rows).encode())
  file = TextFile(path, "jsonl")
  assert len(file) == len(rows)
  for index in reversed(range(len(rows))):
    assert file[index] == rows[index]


def test_a_byte_order_mark_and_tabs_are_read(tmp_path):
  (tmp_path / "a.tsv").write_text("text\tlabel\nyes, it is\t1\n", encoding="utf-8-sig")
  assert TextFile(tmp_path / "a.tsv", "csv")[0] == {"text": "yes, it is", "label": "1"}
  (tmp_path / "a.jsonl").write_text('{"text": "a"}\n', encoding="utf-8-sig")
  assert TextFile(tmp_path / "a.jsonl", "jsonl")[0] == {"text": "a"}


def test_a_file_survives_pickling_and_tells_lines(tmp_path):
  path = tmp_path / "a.csv"
  path.write_text('text,label\n"two\nlines",0\nlast,1\n')
  file = pickle.loads(pickle.dumps(TextFile(path, "csv")))
  assert file[0] == {"text": "two\nlines", "label": "0"}
  assert [file.where(0), file.where(1)] == [f"{path}:2", f"{path}:4"]


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("a.jsonl", b'{"text": "a"}\n{"text": \n', "a.jsonl:2: no JSON: Expecting value"),
    ("a.jsonl", b"[1]\n", "a.jsonl:1: a JSON object was expected, not list"),
    ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "a.jsonl:2: not UTF-8: byte 0xff"),
    ("a.jsonl", b"\n\n", "a.jsonl has no rows"),
    ("a.jsonl", b'{"a": 1}\n{"a":1,"a":0}\n', "a.jsonl:2: the field 'a' stands twice in one object"),
    ("a.jsonl", b'{"m": [{"a" : "x\\":", "b": 1, "b" :2}]}\n', "a.jsonl:1: the field 'b' stands twice in one object"),
    ("a.jsonl", b'{"a" : "x : y", "a" : 2}\n', "a.jsonl:1: the field 'a' stands twice in one object"),
    ("a.jsonl", b'{"a": "x : y", "\\u0061": 2}\n', "a.jsonl:1: the field 'a' stands twice in one object"),
    ("a.csv", b"text, label,label\na,1,1\n", "a.csv:1: two columns are called 'label'"),
    ("a.csv", b'text, "label"\na,1\n', 'a.csv:1: a space stands before the quote of "label"'),
    ("a.csv", b"", "a.csv is empty"),
    ("a.csv", b"text,label\n", "a.csv has no rows"),
    ("a.csv", b"text,label\na,1\nb\n", "a.csv:3: 1 fields, but the header has 2"),
    ("a.csv", b"text,label\na,1\nb\xff,2\n", "a.csv:3: not UTF-8: byte 0xff"),
    ("a.csv", b'text,label\n"a,1\n' + b"b,2\n" * 50000, "a.csv:2: no CSV"),
  ],
)
def test_damage_is_named_with_its_line(tmp_path, name, content, message):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(UserError) as error:
    TextFile(tmp_path / name, name.split(".")[1])
  assert message in str(error.value)


def test_spaces_around_a_columns_name_are_no_part_of_it(tmp_path):
  (tmp_path / "train.csv").write_text("text, label\n" + "a,1\nb,0\n" * 4)
  assert TextFile(tmp_path / "train.csv", "csv")[0] == {"text": "a", "label": "1"}


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(UserError, match="cannot read .*a.csv: No such file"):
    TextFile(tmp_path / "a.csv", "csv")
