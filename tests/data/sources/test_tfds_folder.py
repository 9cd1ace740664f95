"""A prepared TFDS folder is data: what it names is neither imported nor looked for elsewhere."""

from __future__ import annotations

import json
import sys

import pytest

from peftjax.data import open_data
from peftjax.errors import UserError

TEXT = "tensorflow_datasets.core.features.text_feature.Text"
INFO = {
  "name": "ds",
  "version": "1.0.0",
  "fileFormat": "array_record",
  "splits": [{"name": "train", "shardLengths": ["1"], "numBytes": "1"}],
}


def folder(tmp_path, features=None, **info):
  where = tmp_path / "ds" / "1.0.0"
  where.mkdir(parents=True)
  (where / "dataset_info.json").write_text(json.dumps({**INFO, **info}))
  (where / "features.json").write_text(json.dumps(features or {"pythonClassName": TEXT, "text": {}}))
  return where


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name", "type"])
@pytest.mark.parametrize("by", ["folder", "name"])
def test_no_code_that_a_folder_names_is_imported(tmp_path, monkeypatch, key, by):
  (tmp_path / "evil_feature.py").write_text("raise SystemExit('imported')\n")
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  inner = {"features": {"a": {key: "evil_feature.Feature", "content": {}}}}
  where = folder(tmp_path, {"pythonClassName": TEXT, "featuresDict": inner})
  with pytest.raises(UserError, match=r"a feature of the class 'evil_feature.Feature'; only TFDS's own are read"):
    open_data(f"tfds:{where}" if by == "folder" else "tfds:ds")
  assert "evil_feature" not in sys.modules


@pytest.mark.parametrize(
  ("info", "message"),
  [
    ({"name": "../../etc"}, "name is '../../etc', which is no plain name"),
    ({"splits": [{"name": "../train"}]}, "a split's name is '../train'"),
    ({"splits": [{"name": "train", "filepathTemplate": "/etc/{SPLIT}"}]}, "expected the name of a file in the folder"),
    ({"splits": 5}, "splits=5, expected a list of objects"),
    ({"version": 1}, "version is 1"),
  ],
)
def test_no_file_outside_the_folder_is_named(tmp_path, info, message):
  with pytest.raises(UserError, match=message):
    open_data(f"tfds:{folder(tmp_path, **info)}")


def test_no_link_leaves_the_folder(tmp_path):
  where = folder(tmp_path)
  (tmp_path / "elsewhere").write_text("")
  (where / "ds-train.array_record-00000-of-00001").symlink_to(tmp_path / "elsewhere")
  with pytest.raises(UserError, match="is a link out of the data set's folder"):
    open_data(f"tfds:{where}")


def test_damaged_folders_and_community_names_are_one_line(tmp_path):
  where = folder(tmp_path)
  for content in ("[" * 100_000, "{", '{"pythonClassName": 5}', "[]"):
    (where / "features.json").write_text(content)
    with pytest.raises(UserError) as error:
      open_data(f"tfds:{where}")
    assert "\n" not in str(error.value)
  with pytest.raises(UserError, match="only data sets of TFDS's own catalogue"):
    open_data("tfds:huggingface:somebody__set")


def test_a_split_without_examples_is_none(tmp_path):
  features = {"pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
              "featuresDict": {"features": {"text": {"pythonClassName": TEXT, "text": {}}}}}  # fmt: skip
  splits = [*INFO["splits"], {"name": "test", "shardLengths": ["0"], "numBytes": "0"}]
  assert open_data(f"tfds:{folder(tmp_path, features, splits=splits)}").splits == {"train": 1}
