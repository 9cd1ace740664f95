"""CSV files that are not what they seem: stray quotes, other dividers and line ends, bytes that are no text."""

from __future__ import annotations

import csv

import pytest

from peftjax.data import open_data
from peftjax.errors import UserError

ROWS = [f"text number {n},{n % 2}" for n in range(60)]


def opened(folder, content: bytes | str, name: str = "train.csv"):
  (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
  return open_data(f"csv:{folder}")


def with_rows(*rows: str) -> str:
  return "\n".join(["text,label", *rows, ""])


def test_a_stray_quote_that_swallows_rows_is_said_with_its_line(tmp_path):
  said = "a field opens with a quote and holds whole rows, such as"
  with pytest.raises(UserError, match=f"train.csv:7: {said} 'The worst,0'"):
    opened(tmp_path, with_rows(*ROWS[:5], '"The worst,0', *ROWS[5:55], 'the end",1', *ROWS[55:]))
  first = [f"{n % 2},word {n}" for n in range(9)]
  with pytest.raises(UserError, match=f"train.csv:11: {said} '0,fine'"):
    opened(tmp_path, "\n".join(["label,text", *first, '1,"The worst', "0,fine", "1,good", 'end"', ""]))


SCORES = [f"text number {n},{n / 64}" for n in range(60)]
PAIRS = [f"word {n},mot {n}" for n in range(60)]


@pytest.mark.parametrize(
  ("header", "rows", "first", "last"),
  [
    ("text,label", SCORES, '"The worst,0.001', 'the end",0.002'),
    ("source,target", PAIRS, '"The worst,le pire', 'the end",la fin'),
    ("source,target", PAIRS, 'The worst,"le pire', 'the end,la fin"'),
  ],
)
@pytest.mark.parametrize("swallowed", [0, 2, 50])
def test_a_stray_quote_is_found_where_no_value_is_there_twice(tmp_path, header, rows, first, last, swallowed):
  content = "\n".join([header, *rows[:5], first, *rows[5 : 5 + swallowed], last, *rows[55:], ""])
  if swallowed == 0 and rows is PAIRS:  # as a text of two lines may look
    assert open_rows(tmp_path, content) == 11
    return
  with pytest.raises(UserError, match="train.csv:7: a field opens with a quote and holds whole rows"):
    opened(tmp_path, content)


@pytest.mark.parametrize("text", ["Roses are red, they say\nviolets too, they say\nso", "a,b\nx", "see:\na,1\nb,2\nc"])
def test_texts_of_several_lines_among_pairs_are_read(tmp_path, text):
  assert opened(tmp_path, "\n".join(["source,target", *PAIRS, f'"{text}",b', ""])).split("train")[60]["source"] == text


def open_rows(folder, content: str) -> int:
  return opened(folder, content).splits["train"]


def test_texts_of_several_lines_after_their_label_are_read(tmp_path):
  rows = [f"{n % 2},word {n}" for n in range(9)]
  dataset = opened(tmp_path, "\n".join(["label,text", *rows, '1,"The worst', "1, they said", 'end"', ""]))
  assert dataset.split("train")[9] == {"label": 1, "text": "The worst\n1, they said\nend"}


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (with_rows(*ROWS[:3], '"never closed,0', *ROWS[3:]), "train.csv:5: no CSV: a quote is left open"),
    (with_rows('"Great" movie,1', *ROWS), "train.csv:2: no CSV: a quote stands within a field"),
    (with_rows(*ROWS[:3], '"open,0', '"a, b",1'), "train.csv:5: no CSV: a quote stands within a field"),
    (b"text,label\ra,0\rb,1\r", "lines end with a carriage return alone"),
    ("text;label\na;0\nb;1\n", "train.csv:1: fields divided by ';'"),
    ("text\tlabel\na\t0\n", "call the file .tsv"),
    ("text,label,text\na,0,b\n", "train.csv:1: two columns are called 'text'"),
    ("text,label\na\0,0\nb,1\n", "train.csv:2: a zero byte"),
    ("text,label\na,0\n".encode("utf-16"), "train.csv:1: a zero byte; a text file in UTF-8"),
    (b"text,label\nna\xefve,0\n", "train.csv:2: not UTF-8: byte 0xef"),
    ("text,label\na,0,1\n", "train.csv:2: 3 fields, but the header has 2"),
    ("", "is empty"),
  ],
)
def test_what_is_no_csv_is_one_line_with_its_place(tmp_path, content, message):
  with pytest.raises(UserError, match=message) as error:
    opened(tmp_path, content)
  assert "\n" not in str(error.value)


def test_texts_of_several_lines_with_commas_are_read(tmp_path):
  poem = '"Roses are red, they say\nviolets are blue, too\n\nand so on, and on",1'
  dataset = opened(tmp_path, with_rows(*ROWS, poem))
  assert dataset.split("train")[60] == {"text": poem[1:-3], "label": 1}


def test_byte_order_mark_crlf_and_large_fields(tmp_path):
  long = "word " * 100_000
  rows = [("text", "label"), (long, "0"), ('say "so"', "1"), ("a\r\nb", "0")]
  with (tmp_path / "train.csv").open("w", newline="", encoding="utf-8-sig") as file:
    csv.writer(file).writerows(rows)
  source = open_data(f"csv:{tmp_path}").split("train")
  assert [(source[n]["text"], str(source[n]["label"])) for n in range(3)] == rows[1:]
