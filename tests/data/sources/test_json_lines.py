"""Large JSON-lines files: read through Arrow they are what they are line by line."""

from __future__ import annotations

import hashlib
import json

import pytest

from peftjax.data import open_data
from peftjax.data.sources import files, json_lines
from peftjax.data.sources.text_files import TextFile
from peftjax.errors import UserError

ROWS = [{"text": f'é {index} \n"x"', "n": index, **({"more": [1]} if index % 7 else {})} for index in range(200)]


def written(path, lines):
  path.write_bytes(b"".join(lines))
  return path


def lines_of(rows):
  return [json.dumps(row, ensure_ascii=index % 2 == 0).encode() + b"\n" for index, row in enumerate(rows)]


@pytest.fixture(params=["by line", "by Arrow"])
def reading(request, monkeypatch):
  """The way of reading: blocks of 500 bytes, which Arrow reads, or one that it does not."""
  if request.param == "by Arrow":
    monkeypatch.setattr(json_lines, "BLOCK", 500)
    monkeypatch.setattr(TextFile, "_parse_json", _refused(TextFile._parse_json))
  return request.param


def _refused(parse):
  def parsed(self, text, line):
    assert hasattr(self, "sha256") or line > 170 or "odd" in str(self.path), "a good row was parsed in Python"
    return parse(self, text, line)

  return parsed


def test_every_row_is_found(reading, tmp_path):
  path = written(tmp_path / "rows.jsonl", [*lines_of(ROWS)[:-1], lines_of(ROWS)[-1].rstrip()])
  file = TextFile(path, "jsonl")
  assert [file[index] for index in range(len(file))] == ROWS
  assert file.texts == {"text"}
  assert file.where(0) == f"{path}:1" and file.where(199) == f"{path}:200"
  assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_blank_lines_are_no_rows_and_lines_are_counted(reading, tmp_path):
  lines = lines_of(ROWS)
  path = written(
    tmp_path / "odd.jsonl", [b"\xef\xbb\xbf" + lines[0], b"\n", *lines[1:100], b"  \n", b"\r\n", *lines[100:]]
  )
  file = TextFile(path, "jsonl")
  assert [file[index] for index in range(len(file))] == ROWS
  assert [file.where(index) for index in (0, 1, 99, 100)] == [f"{path}:{line}" for line in (1, 3, 101, 104)]
  assert file.texts == {"text"}


@pytest.mark.parametrize(
  ("row", "expected"),
  [
    (b'{"text": "a"', "no JSON"),
    (b"[1]", "a JSON object was expected"),
    (b'{"text": "\xff"}', "not UTF-8"),
    (b'{"text": 3}', "column 'text' holds 3, expected a string"),
    (b'{"other": "a"}', "no column 'text'"),
    (b'{"text": "a", "text": "b"}', "the field 'text' stands twice in one object"),
    (b'{"text": "a: b", "more": [{"b": 1, "b": 2}]}', "the field 'b' stands twice in one object"),
    (b'{"text": null}', "column 'text' holds None, expected a string"),
  ],
)
def test_a_row_that_does_not_fit_is_named(reading, row, expected, tmp_path):
  lines = lines_of([{"text": f"word {index}"} for index in range(150)])
  path = written(tmp_path / "odd.jsonl", [*lines[:120], row + b"\n", *lines[120:]])
  with pytest.raises(UserError, match=expected) as error:
    open_data(f"jsonl:{path}")
  assert f"{path}:121" in str(error.value)


def test_texts_that_are_known_are_not_parsed_again(tmp_path, monkeypatch):
  folder = tmp_path / "data"
  folder.mkdir()
  for split in ("train", "validation"):
    written(folder / f"{split}.jsonl", lines_of(ROWS))
  monkeypatch.setattr(files, "_content", None)
  found = open_data(f"jsonl:{folder}")
  assert found.splits == {"train": 200, "validation": 200} and found.split("train")[7]["text"] == ROWS[7]["text"]
