"""Pairs of texts that belong together, and how alike they are where somebody has said: ``pairs:FILE``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from peftjax.data.sources.columns import Columns
from peftjax.data.sources.files import SPLIT_FILES, open_files
from peftjax.data.sources.text_files import Row
from peftjax.data.sources.types import CONTRASTIVE, Dataset, Named
from peftjax.errors import UserError, nearest

PAIRS = (
  ("text", "text_pair"),
  ("sentence1", "sentence2"),
  ("anchor", "positive"),
  ("query", "passage"),
  ("question", "answer"),
  ("question1", "question2"),
  ("premise", "hypothesis"),
)
SCORES = ("score", "similarity", "similarity_score", "label")


def open_pairs(path: str, named: Named) -> Dataset:
  """A data set of CSV or JSON-lines files with two columns of texts and perhaps one of scores, numbers that rise with
  how alike the two are. An example has "text", "text_pair" and, with scores, "label", a float.

  Args:
    path: a file, a folder or a pattern, as of ``csv:`` and ``jsonl:``.
    named: its text is the two columns, ``a,b``, and its label that of the scores; without, they are found by the names
      in `PAIRS` and `SCORES`.

  Raises:
    UserError: as `open_files`; an empty text; no two columns that are known.
  """
  kind = "csv" if _is_csv(path) else "jsonl"
  if named.label_kind not in ("auto", "number"):
    raise UserError(f"pairs:{path}: data.label_kind={named.label_kind!r}: how alike two texts are is a number")
  asked = dataclasses.replace(named, label_kind="number")
  found = open_files(kind, path, asked, choose=_columns, filled=True)
  return dataclasses.replace(found, name=f"pairs:{path}", task=CONTRASTIVE)


def _is_csv(path: str) -> bool:
  if Path(path).is_dir():
    return not any((Path(path) / f"{name}.jsonl").is_file() for names in SPLIT_FILES.values() for name in names)
  return Path(path).suffix in (".csv", ".tsv")


def _columns(row: Row, where: str, named: Named) -> Columns:
  texts = tuple(named.text.split(",")) if named.text else next((one for one in PAIRS if {*one} <= row.keys()), ())
  if len(texts) != 2:
    if named.text:
      raise UserError(f"data.text_column={named.text!r}: expected two columns, divided by a comma")
    usual = ", ".join(" and ".join(one) for one in PAIRS[:3])
    raise UserError(f"{where}: which columns are the two texts? Known are {usual} ...; set data.text_column to two of "
                    f"{', '.join(row)}")  # fmt: skip
  for name in filter(None, (*texts, named.label)):
    if name not in row:
      raise UserError(f"{where}: no column {name!r}; {nearest(name, row)}")
  score = named.label or next((one for one in SCORES if one in row), "")
  return Columns(text=texts[0], pair=texts[1], label=score)
