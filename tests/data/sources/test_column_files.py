"""Parquet, Arrow and JSON arrays, and folders as Hugging Face's data sets write them; its own reader is the oracle."""

from __future__ import annotations

import io
import json
import pickle

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from peftjax.data import open_data
from peftjax.data.sources.column_files import ColumnFile
from peftjax.errors import UserError

NAMES = ["neg", "pos", "mixed"]
ROWS = {"text": [f"film {index} é" for index in range(600)], "label": [(index * 7) % 2 for index in range(600)]}
FEATURES = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=NAMES)})


def examples(dataset, split="train"):
  source = dataset.split(split)
  return [source[index] for index in range(len(source))]


def read(given, split="train"):
  return [(one["text"], one["label"]) for one in given[split]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A folder of `save_to_disk`, with two files of training rows, and what was saved."""
  folder = tmp_path_factory.mktemp("saved")
  train = datasets.Dataset.from_dict(ROWS, FEATURES)
  given = datasets.DatasetDict({"train": train, "validation": train.select(range(5)), "test": train.select([8, 3, 11])})
  given.save_to_disk(str(folder / "whole"), num_shards={"train": 2, "validation": 1, "test": 1})
  return folder / "whole", given


def test_a_folder_on_disk(saved):
  folder, given = saved
  found = open_data(f"arrow:{folder}")
  assert dict(found.splits) == {"train": 600, "validation": 5, "test": 3} and found.task == "text_classification"
  assert found.label_names == tuple(NAMES)  # numbered as the schema does, also of one that no row has
  for split in given:
    assert [(one["text"], one["label"]) for one in examples(found, split)] == read(given, split)
  alone = open_data(f"arrow:{folder / 'train'}")
  assert sum(alone.splits.values()) == 600 and set(alone.splits) == {"train", "validation", "test"}
  source = pickle.loads(pickle.dumps(found.split("train")))
  assert source[599] == found.split("train")[599]


def test_parquet_as_hubs_keep_it(saved, tmp_path):
  _, given = saved
  (tmp_path / "data").mkdir()
  for split, one in given.items():
    half = len(one) // 2
    for number, rows in enumerate((range(half), range(half, len(one)))):
      one.select(rows).to_parquet(str(tmp_path / "data" / f"{split}-0000{number}-of-00002.parquet"))
  found = open_data(f"parquet:{tmp_path}")
  assert found.label_names == tuple(NAMES)
  assert [(one["text"], one["label"]) for one in examples(found)] == read(given)
  assert open_data(f"parquet:{tmp_path}/data/{{split}}-*.parquet").fingerprint() == found.fingerprint()
  whole = open_data(f"parquet:{tmp_path}/data/train-00000-of-00002.parquet")
  assert sum(whole.splits.values()) == 300
  reference = datasets.load_dataset("parquet", data_files=f"{tmp_path}/data/train-*.parquet", cache_dir=tmp_path / "c")
  assert [one["text"] for one in examples(found)] == reference["train"]["text"]


def test_tags_and_pictures_in_a_table(tmp_path):
  tags = datasets.Features({
    "tokens": datasets.Sequence(datasets.Value("string")),
    "ner_tags": datasets.Sequence(datasets.ClassLabel(names=["O", "B-X", "I-X"])),
  })  # fmt: skip
  rows = {"tokens": [["a", "b"], ["c"]] * 20, "ner_tags": [[1, 2], [0]] * 20}
  datasets.Dataset.from_dict(rows, tags).to_parquet(str(tmp_path / "train.parquet"))
  found = open_data(f"parquet:{tmp_path}")
  assert found.label_names == ("O", "B-X", "I-X") and examples(found)[0] == {"tokens": ["a", "b"], "tags": [1, 2]}

  pixels = [np.full((3, 4, 3), 40 * index, np.uint8) for index in range(6)]
  pictures = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dark", "light"])})
  made = datasets.Dataset.from_dict(
    {"image": [Image.fromarray(one) for one in pixels], "label": [0, 0, 0, 1, 1, 1]}, pictures
  )
  datasets.DatasetDict({"train": made, "test": made}).save_to_disk(str(tmp_path / "pictures"))
  found = open_data(f"arrow:{tmp_path / 'pictures'}")
  assert found.task == "image_classification" and found.label_names == ("dark", "light")
  for one, wanted, label in zip(examples(found, "test"), pixels, made["label"]):
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(one["image"]))), wanted) and one["label"] == label


def test_json_arrays(tmp_path):
  rows = [{"text": f"t {index}", "label": NAMES[index % 2]} for index in range(40)]
  (tmp_path / "train.json").write_text(json.dumps(rows))
  (tmp_path / "test.json").write_text(json.dumps({"version": 1, "data": rows[:3]}))
  found = open_data(f"json:{tmp_path}")
  assert dict(found.splits) == {"train": 40, "test": 3} and found.label_names == ("neg", "pos")
  assert examples(found, "test")[1] == {"text": "t 1", "label": 1}


def test_feather_files_and_other_schemas(tmp_path):
  table = pa.table({"text": ["a", "b"] * 20, "label": ["x", "y"] * 20})
  with pa.OSFile(str(tmp_path / "rows.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
    writer.write_table(table)
  assert open_data(f"arrow:{tmp_path / 'rows.arrow'}").label_names == ("x", "y")
  pq.write_table(table, tmp_path / "a.parquet")
  pq.write_table(table.drop_columns("label"), tmp_path / "b.parquet")
  with pytest.raises(UserError, match=r"b\.parquet: columns \['text'\], but"):
    len(ColumnFile([tmp_path / "a.parquet", tmp_path / "b.parquet"], "parquet"))


@pytest.mark.parametrize(
  ("name", "content", "spec", "words"),
  [
    ("bad.parquet", b"PAR1 no", "parquet:{}/bad.parquet", "bad.parquet cannot be read"),
    ("bad.arrow", b"no", "arrow:{}/bad.arrow", "bad.arrow cannot be read"),
    ("rows.json", b'{"text": "a"}\n{"text": "b"}', "json:{}/rows.json", "no JSON"),
    ("rows.json", b'{"text": "a"}', "json:{}/rows.json", "expected a JSON array of objects"),
    ("rows.json", b"[]", "json:{}/rows.json", "has no rows"),
    ("rows.json", b'[{"a": "x: y"}, {"a": "b",\n "a": 1}]', "json:{}/rows.json", "the field 'a' stands twice"),
    ("rows.json", b'{"data": [], "data": [{"a": 1}]}', "json:{}/rows.json", "the field 'data' stands twice"),
    ("state.json", b'{"_data_files": [{"filename": "../x.arrow"}]}', "arrow:{}", "expected the name of a file"),
    ("state.json", b"{}", "arrow:{}", "expected state.json that lists"),
    ("dataset_dict.json", b'{"splits": ["train"]}', "arrow:{}", "is no data set on disk"),
    ("x.txt", b"", "parquet:{}", "no training file"),
    ("rows.parquet", b"", "{}/rows.parquet", "did you mean 'parquet:"),
  ],
)
def test_files_that_are_none(name, content, spec, words, tmp_path):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(UserError, match=words):
    open_data(spec.format(tmp_path))


def described(table, features):
  """The table with what Hugging Face's data sets would say of its columns."""
  said = features if isinstance(features, bytes) else json.dumps({"info": {"features": features}}).encode()
  return table.replace_schema_metadata({"huggingface": said})


TABLE = pa.table({"text": [f"t {index}" for index in range(40)], "label": [index % 2 for index in range(40)]})
CLASSES = {"_type": "ClassLabel", "names": NAMES}


@pytest.mark.parametrize(
  ("features", "names"),
  [
    ({"label": CLASSES, "gone": CLASSES}, tuple(NAMES)),  # a column that was dropped since
    ({"label": CLASSES | {"names": ["a", 2, "b"]}}, ("0", "1")),
    ({"label": CLASSES | {"names": ["a", "a", "b"]}}, ("0", "1")),
    ([], ("0", "1")),
    (b'{"info": []}', ("0", "1")),
    (b"[]", ("0", "1")),
  ],
)
def test_descriptions_that_do_not_fit_the_table(features, names, tmp_path):
  pq.write_table(described(TABLE, features), tmp_path / "train.parquet")
  found = open_data(f"parquet:{tmp_path}")
  assert found.label_names == names and [one["label"] for one in examples(found)] == TABLE["label"].to_pylist()


def test_tags_as_earlier_versions_describe_them(tmp_path):
  table = pa.table({"tokens": [["a", "b"]] * 20, "tags": [[0, index % 3] for index in range(20)]})
  tags = CLASSES | {"names": ["O", "B-X", "I-X"]}
  pq.write_table(described(table, {"tags": [tags]}), tmp_path / "train.parquet")
  assert open_data(f"parquet:{tmp_path}").label_names == ("O", "B-X", "I-X")


def test_parts_that_number_their_classes_differently(tmp_path):
  pq.write_table(described(TABLE, {"label": CLASSES}), tmp_path / "train-0.parquet")
  for features in {"label": CLASSES | {"names": ["pos", "neg", "mixed"]}}, {}:
    pq.write_table(described(TABLE, features), tmp_path / "train-1.parquet")
    with pytest.raises(UserError, match=r"train-1\.parquet: the classes of column 'label' are .*neg, pos, mixed"):
      open_data(f"parquet:{tmp_path}")


def test_numbers_have_no_names(tmp_path):
  half = TABLE.set_column(1, "label", pa.array([index / 2 for index in range(40)]))
  pq.write_table(described(half, {"label": CLASSES}), tmp_path / "train.parquet")
  found = open_data(f"parquet:{tmp_path}")
  assert found.label_kind == "number" and found.label_names == () and examples(found)[3]["label"] == 1.5


NOT_UTF8 = pa.Array.from_buffers(pa.string(), 40, pa.array([b"\xff"] * 40).buffers())
TWO_FIELDS = pa.StructArray.from_arrays([pa.array(range(40))] * 2, names=["a", "a"])


@pytest.mark.parametrize(
  ("name", "column", "words"),
  [
    ("when", pa.array([2**60] * 40, pa.timestamp("s")), "row 1 or after: column 'when': "),
    ("when", pa.array([1] * 40, pa.timestamp("us", tz="No/Where")), "row 1 or after: column 'when': "),
    ("when", pa.array([2**30] * 40, pa.date32()), "row 1 or after: column 'when': "),
    ("raw", NOT_UTF8, "row 1 or after: column 'raw': 'utf-8' codec"),
    ("two", TWO_FIELDS, "row 1 or after: column 'two': "),
    ("label", pa.array(range(40)), "has two columns named 'label'; rename one"),
  ],
)
def test_values_that_are_none(name, column, words, tmp_path):
  table = TABLE.append_column(name, column)
  with pa.OSFile(str(tmp_path / "rows.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
    writer.write_table(table)
  with pytest.raises(UserError, match=rf"rows\.arrow,? {words}") as error:
    open_data(f"arrow:{tmp_path / 'rows.arrow'}")
  assert "\n" not in str(error.value)


def stored_once(rows, kind):
  """A column of `rows` texts of a megabyte that its buffers hold once."""
  text = pa.array(["a" * 10**6])
  if kind == "runs":
    return pa.RunEndEncodedArray.from_arrays(pa.array([rows], pa.int32()), text)
  if kind == "views":
    parts = pa.array(["a" * 10**3] * 10**3)
    starts, sizes = pa.array([0] * rows, pa.int32()), pa.array([10**3] * rows, pa.int32())
    return pa.ListViewArray.from_arrays(starts, sizes, parts)
  return pa.StructArray.from_arrays(
    [pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), text)], names=["within"]
  )


@pytest.mark.parametrize("kind", ["runs", "views", "within"])
def test_values_that_arrow_stores_once(kind, tmp_path, monkeypatch):
  rows = 3000
  table = pa.table({"text": stored_once(rows, kind), "label": [index % 2 for index in range(rows)]})
  with pa.OSFile(str(tmp_path / "rows.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
    writer.write_table(table)
  monkeypatch.setattr("peftjax.memory.limit", lambda: 2**29)
  with pytest.raises(UserError, match=r"rows\.arrow: needs .* of memory, and there are 512\.0 MiB"):
    open_data(f"arrow:{tmp_path / 'rows.arrow'}")


@pytest.mark.parametrize("kind", ["strings", "lists", "dictionaries", "arrow"])
def test_a_small_file_of_a_table_that_no_memory_holds(kind, tmp_path, monkeypatch):
  rows = 3000
  texts = pa.DictionaryArray.from_arrays(
    pa.array(np.arange(rows) % 2, pa.int32()), pa.array(["a" * 10**6, "b" * 10**6])
  )
  column = pa.ListArray.from_arrays(pa.array(range(rows + 1), pa.int32()), texts) if kind == "lists" else texts
  table = pa.table({"text": column, "label": [index % 2 for index in range(rows)]})
  path = tmp_path / ("rows.arrow" if kind == "arrow" else "rows.parquet")
  if kind == "arrow":
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
      writer.write_table(table)
  else:
    pq.write_table(table, path, store_schema=kind == "dictionaries")
  monkeypatch.setattr("peftjax.memory.limit", lambda: 2**29)
  with pytest.raises(UserError, match=rf"{path.name}: needs .* of memory, and there are 512\.0 MiB"):
    open_data(f"{path.suffix[1:]}:{path}")
