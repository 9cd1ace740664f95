"""Questions with answers that stand in a text, in SQuAD's JSON (Rajpurkar et al. 2016, 2018): ``squad:FILE``.

A file is {"data": [{"paragraphs": [{"context", "qas": [{"id", "question", "answers": [{"text", "answer_start"}]}]}]}]}.
In version 2 a question may have ``"is_impossible": true`` and no answers: the context does not hold one.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from peftjax.data.sources.files import SHARES, find_files
from peftjax.data.sources.splits import hashed_split
from peftjax.data.sources.types import QUESTION_ANSWERING, Dataset, Example, Named
from peftjax.errors import UserError
from peftjax.files import read_json

FIELDS = ("id", "question", "context", "answers")


@dataclasses.dataclass(frozen=True)
class Questions:
  """A `Source` of questions: "id", "question" and "context" str, and "answers", a list of {"text", "answer_start"} that
  is empty where the context holds none; the characters of `context` are counted from 0."""

  examples: Sequence[Example]

  def __len__(self) -> int:
    return len(self.examples)

  def __getitem__(self, index: int) -> Example:
    return self.examples[index]


def open_squad(path: str, named: Named) -> Dataset:
  """A data set of SQuAD's files: one, which a hash of the contexts divides 80 / 10 / 10; a folder with ``train.json``
  and ``dev.json``; or a pattern such as ``squad/{split}-v2.0.json``.

  Raises:
    UserError: a file is none of SQuAD's; an answer does not stand where it should; a question without answers that is
      not marked as impossible; an empty question or context; an id that two questions have.
  """
  named.check_read(f"squad:{path}")
  files = find_files("json", path)
  found = {part: list(_questions(file)) for part, file in files.items()}
  for part, examples in found.items():
    _check_ids(files[part], examples)
  if "train" not in found:
    whole = found.pop("")
    sides = [hashed_split(one["context"], SHARES) for one in whole]
    found = {split: [one for one, side in zip(whole, sides) if side == split] for split in SHARES}
    if not found["train"]:
      raise UserError(f"{path} has too few contexts to divide into training, validation and test")
  found = {split: examples for split, examples in found.items() if examples}
  unanswered = sum(not one["answers"] for examples in found.values() for one in examples)
  total = sum(map(len, found.values()))
  return Dataset(
    name=f"squad:{path}",
    task=QUESTION_ANSWERING,
    splits={split: len(examples) for split, examples in found.items()},
    columns=FIELDS,
    fields=(*FIELDS, "is_impossible") if unanswered else FIELDS,
    identity={"files": {part: hashlib.sha256(file.read_bytes()).hexdigest() for part, file in files.items()}},
    read=lambda split: Questions(found[split]),
    notes=(f"{unanswered:,} of {total:,} questions have no answer in their context",) if unanswered else (),
  )


def _questions(file: Path) -> Iterator[Example]:
  data = read_json(file).get("data")
  if not isinstance(data, list) or not data:
    raise UserError(f'{file}: expected SQuAD\'s JSON, an object with a list of articles as "data"')
  for number, article in enumerate(data):
    where = f"{file}: data[{number}]"
    for place, paragraph in enumerate(_list(article, "paragraphs", where)):
      inner = f"{where}.paragraphs[{place}]"
      context = _text(paragraph, "context", inner)
      for one in _list(paragraph, "qas", inner):
        yield _question(one, context, inner, file)


def _question(one: Any, context: str, inner: str, file: Path) -> Example:
  name = _text(one, "id", f"{inner}.qas")
  where = f"{file}: question {name!r:.40}"
  question = _text(one, "question", where)
  impossible = one.get("is_impossible", False)
  if not isinstance(impossible, bool):
    raise UserError(f"{where}: is_impossible={impossible!r:.40}, expected true or false")
  answers = [_answer(answer, context, where) for answer in _list(one, "answers", where)]
  if impossible and answers:
    raise UserError(f"{where} is marked as impossible and has an answer, {answers[0]['text']!r:.40}")
  if not impossible and not answers:
    raise UserError(f'{where} has no answers; version 2 marks such questions with "is_impossible": true')
  return {"id": name, "question": question, "context": context, "answers": answers}


def _answer(one: Any, context: str, where: str) -> dict[str, Any]:
  text, start = _text(one, "text", f"{where}: answers"), one.get("answer_start")
  if not isinstance(start, int) or isinstance(start, bool):
    raise UserError(f"{where}: answer_start={start!r:.40}, expected the number of a character")
  if start < 0 or context[start : start + len(text)] != text:
    places = [at for at in range(len(context)) if context.startswith(text, at)]
    near = min(places, key=lambda at: abs(at - start), default=None)
    there = f"it stands at {near}" if near is not None else "it does not stand in the context at all"
    held = f"{context[start : start + len(text)]!r:.40}" if 0 <= start < len(context) else "nothing"
    raise UserError(f"{where}: the answer {text!r:.40} has answer_start={start}, where {held} stands; {there}")
  return {"text": text, "answer_start": start}


def _text(holder: Any, name: str, where: str) -> str:
  value = holder.get(name) if isinstance(holder, dict) else None
  if not isinstance(value, str):
    raise UserError(f"{where}: {name}={value!r:.40}, expected a text")
  if not value.strip():
    raise UserError(f"{where}: the {name} is empty")
  return value


def _list(holder: Any, name: str, where: str) -> list[Any]:
  value = holder.get(name) if isinstance(holder, dict) else None
  if not isinstance(value, list):
    raise UserError(f"{where}: {name}={value!r:.40}, expected a list")
  return value


def _check_ids(file: Path, examples: Sequence[Example]) -> None:
  seen: set[str] = set()
  for one in examples:
    if one["id"] in seen:
      raise UserError(f"{file}: two questions have the id {one['id']!r:.40}")
    seen.add(one["id"])
