"""Config files and overrides: what works, and the one line for each mistake."""

from __future__ import annotations

import pytest

from peftjax import config
from peftjax.errors import UserError


def test_overrides_reach_their_fields():
  made = config.load(
    "",
    [
      "train.steps=7",
      "optim.learning_rate=1",
      "method.name=ia3",
      "method.targets=('key','value')",
      "data.buckets=[8,16]",
      "optim.groups.head.learning_rate=5e-3",
      "model.path=0123",
      "model.scan_layers=false",
    ],
  )
  assert made.train.steps == 7
  assert made.optim.learning_rate == 1.0
  assert isinstance(made.optim.learning_rate, float)
  assert made.method.to_dict() == {"name": "ia3", "targets": ("key", "value")}
  assert made.data.buckets == (8, 16)
  assert made.optim.groups.head.learning_rate == 5e-3
  assert made.model.path == "0123"
  assert made.model.scan_layers is False


@pytest.mark.parametrize(
  ("override", "expected"),
  [
    ("train.step=7", "did you mean 'steps'"),
    ("trian.steps=7", "did you mean 'train'"),
    ("train.steps=many", "expected int"),
    ("train.steps=1.5", "expected int"),
    ("model.scan_layers=2", "expected bool"),
    ("optim.learning_rate=high", "expected float"),
    ("train=3", "is a section"),
    ("train.steps", "expected --config.train.steps=value"),
  ],
)
def test_mistakes_name_the_field_and_the_nearest(override, expected):
  with pytest.raises(UserError) as caught:
    config.load("", [override])
  assert expected in str(caught.value)


def test_a_file_with_an_argument(tmp_path):
  path = tmp_path / "mine.py"
  path.write_text(
    "from peftjax.config import default\n"
    "def get_config(steps='3'):\n"
    "  config = default()\n"
    "  config.train.steps = int(steps)\n"
    "  return config\n"
  )
  assert config.load(str(path)).train.steps == 3
  assert config.load(f"{path}:9", ["train.batch_size=2"]).train.steps == 9
  with pytest.raises(UserError, match=r"did you mean 'mine.py'"):
    config.load(str(tmp_path / "mime.py"))
  path.write_text("x = 1\n")
  with pytest.raises(UserError, match="get_config"):
    config.load(str(path))
