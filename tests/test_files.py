"""JSON that others wrote: read, or refused in one line."""

from __future__ import annotations

import json

import pytest

from peftjax.errors import UserError
from peftjax.files import MAX_JSON_DEPTH, parse_json, read_json


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"[" * 100_000, "more than 100 deep"),
    (b'{"a":' * 100_000, "more than 100 deep"),
    (b"[" * 101 + b"]" * 101, "more than 100 deep"),
    (b'{"a": ' + b"1" * 5000 + b"}", "an integer in JSON has more than 4300 digits"),
    (b'{"a": "\\ud800"}', r"the escape \\ud800 stands alone"),
    (b'{"a": "\xff"}', "not UTF-8: byte 0xff"),
    (b'{"a": \n1,}', "no JSON: .* at line 2, column"),
    (b"", "no JSON: Expecting value at column 1"),
  ],
)
def test_what_is_no_json_is_said_in_one_line(content, message):
  with pytest.raises(UserError, match=f"^there: .*{message}"):
    parse_json(content, "there")


def test_what_is_json_is_read():
  assert parse_json(b'\xef\xbb\xbf{"a": "\\ud83d\\ude00 \\\\ud800", "b": [1e3, -2]}', "") == {
    "a": "\U0001f600 \\ud800",
    "b": [1e3, -2],
  }
  deep = "[" * MAX_JSON_DEPTH + "]" * MAX_JSON_DEPTH
  assert json.dumps(parse_json(deep, "")) == deep
  assert len(parse_json(json.dumps([[0]] * 500), "")) == 500


def test_fields_that_nobody_needs_are_dropped_and_a_larger_file_is_refused(tmp_path):
  content = {"a": [{"b": 1, "long": [[0.5] * 50]}], "long": {"a": 2}, "c": {"d": {"long": 3, "e": None}}}
  (tmp_path / "one.json").write_text(json.dumps(content))
  assert read_json(tmp_path / "one.json", without=("long",)) == {"a": [{"b": 1}], "c": {"d": {"e": None}}}
  assert read_json(tmp_path / "one.json") == content
  with pytest.raises(UserError, match="bytes; a JSON document of at most 99 was expected"):
    read_json(tmp_path / "one.json", most=99)


def test_a_file_that_is_no_object_or_not_there(tmp_path):
  with pytest.raises(UserError, match="cannot read .*config.json: No such file"):
    read_json(tmp_path / "config.json")
  (tmp_path / "config.json").write_text("[]")
  with pytest.raises(UserError, match="expected a JSON object, got list"):
    read_json(tmp_path / "config.json")
