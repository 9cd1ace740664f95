"""COCO's JSON: layouts, what an example holds, and one line for each mistake."""

from __future__ import annotations

import copy
import json
import re

import numpy as np
import pytest

from peftjax.data import open_data
from peftjax.errors import UserError
from tests.data.pictures import picture

CONTENT = {
  "images": [{"id": 7, "file_name": "a.png", "width": 31, "height": 23},
             {"id": 9, "file_name": "b.png", "width": 20, "height": 40}],
  "categories": [{"id": 5, "name": "cat"}, {"id": 2, "name": "dog"}],
  "annotations": [
    {"id": 1, "image_id": 7, "category_id": 5, "bbox": [1, 2.5, 10, 8], "iscrowd": 0},
    {"id": 2, "image_id": 7, "category_id": 2, "bbox": [20, 10, 11.5, 13], "iscrowd": 1},
  ],
}  # fmt: skip


def lay(root, content=CONTENT, file="train.json", pictures=""):
  """The files of a data set below `root`."""
  (root / file).parent.mkdir(parents=True, exist_ok=True)
  (root / file).write_text(json.dumps(content))
  (root / pictures).mkdir(parents=True, exist_ok=True)
  for seed, one in enumerate(CONTENT["images"]):
    picture(one["width"], one["height"], seed).save(root / pictures / one["file_name"])


@pytest.mark.parametrize(
  ("file", "pictures"),
  [
    ("train.json", ""),
    ("train.json", "images"),
    ("train/_annotations.coco.json", "train"),
    ("annotations/instances_train2017.json", "train2017"),
  ],
)
def test_layouts_are_found_and_examples_hold_corners_labels_and_crowds(tmp_path, file, pictures):
  lay(tmp_path, file=file, pictures=pictures)
  data = open_data(f"coco:{tmp_path}")
  assert (data.task, data.label_names, data.splits) == ("object_detection", ("dog", "cat"), {"train": 2})
  assert data.most_boxes == 2
  first, second = data.split("train")[0], data.split("train")[1]
  assert first["image"] == (tmp_path / pictures / "a.png").read_bytes() and first["size"] == (23, 31)
  np.testing.assert_array_equal(first["boxes"], [[1, 2.5, 11, 10.5], [20, 10, 31, 23]])  # rounding is cut off
  assert first["labels"].tolist() == [1, 0] and first["crowd"].tolist() == [False, True]
  assert second["boxes"].shape == (0, 4) and second["labels"].shape == (0,)


def test_one_file_is_divided_and_pictures_may_lie_elsewhere(tmp_path):
  content = copy.deepcopy(CONTENT)
  content["images"] = [{"id": number, "file_name": f"{number}.png", "width": 9, "height": 9} for number in range(40)]
  content["annotations"] = [
    {"id": number, "image_id": number, "category_id": 2, "bbox": [1, 1, 3, 3]} for number in range(40)
  ]
  (tmp_path / "all.json").write_text(json.dumps(content))
  (tmp_path / "far").mkdir()
  for number in range(40):
    picture(9, 9, number).save(tmp_path / "far" / f"{number}.png")
  data = open_data(f"coco:{tmp_path / 'all.json'}", image_root=str(tmp_path / "far"))
  assert set(data.splits) == {"train", "validation", "test"} and sum(data.splits.values()) == 40


def changed(path, value):
  content = copy.deepcopy(CONTENT)
  holder = content
  for key in path[:-1]:
    holder = holder[key]
  holder[path[-1]] = value
  return content


BOX = ("annotations", 0, "bbox")


@pytest.mark.parametrize(
  ("content", "said"),
  [
    (changed(BOX, [25, 2, 10, 8]), "annotation 1, a.png: bbox=[25, 2, 10, 8] lies outside the image of 31 x 23 pixels"),
    (changed(BOX, [-3, 2, 10, 8]), "a.png: bbox=[-3, 2, 10, 8] lies outside"),
    (changed(BOX, [31, 2, 0.5, 8]), "a.png: bbox=[31, 2, 0.5, 8] lies outside"),
    (changed(BOX, [1, 2, 0, 8]), "a.png: bbox=[1, 2, 0, 8] is empty; expected a width and a height above 0"),
    (changed(BOX, [1, 2, 8]), "a.png: bbox=[1, 2, 8], expected [x, y, width, height] in pixels"),
    (changed(BOX, [1, 2, float("nan"), 8]), "a.png: bbox=[1, 2, nan, 8], expected"),
    (changed(BOX, [1, 2, 10**400, 8]), "expected [x, y, width, height] in pixels"),
    (changed(("annotations", 0, "category_id"), 3), "category_id=3 is not listed; expected one of 2 (dog), 5 (cat)"),
    (changed(("annotations", 0, "category_id"), [3]), "category_id=[3] is not listed"),
    (changed(("annotations", 0, "image_id"), 8), "annotation 1 is of image 8, which is not listed"),
    (changed(("annotations", 0, "iscrowd"), 2), "iscrowd=2, expected 0 or 1"),
    (changed(("annotations", 0), 3), "annotation None is of image None"),
    (changed(("images", 0, "file_name"), "c.png"), "image 7: no file 'c.png'"),
    (changed(("images", 0, "file_name"), "../a.png"), "leads out of"),
    (changed(("images", 0, "width"), 0), "a.png: height=23, width=0, expected numbers of pixels"),
    (changed(("images", 1, "id"), 7), "two images have the id 7"),
    (changed(("categories", 1, "name"), "cat"), "two categories have the id 2 or the name 'cat'"),
    (changed(("categories", 0), {"name": "cat"}), 'expected a whole number as "id"'),
    (changed(("annotations",), None), "annotations=None, expected COCO's JSON"),
    (changed(("images",), []), "it lists no images"),
    (changed(("annotations",), []), "no image of the training split has an object; there is nothing to learn"),
    (changed(("annotations",), CONTENT["annotations"][1:]), "no image of the training split has an object"),
  ],
)  # fmt: skip
def test_a_mistake_takes_one_line_with_its_file(tmp_path, content, said):
  lay(tmp_path, content)
  with pytest.raises(UserError, match=re.escape(said)) as caught:
    open_data(f"coco:{tmp_path}")
  assert "train.json" in str(caught.value) and "\n" not in str(caught.value)


def test_splits_have_the_same_categories(tmp_path):
  lay(tmp_path)
  other = changed(("categories", 0, "name"), "cats")
  (tmp_path / "val.json").write_text(json.dumps(other))
  with pytest.raises(
    UserError, match="val.json: its categories are not those of .*train.json; 'cats': did you mean 'cat'"
  ):
    open_data(f"coco:{tmp_path}")


def test_a_folder_without_annotations_says_what_is_looked_for(tmp_path):
  with pytest.raises(UserError, match="_annotations.coco.json"):
    open_data(f"coco:{tmp_path}")


def test_a_folder_called_like_a_split_is_not_left_out(tmp_path):
  for split in ("train", "Test"):
    lay(tmp_path, file=f"{split}/_annotations.coco.json", pictures=split)
  with pytest.raises(UserError, match=r"/Test is the test split by its name; expected .*/test/_annotations.coco.json$"):
    open_data(f"coco:{tmp_path}")


def test_a_file_that_is_two_images_has_the_same_objects_in_both(tmp_path):
  content = copy.deepcopy(CONTENT)
  again = {**content["images"][0], "id": 99}
  content["images"].append(again)
  content["annotations"] += [{**one, "image_id": 99, "id": 50 + one["id"]} for one in content["annotations"]]
  lay(tmp_path, content)
  assert open_data(f"coco:{tmp_path}").splits == {"train": 3}
  content["annotations"].pop()
  (tmp_path / "train.json").write_text(json.dumps(content))
  with pytest.raises(UserError, match=r"train.json: images \d+ and 99 are both a.png and have other objects"):
    open_data(f"coco:{tmp_path}")
