"""Folders of pictures that are learned as they are: of one subject, with captions, beside others that should stay."""

from __future__ import annotations

import pytest

from peftjax.data.sources import open_data
from peftjax.errors import UserError
from tests.data.pictures import picture


def write(folder, *seeds):
  folder.mkdir(parents=True)
  for seed in seeds:
    picture(12 + seed, 9, seed).save(folder / f"{seed}.png")
  return folder


def test_all_pictures_of_a_folder_are_trained_on(tmp_path):
  folder = write(tmp_path / "dog", 0, 1)
  write(folder / "more", 2)
  (folder / "SOURCE.txt").write_text("mine\n")
  found = open_data(f"pictures:{folder}")
  assert (found.task, found.fields, dict(found.splits)) == ("denoising", ("image",), {"train": 3})
  assert "SOURCE.txt" in found.notes[0]
  assert found.split("train")[2]["image"] == (folder / "more" / "2.png").read_bytes()


def test_splits_as_they_lie_and_captions_from_a_table(tmp_path):
  write(tmp_path / "dog" / "train", 0, 1)
  write(tmp_path / "dog" / "test", 2)
  assert dict(open_data(f"pictures:{tmp_path / 'dog'}").splits) == {"train": 2, "test": 1}
  folder = write(tmp_path / "told", 0, 1, 2)
  (folder / "captions.jsonl").write_text(
    "".join(f'{{"file_name": "{seed}.png", "caption": "number {seed}"}}\n' for seed in (2, 0, 1))
  )
  found = open_data(f"pictures:{folder}")
  assert (found.fields, dict(found.splits)) == (("image", "text"), {"train": 3})
  first = found.split("train")[0]
  assert (first["text"], first["image"]) == ("number 2", (folder / "2.png").read_bytes())


def test_each_stands_beside_one_that_should_stay(tmp_path):
  """As many as the larger folder has, as in diffusers' DreamBoothDataset."""
  write(tmp_path / "dog", 0, 1)
  dogs = write(tmp_path / "dogs", 3, 4, 5)
  (dogs / "metadata.csv").write_text("file_name,text\n" + "".join(f"{seed}.png,a dog {seed}\n" for seed in (3, 4, 5)))
  found = open_data(f"pictures:{tmp_path / 'dog'},{dogs}")
  assert found.fields == ("image", "prior_image", "prior_text")
  assert found.splits["train"] == 3
  pairs = [found.split("train")[index] for index in range(3)]
  assert [one["prior_text"] for one in pairs] == ["a dog 3", "a dog 4", "a dog 5"]
  assert pairs[0]["image"] == pairs[2]["image"] != pairs[1]["image"]
  assert found.fingerprint() != open_data(f"pictures:{tmp_path / 'dog'}").fingerprint()


def test_a_comma_at_the_end_is_not_the_folder_one_stands_in(tmp_path, monkeypatch):
  monkeypatch.chdir(write(tmp_path / "dog", 0))
  for name in (f"{tmp_path / 'dog'},", f",{tmp_path / 'dog'}"):
    with pytest.raises(UserError, match="expected a folder, or two divided by a comma"):
      open_data(f"pictures:{name}")


def test_folders_within_each_other_whose_pictures_are_others(tmp_path):
  write(tmp_path / "dog" / "train", 0)
  write(tmp_path / "dog" / "class", 1, 2)
  assert len(open_data(f"pictures:{tmp_path / 'dog'},{tmp_path / 'dog' / 'class'}").split("train")) == 2


def test_what_a_table_leaves_out_is_said(tmp_path):
  folder = write(tmp_path / "told", 0, 1, 2)
  (folder / "metadata.csv").write_text("file_name,text\n0.png,a dog\n2.png,a cat\n")
  (folder / "captions.jsonl").write_text('{"file_name": "1.png", "text": "a dog"}\n')
  notes = open_data(f"pictures:{folder}").notes
  assert any("metadata.csv is read, and not captions.jsonl" in one for one in notes)
  assert any("1 of the 3 pictures in" in one and "have no row and are left out" in one for one in notes)


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("dogg", "no folder '.*dogg'; did you mean 'dog'"),
    ("empty", "empty holds no picture; expected .jpg"),
    ("dog,dog,dog", "expected a folder, or two divided by a comma"),
    ("dog,dog", "one folder's pictures are among the other's"),
    ("dog,dog/../dog", "one folder's pictures are among the other's"),
    ("parted,parted/train", "one folder's pictures are among the other's"),
    ("parted/train/more,parted", "one folder's pictures are among the other's"),
    ("told", r"metadata.csv:2: no column 'text' or 'caption' or 'prompt' of its caption; there are file_name, label"),
  ],
)
def test_what_is_wrong_is_one_line(tmp_path, name, message):
  write(tmp_path / "dog", 0)
  write(tmp_path / "empty")
  write(tmp_path / "parted" / "train", 1)
  write(tmp_path / "parted" / "train" / "more", 2)
  (write(tmp_path / "told", 0) / "metadata.csv").write_text("file_name,label\n0.png,dog\n")
  folders = ",".join(str(tmp_path / one) for one in name.split(","))
  with pytest.raises(UserError, match=message):
    open_data(f"pictures:{folders}")
