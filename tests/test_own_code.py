"""What fails in code that a config names is one line with its place; what fails elsewhere is an error as it is."""

from __future__ import annotations

import pytest

from peftjax import cli, registry, tasks
from peftjax import config as configs
from peftjax.compare import dimensions
from peftjax.data import Header
from peftjax.errors import UserError
from peftjax.own_code import as_user_error, failures_as_one_line
from peftjax.tasks.base import Task
from peftjax.tasks.metric import Metric
from peftjax.train import evaluators, splits
from peftjax.train.evaluators import Evaluated, Evaluator, Leaves
from peftjax.train.writers import Writer
from peftjax.train.writers import check as check_writers

MODULE = """
def failing(rest, named):
  return {}["missing"]


def without_arguments():
  return None


def told(text):
  raise RuntimeError(text)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
  (tmp_path / "own_failing.py").write_text(MODULE)
  monkeypatch.syspath_prepend(str(tmp_path))
  return registry.resolve("a.b", "own_failing:told", {})


@pytest.mark.parametrize(
  ("name", "said"),
  [
    ("failing", "KeyError: 'missing' (own_failing.py, line 3)"),
    ("without_arguments", "TypeError: without_arguments() takes 0 positional arguments but 2 were given"),
  ],
)
def test_the_command_line_says_where(own, name, said, capsys):
  assert cli.main(["inspect", f"--config.data.name=own_failing:{name}"]) == 2
  assert capsys.readouterr().err == f"peftjax: your own code fails: {said}\n"


def test_the_cause_is_kept_and_other_errors_stay(own):
  with (
    pytest.raises(UserError, match=r"^your own code fails: RuntimeError: one \(own_failing.py, line 11\)$") as caught,
    failures_as_one_line(),
  ):
    own("one\ntwo")
  assert isinstance(caught.value.__cause__, RuntimeError)
  with pytest.raises(ZeroDivisionError), failures_as_one_line():
    _ = 1 / 0
  for error in (TypeError("elsewhere() takes 1 positional argument but 2 were given"), UserError("said")):
    assert as_user_error(error) is error


class Whole(Task):
  name, head, main_metric = "own:Whole", "", "loss"
  label_names, num_labels, evaluators = (), 1, ()
  specs = (Metric("loss", "per-example", value="loss"),)
  loss = predict = per_example = metrics = lambda self, *given: None  # type: ignore[assignment]

  @classmethod
  def make(cls, settings, header):
    return cls()

  def __init__(self):
    pass


class Unscored(Whole):
  per_example, metrics = Task.per_example, Task.metrics


class Unmade(Whole):
  make = classmethod(lambda cls, settings, header: None)


class Named(Whole):
  specs = ("loss",)


class OneText(Whole):
  fields = "marks"


class Misspelt(Whole):
  target_fields = ("mark",)


class Listed(Whole):
  settings = ("scale",)


@pytest.mark.parametrize(
  ("kind", "message"),
  [
    (Unscored, "the task lacks per_example, metrics"),
    (Unmade, "its `make` gave None; expected the task"),
    (Named, r"specs=\('loss',\); expected peftjax.tasks.Metric for each"),
    (OneText, r"has fields='marks'; expected a tuple of texts, such as \('marks',\)"),
    (Misspelt, "has 'mark' in target_fields, and 'data' has no such field; did you mean 'marks'"),
    (Listed, r"Listed has settings=\('scale',\); expected a dict from fields to defaults"),
  ],
)
def test_a_task_that_is_none(kind, message, monkeypatch):
  monkeypatch.setattr(tasks, "task_class", lambda name: kind)
  with pytest.raises(UserError, match=message):
    tasks.from_config("own:Kind", configs.default().task, Header("data", fields=("marks",)))


def test_a_dimension_that_is_none():
  with pytest.raises(UserError, match="compare.dimensions='math:pi' is float; expected a peftjax.compare.dimensions"):
    dimensions.of_study(("math:pi",))


class Nameless(Evaluator):
  def run(self, leaves, loader):
    return None


class Idle(Evaluator):
  name = "idle"


class Bare(Evaluator):
  name = "bare"

  def __init__(self):
    pass

  def run(self, leaves, loader):
    return {"bare": 1.0}


class Blank(Writer):
  pass


def test_evaluators_and_writers_that_are_none(monkeypatch):
  config = configs.default()
  for kind in (Nameless, Idle):
    monkeypatch.setattr(evaluators, "resolve", lambda field, name, table, kind=kind: kind)
    config.train.evaluators = ("own:Kind",)
    with pytest.raises(
      UserError, match="train.evaluators='own:Kind': expected a class with a name and a function `run`"
    ):
      evaluators.classes(config, Whole())
  run = type("Run", (), {"loaders": type("Loaders", (), {"evals": {"test": None}})})
  with pytest.raises(
    UserError, match=r"the evaluator 'bare' gave {'bare': 1.0}; expected Evaluated\(a dict of metrics"
  ):
    splits.score_split(run, [Bare()], "test", Leaves({}, {}), None, "after")
  monkeypatch.setattr(Bare, "run", lambda self, leaves, loader: Evaluated({"bare": 1.0}, None))
  with pytest.raises(UserError, match="the evaluator 'bare' gives 'bare', which none of its specs names"):
    splits.score_split(run, [Bare()], "test", Leaves({}, {}), None, "after")
  monkeypatch.setattr("peftjax.train.writers.base.resolve", lambda field, name, table: Blank)
  config.train.update({"writers": ("own:Blank",), "tensorboard": False})
  with pytest.raises(UserError, match="train.writers='own:Blank': expected a class derived from .*Writer, with a name"):
    check_writers(config)
