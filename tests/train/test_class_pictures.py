"""Pictures of the class that are missing are made before the training, and a generation that is cut off goes on."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from peftjax import UserError
from peftjax.train import class_pictures, loop
from tests.data.pictures import picture
from tests.train import dreambooth


@pytest.fixture
def config(tmp_path, monkeypatch):
  monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(class_pictures, "STEPS", 2)
  made = dreambooth.short(dreambooth.config_of(dreambooth.write_material(tmp_path / "pictures")))
  made.data.name = f"pictures:{tmp_path / 'pictures' / 'dog'},{tmp_path / 'made'}"
  made.input.update({"prior_caption": "a photo of dog", "num_class_images": 5})
  return made


def test_a_training_makes_what_it_lacks(config, tmp_path):
  summary = loop.train(config, tmp_path / "run")
  made = {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}
  assert sorted(made) == [f"class-0000{seed}.png" for seed in range(5)]
  assert np.asarray(Image.open(tmp_path / "made" / "class-00000.png")).shape == (8, 8, 3)
  assert len(set(made.values())) == 5
  assert np.isfinite(summary["metrics"]["train"]["loss"])
  assert class_pictures.make(config) == []
  for seed in (1, 4):  # as if it had been cut off
    (tmp_path / "made" / f"class-0000{seed}.png").unlink()
  assert class_pictures.make(config) == ["class-00001.png", "class-00004.png"]
  assert {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()} == made


def test_a_users_own_pictures_count(config, tmp_path):
  (tmp_path / "made").mkdir()
  for number in range(4):
    picture(9, 9, number).save(tmp_path / "made" / f"mine{number}.png")
  assert class_pictures.make(config) == ["class-00000.png"]
  config.data.name = f"pictures:{tmp_path / 'pictures' / 'dog'},{tmp_path / 'pictures' / 'dogs'}"
  assert class_pictures.make(config) == []  # its tables say what is in it


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"num_class_images": -1}, "expected a whole number up to 100,000"),
    ({"prior_caption": ""}, "input.prior_caption is empty; set it"),
    ({}, "expected data.name=pictures:SUBJECT,CLASS"),
  ],
)
def test_mistakes_are_one_line(config, fields, message):
  config.input.update(fields)
  if not fields:
    config.data.name = config.data.name.partition(",")[0]
  with pytest.raises(UserError, match=message):
    class_pictures.make(config)


@pytest.mark.parametrize("place", ["dog", "dog/made", "."])
def test_nothing_is_made_among_the_subject_s_pictures(config, tmp_path, place):
  subject = tmp_path / "pictures" / "dog"
  before = sorted(subject.rglob("*"))
  config.data.name = f"pictures:{subject},{tmp_path / 'pictures' / place}"
  with pytest.raises(UserError, match="one folder's pictures are among the other's"):
    class_pictures.make(config)
  assert sorted(subject.rglob("*")) == before
