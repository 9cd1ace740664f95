"""Folders of pictures, tables of their paths, and what is wrong with them."""

from __future__ import annotations

import csv
import json
import shutil

import pytest

from peftjax.data import open_data
from peftjax.errors import UserError
from tests.data.pictures import coloured, encoded, picture


def test_splits_and_classes_as_they_lie(tmp_path):
  data = open_data(f"folder:{coloured(tmp_path / 'a', {'train': 3, 'val': 1, 'test': 2})}")
  assert data.task == "image_classification" and data.label_names == ("blue", "green", "red")
  assert data.splits == {"train": 9, "validation": 3, "test": 6}
  example = data.split("test")[5]
  path = tmp_path / "a" / "test" / "red" / "1.png"
  assert example == {"image": path.read_bytes(), "where": str(path), "label": 2}
  shutil.copytree(tmp_path / "a", tmp_path / "b")
  assert open_data(f"folder:{tmp_path / 'b'}").fingerprint() == data.fingerprint()
  (tmp_path / "b" / "train" / "red" / "0.png").write_bytes(encoded(picture()))
  assert open_data(f"folder:{tmp_path / 'b'}").fingerprint() != data.fingerprint()


def test_one_folder_is_divided_by_content(tmp_path):
  coloured(tmp_path, {"": 20})
  data = open_data(f"folder:{tmp_path}")
  assert sum(data.splits.values()) == 60 and min(data.splits.values()) > 0
  names = {split: {data.split(split)[at]["image"] for at in range(count)} for split, count in data.splits.items()}
  for path in sorted((tmp_path / "red").iterdir()):
    shutil.copyfile(path, path.with_stem(f"copy-of-{path.stem}"))
  again = open_data(f"folder:{tmp_path}")
  for split, count in again.splits.items():
    assert {again.split(split)[at]["image"] for at in range(count)} == names[split]


@pytest.mark.parametrize("name", ["metadata.csv", "labels.csv", "metadata.jsonl"])
def test_a_table_beside_the_pictures(tmp_path, name):
  for split, count in (("train", 4), ("test", 2)):
    folder = tmp_path / split
    (folder / "deep").mkdir(parents=True)
    rows = [(f"deep/{index}.jpg", ("yes", "no")[index % 2]) for index in range(count)]
    for index, (path, _) in enumerate(rows):
      (folder / path).write_bytes(encoded(picture(seed=index), "JPEG"))
    with (folder / name).open("w", newline="") as file:
      if name.endswith(".csv"):
        csv.writer(file).writerows([("file_name", "label"), *rows])
      else:
        file.writelines(f'{{"file_name": "{path}", "label": "{label}"}}\n' for path, label in rows)
  data = open_data(f"folder:{tmp_path}")
  assert data.task == "image_classification" and data.splits == {"train": 4, "test": 2}
  example = data.split("train")[1]
  assert data.label_names[example["label"]] == "no" and example["where"].endswith("train/deep/1.jpg")
  assert example["image"] == (tmp_path / "train" / "deep" / "1.jpg").read_bytes()


def test_a_csv_with_its_pictures_elsewhere(tmp_path):
  coloured(tmp_path / "pictures", {"": 2})
  rows = [f"{colour}/{index}.png,{index + 0.5}" for colour in ("blue", "green", "red") for index in range(2)]
  for split in ("train", "test"):
    (tmp_path / f"{split}.csv").write_text("\n".join(["scan,age", *rows]) + "\n")
  data = open_data(f"csv:{tmp_path}", image_column="scan", label_column="age", image_root=str(tmp_path / "pictures"))
  assert data.label_kind == "number" and data.split("train")[3]["label"] == 1.5
  with pytest.raises(UserError, match=r"train.csv:2: no file 'blue/0.png' in "):
    open_data(f"csv:{tmp_path}", image_column="scan", label_column="age")


def broken(root, what):
  coloured(root, {"train": 2, "test": 1})
  if what == "empty class":
    shutil.rmtree(root / "train" / "red")
    (root / "train" / "red").mkdir()
  elif what == "ending":
    (root / "train" / "red" / "notes.txt").write_text("a note")
  elif what == "class":
    (root / "test" / "rde").mkdir()
    (root / "test" / "rde" / "0.png").write_bytes(encoded(picture()))
  elif what == "loose":
    (root / "train" / "0.png").write_bytes(encoded(picture()))
  elif what == "link":
    (root / "train" / "red" / "9.png").symlink_to("/etc/hostname")
  elif what == "one class":
    shutil.rmtree(root / "train" / "red")
    shutil.rmtree(root / "train" / "blue")
  elif what == "nothing":
    shutil.rmtree(root)
    root.mkdir()


@pytest.mark.parametrize(
  ("what", "said"),
  [
    ("empty class", r"train/red holds no picture or recording"),
    ("ending", r"train/red/notes.txt is no picture or recording by its ending; expected .jpg"),
    ("class", r"test/rde/0.png: class 'rde' is none of the 3 of the training split; did you mean 'red'\?"),
    ("loose", r"train/0.png lies in no class's folder"),
    ("link", r"train/red/9.png leads out of "),
    ("one class", r"train holds the one class 'green'"),
    ("nothing", r"holds no folder of a class"),
  ],
)
def test_what_is_wrong_takes_one_line_with_the_file(tmp_path, what, said):
  broken(tmp_path / "data", what)
  with pytest.raises(UserError, match=said):
    open_data(f"folder:{tmp_path / 'data'}")


def test_no_folder(tmp_path):
  (tmp_path / "pictures").mkdir()
  with pytest.raises(UserError, match="no folder .*; did you mean 'pictures'"):
    open_data(f"folder:{tmp_path / 'picturse'}")


@pytest.mark.parametrize("path", ["../secret.png", "/etc/secret.png", "link/secret.png"])
def test_a_table_names_nothing_outside_its_folder(tmp_path, path):
  (tmp_path / "secret.png").write_bytes(encoded(picture()))
  (tmp_path / "data").mkdir()
  (tmp_path / "data" / "link").symlink_to(tmp_path)
  (tmp_path / "data" / "metadata.csv").write_text(f"file_name,label\n{path},a\n{path},b\n")
  with pytest.raises(UserError, match="metadata.csv:2: .* leads out of "):
    open_data(f"folder:{tmp_path / 'data'}")


@pytest.mark.parametrize("name", ["a" * 300 + ".png", "a\0.png", "b/" * 3000 + ".png"])
def test_a_table_with_a_name_that_no_file_can_have(tmp_path, name):
  rows = [{"image": name, "label": label} for label in "ab"]
  (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  with pytest.raises(UserError, match=r"train.jsonl:1: .* is a name that no file can have"):
    open_data(f"jsonl:{tmp_path / 'train.jsonl'}")[0]


@pytest.mark.parametrize(
  ("folders", "said"),
  [
    (("Train/red", "Train/blue", "Test/red"), r"/Test is the test split by its name; expected .*/test$"),
    (("train/red", "train/blue", "testing/red"), r"/testing is the test split by its name; expected .*/test$"),
    (("training/red", "training/blue"), r"/training is the train split by its name; expected .*/train$"),
    (("train/red", "train/blue", "val/red", "dev/red"), r"/dev and .*/val are both the validation split"),
    (("val/red", "val/blue", "test/red"), r"/val is a split by its name, and there is no .*/train$"),
    (("red/train", "blue/train"), r"/blue/train is a split by its name; expected splits in .* itself"),
  ],
)
def test_a_folder_called_like_a_split_is_no_class_and_is_not_left_out(tmp_path, folders, said):
  for folder in folders:
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "0.png").write_bytes(encoded(picture()))
  with pytest.raises(UserError, match=said):
    open_data(f"folder:{tmp_path}")


def test_classes_and_other_folders_may_have_any_name(tmp_path):
  for seed, folder in enumerate(("val", "Testing", "red/kitchen", "blue/kitchen")):
    (tmp_path / "classes" / folder).mkdir(parents=True)
    (tmp_path / "classes" / folder / "0.png").write_bytes(encoded(picture(seed=seed)))
  assert open_data(f"folder:{tmp_path / 'classes'}").label_names == ("Testing", "blue", "red", "val")
  coloured(tmp_path / "data", {"train": 1, "raw": 1})
  (tmp_path / "data" / "testing").mkdir()
  (tmp_path / "data" / "testing" / "unlabelled.png").write_bytes(encoded(picture()))
  assert open_data(f"folder:{tmp_path / 'data'}").splits == {"train": 3}


@pytest.mark.parametrize(
  ("given", "said"),
  [
    (("train", "Test"), r"/Test is the test split by its name; expected .*/test/metadata.csv$"),
    (("train", "val", "dev"), r"/dev and .*/val are both the validation split"),
  ],
)
def test_a_table_in_a_folder_called_like_a_split_is_not_left_out(tmp_path, given, said):
  for split in given:
    (tmp_path / split).mkdir()
    (tmp_path / split / "0.png").write_bytes(encoded(picture()))
    (tmp_path / split / "metadata.csv").write_text("file_name,label\n0.png,red\n")
  with pytest.raises(UserError, match=said):
    open_data(f"folder:{tmp_path}")
