"""CSV files drawn at random, against pandas: the same texts, and a label column taken for what pandas takes it for."""

from __future__ import annotations

import collections
import csv
import random

import pandas
import pytest

from peftjax.data import open_data
from peftjax.errors import UserError

QUICK, ALL = 220, 2000
_SPELLINGS = {
  "integers": lambda rng, n: ["", "", "", "+"][rng.randrange(4)] + str(n % 3),
  "far integers": lambda rng, n: str(rng.choice([-1, 5, 10])),
  "numbers": lambda rng, n: rng.choice(
    [f"{rng.uniform(-5, 5):.3f}", f"{rng.uniform(0, 1):.2e}", f"{n}.", f".{n}", f"+{n}.5", f"{n}", f" {n}.5"]
  ),
  "booleans": lambda rng, n: ["True", "False", "true", "FALSE"][n % 4],
  "names": lambda rng, n: rng.choice(["good", "bad", "a b", "x,y", 'say "so"', "1x", "e5", "0x1f", "1_000"]),
  "mixed": lambda rng, n: rng.choice(["good", "1", "2.5", "True"]),
  "missing": lambda rng, n: rng.choice(["0.5", "1.5", "2", rng.choice(["NA", "nan", "", "NULL"])]),
}
_TEXTS = [
  "plain",
  "with, comma",
  'with "quotes"',
  "two\nlines",
  "ünï 中文",
  "  spaces  ",
  "'single'",
  "tab\there",
  "#x",
]


def expected_kind(column: pandas.Series) -> str:
  """What the column is by pandas' type of it."""
  if column.isna().any():
    return "refused"
  if pandas.api.types.is_bool_dtype(column):
    return "class" if column.nunique() > 1 else "refused"
  if pandas.api.types.is_integer_dtype(column):
    return "class" if sorted(set(column)) == list(range(column.nunique())) and column.nunique() > 1 else "refused"
  if pandas.api.types.is_float_dtype(column):
    return "number"
  return "names" if column.nunique() > 1 else "refused"


@pytest.mark.parametrize(
  "seeds", [range(QUICK), pytest.param(range(QUICK, ALL), marks=pytest.mark.slow)], ids=["quick", "all"]
)
def test_columns_are_what_pandas_reads(seeds, tmp_path, record_property):
  counts: collections.Counter[str] = collections.Counter()
  for seed in seeds:
    rng = random.Random(seed)
    spelling = rng.choice(list(_SPELLINGS))
    rows = [(f"{rng.choice(_TEXTS)} {n}", _SPELLINGS[spelling](rng, n)) for n in range(rng.randrange(4, 12))]
    path = tmp_path / str(seed) / "train.csv"
    path.parent.mkdir()
    with path.open("w", newline="", encoding=rng.choice(["utf-8", "utf-8-sig"])) as file:
      quoting = rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
      csv.writer(file, quoting=quoting, lineterminator=rng.choice(["\n", "\r\n"])).writerows([("text", "label"), *rows])
    right = pandas.read_csv(path)
    kind = expected_kind(right["label"])
    try:
      dataset = open_data(f"csv:{path.parent}")
    except UserError as error:
      said = str(error)
      # A column mostly of numbers with other words in it is names to pandas, and refused here.
      if kind != "refused" and "expected a number as in most rows" not in said:
        pytest.fail(f"seed {seed}: {rows}: {said}")
      counts["refused"] += 1
      continue
    source = dataset.split("train")
    assert [source[n]["text"] for n in range(len(rows))] == list(right["text"]), (seed, rows)
    found = [source[n]["label"] for n in range(len(rows))]
    if kind == "number":
      assert dataset.label_kind == "number" and found == pytest.approx(list(right["label"]), rel=1e-12), (seed, rows)
    elif kind == "class":
      assert dataset.label_kind == "class" and found == [int(one) for one in right["label"]], (seed, rows)
    else:
      assert kind == "names" and [dataset.label_names[one] for one in found] == list(right["label"]), (seed, rows)
    counts["equal"] += 1
  parts = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
  record_property("counted", f"compared with pandas: {len(seeds)} drawn CSV files ({parts})")
  assert counts["equal"] > 0.5 * len(seeds)
