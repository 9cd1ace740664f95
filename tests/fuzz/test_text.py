"""The text side on inputs that nobody meant it for: data files, chat templates, tokenizer folders.

Seeds are good files, of which parts are exchanged, cut, doubled or replaced by values of another type.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from peftjax import config as configs
from peftjax.config.table import FIELDS
from peftjax.data import open_data
from peftjax.data.inputs.chat import ChatTemplate, encode_chat, load_chat_template
from peftjax.data.inputs.tokenizer_classes import BUILT
from peftjax.data.inputs.tokenizing import load_tokenizer
from tests.data.tiny import tokenizer_folder

COUNTS = [pytest.param(150, id="quick"), pytest.param(12_000, id="all", marks=pytest.mark.slow)]

ODD = st.one_of(
  st.none(),
  st.booleans(),
  st.sampled_from([0, -1, 2**31, 2**63, 10**40, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf")]),
  st.sampled_from(["", "a", "\0", "\ud800", "é" * 300, "[CLS]", "{{", "../x", "1e999", "x" * 5000]),
  st.sampled_from([[], {}, [[]], [None], {"a": 1}, [1, 0], ["a", "a"], [[1], "a"], {"content": 5}]),
)
VALUES = st.recursive(
  ODD, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=6
)

TEXT_ROWS = [
  {"text": "a b", "label": "x"},
  {"text": "a", "label": 1},
  {"text": "a", "label": 0.5},
  {"text": "a", "text_pair": "b", "label": [1, 0]},
  {"tokens": ["a", "b"], "tags": ["O", "B-X"]},
  {"source": "a", "target": "b"},
  {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
]


@st.composite
def changed(draw: st.DrawFn, value: Any, depth: int = 3) -> Any:
  """`value` with parts of it replaced, removed or doubled."""
  if depth == 0 or draw(st.integers(0, 9)) == 0:
    return draw(VALUES)
  if isinstance(value, dict) and value:
    keys = draw(st.lists(st.sampled_from(sorted(value)), max_size=2))
    return {name: draw(changed(one, depth - 1)) if name in keys else one for name, one in value.items()}
  if isinstance(value, list) and value:
    place = draw(st.integers(0, len(value) - 1))
    return [*value[:place], draw(changed(value[place], depth - 1)), *value[place + draw(st.integers(0, 1)) :]]
  return value if draw(st.booleans()) else draw(VALUES)


BYTES = st.sampled_from(
  [b'"', b"\n", b"\r", b"\0", b",", b"{", b"[" * 2000, b"9" * 5000, b"\xff", b"\\ud800", b"\xef\xbb\xbf", b""]
)


@st.composite
def mangled(draw: st.DrawFn, content: bytes) -> bytes:
  """`content` with bytes cut out, doubled or put in."""
  for _ in range(draw(st.integers(0, 3))):
    first, last = sorted((draw(st.integers(0, len(content))), draw(st.integers(0, len(content)))))
    odd = draw(BYTES)
    ways = [content[:first] + content[last:], content[:last] + content[first:], content[:first] + odd + content[first:]]
    content = draw(st.sampled_from(ways))
  return content


def lines(rows: list[Any]) -> bytes:
  return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_csv(rows: list[list[str]]) -> bytes:
  out = io.StringIO(newline="")
  csv.writer(out).writerows([("text", "label"), *rows])
  return out.getvalue().encode(errors="replace")


JSONL = st.sampled_from(TEXT_ROWS).flatmap(
  lambda row: st.lists(st.just(row) | changed(row), min_size=1, max_size=5).map(lines).flatmap(mangled)
)
CELLS = st.sampled_from(
  ["0", "1", "0.5", "1e-5", "NA", "", "good", "True", "[1, 0]", 'a "b"', "a\nb", "x,y", "=1", "9" * 400]
)
CSV = st.lists(st.tuples(CELLS, CELLS).map(list), min_size=1, max_size=6).map(as_csv).flatmap(mangled)


def read_all(kind: str, folder: Path, content: bytes) -> None:
  path = folder / f"data.{kind}"
  path.write_bytes(content)
  dataset = open_data(f"{kind}:{path}")
  for split, size in dataset.splits.items():
    source = dataset.split(split)
    for index in range(size):
      source[index]
  dataset.fingerprint()


@pytest.mark.parametrize("count", COUNTS)
def test_json_lines(fuzz, tmp_path, count):
  fuzz("JSON lines", JSONL, lambda content: read_all("jsonl", tmp_path, content), count)


@pytest.mark.parametrize("count", COUNTS)
def test_csv(fuzz, tmp_path, count):
  fuzz("CSV files", CSV, lambda content: read_all("csv", tmp_path, content), count)


_PIECES = """
  {{ bos_token }} · {% for m in messages %} · {% endfor %} · {{ m.content }} · {{ m['role'] | tojson }} · {% else %}
  · {% if m.role == 'user' %} · {% endif %} · {% generation %} · {% endgeneration %} · {% set ns = namespace(a='x') %}
  · {% set ns.a = ns.a ~ ns.a %} · {% for i in range(9999) %} · {% break %} · {{ raise_exception('no') }} · {{ 1 / 0 }}
  · {{ strftime_now('%Y') }} · {{ messages[-1] }} · {{ m.content.split('a')[-1] }} · {{ 'a' * 99999 }}
  · {% macro f(x) %} · {% endmacro %} · {{ f(f(1)) }} · {{ messages | map(attribute='content') | join('a' * 999) }}
  · {{ loop.last }} · {{ · %} · -%} · {# · text </s> · {% if add_generation_prompt %} · {{ ''.__class__ }} · {{ none }}
  · {% set messages = messages + messages %} · {{ (1,) * 99999 }} · {% continue %} · {{ [messages, messages] | string }}
  · {{ 9 ** 9 ** 9 }} · {{ '%9999s' | format(1) }} · {{ messages[1:] | list | pprint }} · {{ ns.a | length }}
"""
PIECES = st.sampled_from(_PIECES.split("·"))
SOME = st.lists(PIECES, max_size=4).map("".join)
TALKS = st.tuples(SOME, SOME, SOME).map(
  lambda parts: "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>".join(parts[:2]) + "{% endfor %}" + parts[2]
)
TEMPLATES = TALKS | SOME | st.text(alphabet="{}%#-|.'ab (),[]0", max_size=40)
TURNS = [
  {"role": "user", "content": "hello a"},
  {"role": "assistant", "content": "b a"},
  {"role": "user", "content": "c"},
]


@pytest.mark.parametrize("count", COUNTS)
def test_chat_templates(fuzz, tmp_path, count):
  tokenizer = load_tokenizer(tokenizer_folder(tmp_path), 64)
  fuzz("chat templates", TEMPLATES, lambda source: ChatTemplate(source, {"bos_token": "<s>"}).render(TURNS), count)
  fuzz("labels of chats", TEMPLATES, lambda source: encode_chat(tokenizer, ChatTemplate(source), TURNS), count)


SETTINGS: dict[str, Any] = {
  "tokenizer_class": "BertTokenizer",
  "do_lower_case": True,
  "strip_accents": None,
  "pad_token": "[PAD]",
  "cls_token": {"content": "[CLS]"},
  "unk_token": "[UNK]",
  "model_max_length": 512,
  "truncation_side": "left",
  "padding_side": "left",
  "add_prefix_space": True,
  "additional_special_tokens": ["<a>"],
  "added_tokens_decoder": {"40": {"content": "<b>", "lstrip": True}},
  "extra_ids": 3,
  "model_input_names": ["input_ids"],
  "chat_template": [{"name": "default", "template": "{{ messages }}"}],
  "extra_special_tokens": {"x_token": "<x>"},
}
CLASSES = st.sampled_from([*BUILT, "PreTrainedTokenizerFast", "MadeUpTokenizer", "NllbTokenizer"])
FOLDERS = st.fixed_dictionaries(
  {},
  optional={
    "tokenizer_config.json": st.tuples(changed(SETTINGS), CLASSES).map(
      lambda both: {**both[0], "tokenizer_class": both[1]} if isinstance(both[0], dict) else both[0]
    ),
    "config.json": changed(
      {"model_type": "bert", "tokenizer_class": "BertTokenizer", "eos_token_id": [1], "pad_token_id": 0}
    ),
    "special_tokens_map.json": changed({"eos_token": "<e>", "pad_token": {"content": "[PAD]", "lstrip": False}}),
    "added_tokens.json": changed({"<n>": 40, "<m>": 41}),
    "tokenizer.json": st.integers(0, 3),
  },
)


@pytest.mark.parametrize("count", COUNTS)
def test_tokenizer_folders(fuzz, tmp_path, count):
  whole = load_tokenizer(tokenizer_folder(tmp_path / "good"))._made.fast.to_str()
  stated = json.loads(whole)
  folder = tmp_path / "odd"
  folder.mkdir()

  def read(files: dict[str, Any]) -> None:
    for path in folder.iterdir():
      path.unlink()
    (folder / "vocab.txt").write_bytes((tmp_path / "good" / "vocab.txt").read_bytes())
    for name, value in files.items():
      if name != "tokenizer.json":
        (folder / name).write_text(json.dumps(value))
      elif value == 0:
        (folder / name).write_text(whole)
      else:
        (folder / name).write_text(
          json.dumps({key: one for n, (key, one) in enumerate(stated.items()) if n % 4 != value})
        )
    tokenizer = load_tokenizer(folder, 16)
    tokenizer.encode(["a b", "unable <a>[CLS]"])
    tokenizer.decode([0, 1])
    load_chat_template(folder).render(TURNS)

  fuzz("tokenizer folders", FOLDERS, read, count)


@pytest.mark.parametrize("count", COUNTS)
def test_tokenizer_json(fuzz, tmp_path, count):
  whole = json.loads(load_tokenizer(tokenizer_folder(tmp_path / "good"))._made.fast.to_str())
  path = tmp_path / "tokenizer.json"

  def read(value: Any) -> None:
    path.write_text(json.dumps(value))
    load_tokenizer(tmp_path, 16).encode(["a b"], ["c"])

  fuzz("tokenizer.json", changed(whole, 5), read, count)


NAMES = st.sampled_from([*FIELDS, "data.nothing", "method.rank", "optim.groups.adapter", "sweep.seed", "model", ""])
WRITTEN = ["bf16", "(1,)", "1e999", "9" * 30, "[" * 500, "lambda: 1", "\u00b2", "None", "{1: 2}"]
GIVEN = VALUES.map(str) | st.sampled_from(WRITTEN)


@pytest.mark.parametrize("count", COUNTS)
def test_overrides(fuzz, count):
  overrides = st.lists(st.tuples(NAMES, GIVEN).map("=".join), min_size=1, max_size=3)
  fuzz("overrides", overrides, lambda given: configs.load("", given), count)
