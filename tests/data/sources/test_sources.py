"""Data sets by one string: tasks, labels, splits, and the line a user reads when something is wrong."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from peftjax.data import open_data
from peftjax.errors import UserError


def jsonl(path: Path, rows: list[dict]) -> Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def reviews(count: int = 60, **more) -> list[dict]:
  return [{"text": f"text {index}", "label": ["bad", "good"][index % 2], **more} for index in range(count)]


def test_one_file_is_divided_by_its_texts(tmp_path):
  path = jsonl(tmp_path / "a.jsonl", reviews(300))
  dataset = open_data(f"jsonl:{path}")
  assert dataset.task == "text_classification"
  assert dataset.label_names == ("bad", "good")
  assert sum(dataset.splits.values()) == 300
  assert 210 < dataset.splits["train"] < 270
  of = {
    split: {row["text"] for row in map(dataset.split(split).__getitem__, range(size))}
    for split, size in dataset.splits.items()
  }
  assert len(set.union(*of.values())) == 300
  jsonl(tmp_path / "b.jsonl", reviews(300)[::-1])
  other = open_data(f"jsonl:{tmp_path / 'b.jsonl'}")
  assert {other.split("test")[index]["text"] for index in range(other.splits["test"])} == of["test"]


def test_a_folder_and_a_pattern_name_the_splits(tmp_path):
  for name, count in (("train", 5), ("dev", 3), ("test", 2)):
    jsonl(tmp_path / f"{name}.jsonl", reviews(count))
  for spec in (f"jsonl:{tmp_path}", f"jsonl:{tmp_path}/{{split}}.jsonl"):
    dataset = open_data(spec)
    assert dict(dataset.splits) == {"train": 5, "validation": 3, "test": 2}
    assert dataset.split("validation")[1] == {"text": "text 1", "label": 1}


def test_equal_content_has_equal_fingerprints_wherever_it_lies(tmp_path):
  first, second = (open_data(f"jsonl:{jsonl(tmp_path / name, reviews())}") for name in ("a/x.jsonl", "b/y.jsonl"))
  assert first.fingerprint() == second.fingerprint()
  third = open_data(f"jsonl:{jsonl(tmp_path / 'z.jsonl', [*reviews(), {'text': 'more', 'label': 'bad'}])}")
  assert third.fingerprint() != first.fingerprint()


def test_columns_can_be_named_and_pairs_read(tmp_path):
  path = tmp_path / "train.csv"
  path.write_text("premise,hypothesis,relation\nIt rains.,It is wet.,1\nIt rains.,It is dry.,0\n")
  dataset = open_data(f"csv:{tmp_path}", "premise,hypothesis", "relation")
  assert dataset.split("train")[1] == {"text": "It rains.", "text_pair": "It is dry.", "label": 0}
  assert dataset.label_names == ("0", "1")


def test_numbers_several_labels_and_tags_are_told_apart(tmp_path):
  rated = jsonl(tmp_path / "rated" / "train.jsonl", [{"text": "a", "label": 0.5}, {"text": "b", "label": 2}])
  dataset = open_data(f"jsonl:{rated.parent}")
  assert dataset.label_names == ()
  assert [dataset.split("train")[index]["label"] for index in (0, 1)] == [0.5, 2.0]
  several = jsonl(
    tmp_path / "several" / "train.jsonl",
    [{"text": "a", "labels": ["x", "z"]}, {"text": "b", "labels": []}, {"text": "c", "labels": ["y"]}],
  )
  source = open_data(f"jsonl:{several.parent}").split("train")
  np.testing.assert_array_equal([source[index]["label"] for index in range(3)], [[1, 0, 1], [0, 0, 0], [0, 1, 0]])
  tagged = jsonl(
    tmp_path / "tagged" / "train.jsonl", [{"tokens": ["Ada", "Byron", "wrote"], "tags": ["B-P", "I-P", "O"]}]
  )
  dataset = open_data(f"jsonl:{tagged.parent}")
  assert dataset.task == "token_classification"
  assert dataset.label_names == ("O", "B-P", "I-P")
  assert dataset.split("train")[0] == {"tokens": ["Ada", "Byron", "wrote"], "tags": [1, 2, 0]}


def test_text_alone_is_for_language_modelling(tmp_path):
  dataset = open_data(f"jsonl:{jsonl(tmp_path / 'a.jsonl', [{'text': f't {i}'} for i in range(30)])}")
  assert dataset.task == "causal_lm"
  assert dataset.label_names == ()


def test_a_source_and_its_target_are_found_by_name_or_named(tmp_path):
  rows = [{"question": f"q {i}", "answer": f"a {i}", "level": i} for i in range(20)]
  dataset = open_data(f"jsonl:{jsonl(tmp_path / 'a' / 'train.jsonl', rows).parent}")
  assert dataset.task == "seq2seq_lm"
  assert dataset.split("train")[3] == {"source": "q 3", "target": "a 3"}
  assert dataset.notes == ("read as source: 'question', as target: 'answer'; not read: level",)
  renamed = [{"text": f"en {i}", "pt": f"pt {i}"} for i in range(3)]
  folder = jsonl(tmp_path / "b" / "train.jsonl", renamed).parent
  assert open_data(f"jsonl:{folder}").task == "causal_lm"
  named = open_data(f"jsonl:{folder}", source_column="text", target_column="pt")
  assert named.split("train")[2] == {"source": "en 2", "target": "pt 2"}
  csv = tmp_path / "c.csv"
  csv.write_text("prompt,response\n" + "".join(f"p{i},r{i}\n" for i in range(30)))
  assert open_data(f"csv:{csv}").task == "seq2seq_lm"


def test_conversations_are_lists_of_messages(tmp_path):
  talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
  dataset = open_data(f"jsonl:{jsonl(tmp_path / 'train.jsonl', [{'messages': talk}]).parent}")
  assert dataset.task == "causal_lm"
  assert dataset.split("train")[0] == {"messages": talk}
  jsonl(tmp_path / "train.jsonl", [{"messages": talk}, {"messages": [{"role": "user"}]}])
  with pytest.raises(UserError, match="train.jsonl:2: column 'messages' holds .* objects with role and content"):
    open_data(f"jsonl:{tmp_path}")


@pytest.mark.parametrize(
  ("rows", "options", "message"),
  [
    (
      [{"a": "x", "b": "y"}],
      {"source_column": "a"},
      "train.jsonl:1: which column is the target? Set data.target_column",
    ),
    (
      [{"instruction": "add", "input": "1 and 2", "output": "3"}],
      {},
      "train.jsonl:1: 'instruction' and 'input' may each be the source; say which by data.source_column",
    ),
    ([{"prompt": "x", "answer": "a", "response": "b"}], {}, "'response' and 'answer' may each be the target"),
    ([{"source": "x", "target": 3}], {}, "train.jsonl:1: column 'target' holds 3, expected a string"),
    (
      [{"text": "a", "label": "x"}, {"txt": "b", "label": "y"}],
      {},
      "train.jsonl:2: no column 'text'; did you mean 'txt'?",
    ),
    (reviews(3), {"text_column": "texts"}, "train.jsonl:1: no column 'texts'; did you mean 'text'?"),
    (reviews(3), {"label_column": "lable"}, "no column 'lable'; did you mean 'label'?"),
    ([{"review": "a", "label": "x"}], {}, "set data.text_column to one of review, label"),
    ([{"text": 3, "label": "x"}], {}, "train.jsonl:1: column 'text' holds 3, expected a string"),
    ([{"text": "a", "label": 1}, {"text": "b", "label": 3}], {}, "train.jsonl:1: integer label 1"),
    ([{"text": "a", "label": 0}, {"text": "b", "label": -1}], {}, "train.jsonl:2: integer label -1"),
    ([{"text": "a", "label": 0}, {"text": "b", "label": "x"}], {}, "train.jsonl:2: label 'x', expected an integer"),
    ([{"text": "a", "label": "x"}, {"text": "b", "label": None}], {}, "train.jsonl:2: the label is empty"),
    ([{"text": "a", "label": "x"}, {"text": "b", "label": {}}], {}, "train.jsonl:2: label {}, expected a string or"),
    ([{"text": "a", "label": "x"}, {"text": "b", "label": "x"}], {}, "every row has the same label 'x'"),
    ([{"tokens": ["a", "b"], "tags": ["O"]}], {}, "train.jsonl:1: 2 tokens but 1 tags"),
    ([{"tokens": ["a", 1], "tags": ["O", "O"]}], {}, "expected a list of strings"),
    ([{"tokens": ["a"], "name": "x"}], {}, "set data.label_column to one of tokens, name"),
  ],
)
def test_a_mistake_in_the_data_is_one_line_with_its_place(tmp_path, rows, options, message):
  jsonl(tmp_path / "train.jsonl", rows)
  with pytest.raises(UserError) as error:
    open_data(f"jsonl:{tmp_path}", **options)
  assert message in str(error.value)
  assert "\n" not in str(error.value)


def test_a_label_that_training_never_shows_is_named(tmp_path):
  jsonl(tmp_path / "train.jsonl", reviews(4))
  jsonl(tmp_path / "test.jsonl", [{"text": "a", "label": "god"}])
  with pytest.raises(UserError, match=r"test.jsonl:1: label 'god' is none of the 2 labels .* did you mean 'good'"):
    open_data(f"jsonl:{tmp_path}")
  (tmp_path / "train.csv").write_text("text,label\na,0\nb,1\n")
  (tmp_path / "test.csv").write_text("text,label\na,2\n")
  with pytest.raises(UserError, match=r"test.csv:2: label '2' is none"):
    open_data(f"csv:{tmp_path}")


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ("jsn:a", "expected one of packaged:NAME, tfds:NAME, jsonl:NAME, csv:NAME"),
    ("jsonl:", "expected one of"),
    ("jsonl:{tmp}/trian.jsonl", "did you mean 'train.jsonl'?"),
    ("jsonl:{tmp}/empty", "no training file; expected .*train.jsonl"),
    ("packaged:bankng77", "did you mean 'banking77'?"),
    ("tfds:no_such_set_anywhere", "tfds:no_such_set_anywhere"),
  ],
)
def test_a_wrong_name_is_one_line(tmp_path, spec, message):
  jsonl(tmp_path / "train.jsonl", reviews(4))
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match=message):
    open_data(spec.replace("{tmp}", str(tmp_path)))


def test_a_wrong_split_is_one_line(tmp_path):
  jsonl(tmp_path / "train.jsonl", reviews(4))
  with pytest.raises(UserError, match="no split 'trian'; did you mean 'train'"):
    open_data(f"jsonl:{tmp_path}").split("trian")


def test_packaged_data_reads_as_described_and_by_other_columns():
  dataset = open_data("packaged:movie_reviews")
  assert dataset.task == "text_classification"
  assert dataset.label_names == ("negative", "positive")
  source = pickle.loads(pickle.dumps(dataset.split("test")))
  example = source[2]
  assert sorted(example) == ["label", "text"]
  assert isinstance(example["text"], str)
  assert isinstance(example["label"], int)
  rated = open_data("packaged:movie_reviews", label_column="rating")
  assert rated.label_names == ()
  assert (rated.split("test")[2]["label"] > 0) == bool(example["label"])
  assert rated.fingerprint() != dataset.fingerprint()
  tagged = open_data("packaged:wnut17")
  assert tagged.task == "token_classification"
  assert tagged.label_names[:2] == ("O", "B-corporation")
  assert len(tagged.split("test")[0]["tokens"]) == len(tagged.split("test")[0]["tags"])


def test_a_prepared_tfds_set_is_found_by_folder_and_by_name(tmp_path, monkeypatch):
  monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path))
  packaged = open_data("packaged:banking77")
  folder = tmp_path / "datasets" / "banking77" / "1.0.0"
  by_folder = open_data(f"tfds:{folder}")
  assert by_folder.fingerprint() == packaged.fingerprint()
  assert by_folder.split("test")[5] == packaged.split("test")[5]
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "datasets"))
  assert open_data("tfds:banking77").splits == packaged.splits


def test_a_tfds_set_that_is_not_prepared_says_how(tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  with pytest.raises(UserError, match=r"not prepared .* file_format='array_record'"):
    open_data("tfds:imdb_reviews")


def test_no_source_needs_tensorflow_or_leaves_it_imported():
  code = "import sys; from peftjax.data import open_data; open_data('packaged:banking77').split('test')[0]"
  code += "; assert 'tensorflow' not in sys.modules and 'torch' not in sys.modules"
  subprocess.run([sys.executable, "-c", code], check=True)
