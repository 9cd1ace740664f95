"""Config files and overrides: what works, and the one line for each mistake."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import pytest

from peftjax import config, loading, optim, quantize
from peftjax.data.inputs import language
from peftjax.errors import UserError
from peftjax.methods import METHODS
from peftjax.models import layers
from peftjax.parallel.mesh import AXES
from peftjax.train import assemble


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
    ("trian.steps=7", "did you mean 'train.steps'"),
    ("trian.stesp=7", "did you mean 'train'"),
    ("train.steps=many", "expected a whole number from 0"),
    ("train.steps=1.5", "expected a whole number from 0"),
    ("model.scan_layers=2", "expected True or False"),
    ("optim.learning_rate=high", "expected a finite number of at least 0"),
    ("train=3", "is a section"),
    ("train.steps.x=3", "train.steps is a field, not a section"),
    ("train.steps", "expected --config.train.steps=value"),
    ("train..steps=1", "no section ''"),
    ("=1", "no field ''"),
    ("method.items=5", "no field 'items'"),
    # What other trainers call it
    ("method.r=8", "did you mean 'method.rank'"),
    ("method.lora_alpha=8", "did you mean 'method.alpha'"),
    ("target_modules=('q',)", "did you mean 'method.targets'"),
    ("lr=1e-3", "did you mean 'optim.learning_rate'"),
    ("optim.lr=1e-3", "did you mean 'optim.learning_rate'"),
    ("batch_size=8", "did you mean 'train.batch_size'"),
    ("rank=8", "did you mean 'method.rank'"),
    ("model.compute_dtype=bf16", "did you mean 'bfloat16'"),
    ("model.dtype=fp16", "did you mean 'float16'"),
    ("optim.name=AdamW", "did you mean 'adamw'"),
    # Ranges
    ("model.dropout=5.0", "expected a number from 0 to below 1, or -1"),
    ("task.label_smoothing=2.0", "expected a number from 0 to below 1"),
    ("train.keep=0", "expected a whole number from 1"),
    ("train.epochs=-1", "expected a number from 0"),
    ("train.epochs=1e999", "train.epochs=inf"),
    ("optim.learning_rate=1e999", "expected a finite number"),
    ("optim.warmup=1", "expected a number from 0 to below 1"),
    ("optim.b1=1.0", "expected a number from 0 to below 1"),
    ("optim.eps=0", "expected a number above 0"),
    ("seed=99999999999999999999", "expected a whole number from 0 to 4,294,967,295"),
    ("seed=-1", "expected a whole number from 0"),
    ("data.workers=-1", "expected a whole number from 0"),
    ("data.buckets=(16, 0)", "each item a whole number from 1"),
    ("train.final_splits=(1,)", "each item a text that is not empty"),
    ("model.path=", "expected a text that is not empty"),
    ("mesh.data=0", "or -1"),
    ("train.spike=0.5", "expected a finite number above 1, or 0"),
    ("data.max_length=1000000000", "to 16,777,216"),
    # Values that no config.json can hold, or that no parser should follow
    ("method.x=1j", "expected a number, a text"),
    ("method.x={1: 2}", "expected a text as a key"),
    ("method.x=1e999", "expected a finite number"),
    (f"method.x={10**30}", "expected a finite number"),
    (f"method.x={'[' * 90}{']' * 90}", "more than 20 deep"),
    (f"method.x={'1' * 100_001}", "100,001 characters"),
    ("data.name=\udcff", "expected UTF-8"),
  ],
)
def test_mistakes_name_the_field_and_the_nearest(override, expected):
  with pytest.raises(UserError) as caught:
    config.load("", [override])
  assert expected in str(caught.value)


def test_true_is_no_number_of_a_setting_that_a_file_has_set():
  made = config.default()
  with made.unlocked():
    made.input.jitter = 0.05
  with pytest.raises(UserError, match=r"--config\.input\.jitter=True: expected a number"):
    config.apply(made, "input.jitter=True")


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


@pytest.mark.parametrize("depth", [50, 1_000, 40_000])
@pytest.mark.parametrize("marks", ["()", "[]", "{}", "- "])
def test_nesting_without_end_is_a_text_or_one_line(marks, depth):
  made = config.default()
  with contextlib.suppress(UserError):
    config.apply(made, f"method.x={marks[0] * depth}1{marks[1] * depth}")
  assert isinstance(made.method.get("x", ""), str | int)


def test_every_default_is_within_its_range_and_says_what_it_is():
  made = config.default()
  config.check(made)
  for name, field in config.FIELDS.items():
    assert field.meaning and field.takes(field.default), name
    assert not field.takes(object()) and field.expected, name
  for alias, name in config.ALIASES.items():
    section, _, field = name.rpartition(".")
    assert name in config.FIELDS or section == "method", alias
    assert not any(alias in {one.name for one in dataclasses.fields(method)} and f"method.{alias}" != name
                   for method in METHODS.values()), alias  # fmt: skip


def test_choices_are_those_of_their_readers():
  """The table stands below what reads it, and repeats it."""
  for name, known in {
    "optim.name": optim.OPTIMIZERS,
    "optim.schedule": optim.SCHEDULES,
    "model.attention": layers.ATTENTION_BACKENDS,
    "model.remat": ("none", *layers.REMAT_POLICIES),
    "model.quantize": ("", *quantize.KINDS),
    "model.dtype": loading._DTYPES,
    "model.init": assemble.INITS,
    "data.format": language.FORMATS,
  }.items():
    assert set(config.FIELDS[name].choices) == set(known), name
  assert {name.partition(".")[2] for name in config.FIELDS if name.startswith("mesh.")} == set(AXES)


def test_check_names_a_field_that_a_program_has_set_wrong():
  for field, value, words in (
    ("train.batch_size", 0, "train.batch_size=0: expected a whole number from 1"),
    ("train.final_splits", ("",), "each item a text that is not empty"),
    ("optim.learning_rate", float("nan"), "expected a finite number"),
    ("optim.groups", {"head": {"learning_rate": float("nan")}}, "optim.groups.head.learning_rate=nan"),
    ("method.r", 3, "did you mean 'method.rank'"),
  ):
    made = config.default()
    section, _, last = field.rpartition(".")
    with made.unlocked(), made.ignore_type():
      made[section][last] = config.ConfigDict(value) if isinstance(value, dict) else value
    with pytest.raises(UserError) as caught:
      config.check(made)
    assert words in str(caught.value)
  made = config.default()
  with made.unlocked():
    made.train.bacth_size = 3
  with pytest.raises(UserError, match=r"config\.train\.bacth_size: no such field; did you mean 'train\.batch_size'"):
    config.check(made)
  made = config.default()
  with made.unlocked():
    made.train.epoch = 5.0
  with pytest.raises(UserError, match=r"config\.train\.epoch: no such field; did you mean 'epochs'\?"):
    config.check(made)


@pytest.mark.parametrize(
  "path", [*Path("configs").glob("*.py"), *Path("experiments/studies").glob("*/config.py")], ids=str
)
def test_the_projects_own_config_files(path):
  config.load(str(path))


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("def get_config(:\n", "line 1: SyntaxError"),
    ("x = 1\ny = missing\n", "line 2: NameError"),
    ("def get_config():\n  return 1 / 0\n", "line 2: ZeroDivisionError"),
    ("def get_config():\n  return get_config()\n", "RecursionError"),
    ("def get_config():\n  return {'seed': 1}\n", "returned dict; expected a ConfigDict"),
    ("get_config = 3\n", "no function get_config"),
  ],
)
def test_a_config_file_that_fails_is_one_line(tmp_path, monkeypatch, text, words):
  monkeypatch.chdir(tmp_path)
  Path("mine.py").write_text(text)
  for named in (str(tmp_path / "mine.py"), "mine.py"):
    with pytest.raises(UserError) as caught:
      config.load(named)
    assert words in str(caught.value)


def test_a_config_that_lacks_fields_gets_their_defaults(tmp_path):
  (tmp_path / "mine.py").write_text(
    "from ml_collections import ConfigDict\ndef get_config():\n  return ConfigDict({'train': {'steps': 3}})\n"
  )
  made = config.load(str(tmp_path / "mine.py"))
  assert (made.train.steps, made.train.batch_size, made.method.name) == (3, 32, "lora")
