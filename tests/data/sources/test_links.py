"""A folder of data that links to files elsewhere."""

from __future__ import annotations

import pytest

from peftjax.data import open_data
from peftjax.errors import UserError

ROWS = "text,label\ngood,1\nbad,0\nfine,1\n"


@pytest.mark.parametrize("name", ["data", "data/{split}.csv"])
def test_a_link_out_of_the_folder_is_refused(name, tmp_path):
  (tmp_path / "data").mkdir()
  (tmp_path / "private.csv").write_text(ROWS)
  (tmp_path / "data" / "train.csv").symlink_to("../private.csv")
  with pytest.raises(UserError, match="train.csv is a link out of the data set's folder"):
    open_data(f"csv:{tmp_path / name}")
  assert open_data(f"csv:{tmp_path / 'data' / 'train.csv'}").label_names == ("0", "1")  # named by the user


def test_links_within_the_folder_and_in_the_cache_of_a_hub_are_followed(tmp_path):
  snapshot = tmp_path / "datasets--a--b" / "snapshots" / "f00"
  (tmp_path / "datasets--a--b" / "blobs").mkdir(parents=True)
  snapshot.mkdir(parents=True)
  (tmp_path / "datasets--a--b" / "blobs" / "abc").write_text(ROWS)
  (snapshot / "train.csv").symlink_to("../../blobs/abc")
  (snapshot / "inside.csv").write_text(ROWS)
  (snapshot / "test.csv").symlink_to("inside.csv")
  assert open_data(f"csv:{snapshot}").splits == {"train": 3, "test": 3}
