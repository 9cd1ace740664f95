"""Mistakes in parts of a user's own: one line, the same in every verb, before anything is trained."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from peftjax import cli
from peftjax import config as configs
from peftjax.compare.training import JaxTrainer
from peftjax.errors import UserError
from peftjax.guide.recommend import recommend
from peftjax.train import inspection, loop, plan

EXAMPLES = Path(__file__).parents[2] / "examples"

PARTS = """
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import grid_model
import grid_task
import peftjax
import spectra_source
from grid_input import Planes
from peftjax.tasks import Metric


def changed(**fields):
  return lambda rest, named: dataclasses.replace(spectra_source.spectra(rest, named), **fields)


other = changed(name="other", fields=("light", "label"))
spelt = changed(label_kind="clas")
nameless = changed(label_names=())
unlabelled = changed(name="unlabelled", fields=("text",), label_kind="")
untrained = changed(splits={"test": 48})
untested = changed(splits={"train": 96, "test": 0})
one_text = changed(fields="spectrum")
nothing = lambda rest, named: None


def gone(rest, named):
  raise FileNotFoundError(2, "No such file or directory", "/nowhere/spectra.bin")


def five(config):
  params = grid_model.init(jax.random.key(config.seed))
  params["head"] = {"kernel": jnp.zeros((24, 5)), "bias": jnp.zeros(5)}
  return peftjax.wrap(grid_model.policy, params, {"planes": jnp.zeros((2, 7, 7, 3))})


def in_a_dict(config):
  params = grid_model.init(jax.random.key(config.seed))
  return peftjax.wrap(lambda p, planes: {"logits": grid_model.policy(p, planes)}, params,
                      {"planes": jnp.zeros((2, 7, 7, 3))})


def narrow(config):
  return peftjax.wrap(lambda p, planes: planes.reshape(len(planes), -1) @ p["w"], {"w": jnp.zeros((2 * 7 * 3, 4))},
                      {"planes": jnp.zeros((2, 2, 7, 3))})


class Means(grid_task.Cloning):
  def loss(self, forward, batch, key):
    losses, _ = self._losses(forward, batch)
    return losses, batch["weight"].sum(), {}


class Typo(grid_task.Cloning):
  def outputs(self, batch):
    return {}

  def loss(self, forward, batch, key):
    return forward({"planes": batch["plains"]})


class Lossless(grid_task.Cloning):
  def predict(self, forward, batch):
    return {"move": forward({"planes": batch["planes"]}).argmax(-1)}


class Square(grid_task.Cloning):
  def predict(self, forward, batch):
    found = super().predict(forward, batch)
    return {**found, "loss": found["loss"][:, None] - found["loss"]}


class Nameless(grid_task.Cloning):
  specs = (Metric("loss", "per-example", value="loss"), Metric("optimal", "per-example", value="best"))


class Misspelt(grid_task.Cloning):
  main_metric = "optimall"


class Wide(Planes):
  def encode(self, example, rng):
    return super().encode({**example, "planes": np.zeros((7, 8, 3))}, rng)
"""


@pytest.fixture
def parts(tmp_path, monkeypatch):
  monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path / "cache"))
  (tmp_path / "mistaken_parts.py").write_text(PARTS)
  for folder in (tmp_path, EXAMPLES / "spectra", EXAMPLES / "own_model"):
    monkeypatch.syspath_prepend(str(folder))


def config_of(example, *overrides):
  return configs.load(str(EXAMPLES / example / "config.py"), (*overrides, "train.steps=2", "train.tensorboard=False"))


DATA = [
  ("data.name=mistaken_parts:other", "reads spectrum, label; 'other' holds light, label: no 'spectrum'"),
  ("data.name=mistaken_parts:spelt", "'spectra' has label_kind='clas'; did you mean 'class'"),
  ("data.name=mistaken_parts:one_text", "'spectra' has fields='spectrum'; expected a tuple of texts"),
  ("data.name=mistaken_parts:nothing", "gave NoneType; expected a peftjax.data.sources.Dataset"),
  ("data.name=mistaken_parts:untrained", "has no examples in a split 'train'; its splits: test: 48"),
  ("data.name=mistaken_parts:untested", "has splits with 'test': 0; leave a split without examples out"),
  ("task.doubt=high", "task.doubt='high': expected a finite number"),
  ("input.levels=8.5", "input.levels=8.5: expected a whole number"),
  ("input.noise=(1,2)", r"input.noise=\(1, 2\): expected a finite number"),
  ("input.nois=1.0", "input.nois: no such field of Levels; did you mean 'noise'"),
  ("evaluators.far.steps=two", "evaluators.far.steps='two': expected a whole number"),
  ("train.eval_every=2 train.best=valid/loss", "no split 'valid' is evaluated in training; did you mean 'validation'"),
  ("train.eval_every=2 train.best=validation/acuracy", "no metric 'acuracy'; did you mean 'accuracy'"),
  ("train.evaluators=spectra_evaluator:Fat", "spectra_evaluator has no 'Fat'; did you mean 'Far'"),
  ("train.evaluators=spectra_source:spectra", "expected a class derived from peftjax.train.evaluators.Evaluator"),
  ("input.name=spectra_source:spectra", "expected a class derived from peftjax.data.Input"),
  ("task.name=spectra_source:spectra", "expected a class derived from peftjax.tasks.Task"),
]
MODELS = [
  ("model.path=mistaken_parts:five", r"'mistaken_parts:five' gives float32\[64, 5\]; .* reads an array \[64, 4\]"),
  ("model.path=mistaken_parts:in_a_dict", r"gives {'logits': float32\[64, 4\]}; .* reads an array \[64, 4\]"),
  ("model.path=mistaken_parts:narrow", r"fails on {'planes': float32\[64, 7, 7, 3\].*mistaken_parts.py, line \d+"),
  ("task.name=mistaken_parts:Means", r"Cloning.loss gives \(float32\[64\], float32\[\], {}\); expected \(the sum of"),
  ("task.name=mistaken_parts:Typo", r"fails before the model is called: KeyError: 'plains' \(mistaken_parts.py, line"),
  (
    "task.name=mistaken_parts:Lossless",
    r"Cloning.predict gives {'move': int32\[64\]}; expected .* 'loss' \[64\]",
  ),
  (
    "task.name=mistaken_parts:Misspelt",
    "has main_metric='optimall', which is the name of none of its specs; did you mean 'optimal'",
  ),
  ("task.name=mistaken_parts:Square", r"predict gives .*'loss': float32\[64, 64\].*; expected .* 'loss' \[64\]"),
]


@pytest.mark.parametrize(("example", "override", "message"), [
  *(("spectra", *case) for case in DATA), *(("own_model", *case) for case in MODELS),
], ids=lambda value: value.rpartition(":")[2] if "=" in value else "")  # fmt: skip
def test_every_verb_says_the_same(parts, example, override, message):
  config = config_of(example, *override.split())
  said = []
  for verb in (inspection.inspect, lambda one: plan.plan(one, arguments=True), recommend, JaxTrainer().check,
               loop.make_run):  # fmt: skip
    with pytest.raises(UserError, match=message) as caught:
      verb(config)
    said.append(str(caught.value))
  assert len(set(said)) == 1, said


def test_what_a_task_of_the_package_cannot_do_with_own_data(parts):
  classes = ("task.name=text_classification", "input.name=spectra_input:Levels")
  for name, message in (
    ("unlabelled", "needs a 'label'; 'unlabelled' holds text"),
    ("nameless", "has label_kind='class' and no label_names"),
  ):
    config = config_of("spectra", f"data.name=mistaken_parts:{name}", *classes)
    del config.task.doubt, config.evaluators
    for verb in (inspection.inspect, loop.make_run):
      with pytest.raises(UserError, match=message):
        verb(configs.fill(config))


def test_a_file_of_ones_own_data_that_is_gone(parts):
  config, message = config_of("spectra", "data.name=mistaken_parts:gone"), "/nowhere/spectra.bin"
  with pytest.raises(UserError, match=rf"^data.name='mistaken_parts:gone': No such file or directory: {message}$"):
    loop.make_run(config)
  assert message in inspection.inspect(config)["notes"][0]


def test_a_study_names_no_row_for_the_mistake_of_all(parts, tmp_path, capsys):
  flags = (f"--config={EXAMPLES / 'spectra' / 'config.py'}", f"--workdir={tmp_path / 'study'}")
  assert cli.main(["compare", *flags, "--config.task.doubt=high"]) == 2
  assert capsys.readouterr().err.startswith("peftjax: task.doubt='high'")


@pytest.mark.parametrize("field", ["split", "search.split"])
def test_a_split_that_there_is_not_is_found_before_the_first_trial(field, parts, tmp_path, capsys):
  flags = (f"--config={EXAMPLES / 'spectra' / 'config.py'}", f"--workdir={tmp_path / 'study'}")
  search = ("--config.compare.seeds=(0,)", "--config.compare.search.seeds=(100,)")
  assert cli.main(["compare", *flags, *search, f"--config.compare.{field}=tests"]) == 2
  said = "compare.split, compare.search.split or train.final_splits: no split 'tests' to evaluate; did you mean 'test'?"
  assert capsys.readouterr().err.endswith(f"peftjax: {said}\n") and not (tmp_path / "study").exists()


def test_what_shapes_do_not_tell_is_said_when_it_shows(parts, tmp_path):
  short = ("train.batch_size=16", "data.train_examples=32", "data.eval_examples=16")
  with pytest.raises(UserError, match=r"Wide.encode gave planes \[7, 8, 3\]; a row of its spec has planes \[7, 7, 3\]"):
    next(loop.make_run(config_of("own_model", "input.name=mistaken_parts:Wide", *short)).loaders.train)
  with pytest.raises(UserError, match="gives index, loss, prediction, .*; 'optimal' follows from the row 'best'"):
    loop.train(config_of("own_model", "task.name=mistaken_parts:Nameless", *short), tmp_path / "run")
  shutil.rmtree(tmp_path / "run")
