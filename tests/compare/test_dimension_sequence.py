"""Tasks one after the other: the figures by hand, a real chain of tiny runs, killed and resumed."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from peftjax import config as config_lib
from peftjax.compare.dimensions import sequence as dimension
from peftjax.errors import UserError
from peftjax.train import checkpoint, sequence
from tests.compare.synthetic import measured, summary_of
from tests.train.conftest import BAD, GOOD, PLAIN, write_model


def test_figures_of_a_matrix_by_hand():
  found = sequence.figures([[0.9, None, None], [0.7, 0.8, None], [0.6, 0.9, 0.5]])
  assert found["average"] == pytest.approx((0.6 + 0.9 + 0.5) / 3)
  assert found["backward"] == pytest.approx(((0.6 - 0.9) + (0.9 - 0.8)) / 2)
  assert found["forgetting"] == pytest.approx(((0.9 - 0.6) + (0.8 - 0.9)) / 2)
  error = sequence.figures([[0.1, None], [0.4, 0.2]], -1.0)  # of a metric of which less is better
  assert error["backward"] == pytest.approx(-0.3) and error["forgetting"] == pytest.approx(0.3)
  assert sequence.figures([[0.5]]) == {"average": 0.5, "backward": None, "forgetting": None}


def write(path, labels, turned=False, rows=160, seed=0):
  """Texts of good or bad words; `turned`, labelled the other way round."""
  random = np.random.default_rng(seed)
  with path.open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["text", "label"])
    for index in range(rows):
      good = bool(random.integers(2))
      words = [*random.choice(PLAIN, 4), *random.choice(GOOD if good else BAD, 2)]
      writer.writerow([f"{' '.join(random.permutation(words))} {index}", labels[good != turned]])
  return f"csv:{path}"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
  folder = tmp_path_factory.mktemp("sequence")
  write_model(folder / "model")
  names = (
    write(folder / "films.csv", ("bad", "good")),
    write(folder / "turned.csv", ("bad", "good"), turned=True, seed=1),
    write(folder / "others.csv", ("no", "yes"), seed=2),
  )
  return folder, names


@pytest.fixture
def config(tasks, monkeypatch):
  folder, names = tasks
  monkeypatch.setenv("PEFTJAX_CACHE", str(folder / "cache"))
  made = config_lib.default()
  made.model.path, made.data.name = str(folder / "model"), names[0]
  made.data.update({"max_length": 12, "buckets": ()})
  made.train.update({"batch_size": 8, "eval_batch_size": 16, "steps": 36, "save_every": 12, "log_every": 12})
  made.train.tensorboard = False
  made.optim.learning_rate = 2e-2
  made.method.update({"name": "full"})
  return made


@pytest.mark.slow
def test_a_chain_resumes_after_a_kill(config, tasks, tmp_path, monkeypatch):
  _, names = tasks
  whole = sequence.train_in_turn(config, names, tmp_path / "whole")
  matrix = whole["matrix"]
  assert [[cell is None for cell in row] for row in matrix] == [[False, True, True], [False, False, True], [False] * 3]

  saved, calls = checkpoint.Checkpoints.save, []

  def dies(self, state, position, base):
    saved(self, state, position, base)
    self.wait()
    calls.append(int(state.step))
    if len(calls) == 5:  # in the second task
      raise KeyboardInterrupt

  monkeypatch.setattr(checkpoint.Checkpoints, "save", dies)
  with pytest.raises(KeyboardInterrupt):
    sequence.train_in_turn(config, names, tmp_path / "killed")
  assert (tmp_path / "killed/0/sequence.json").is_file() and not (tmp_path / "killed/1/summary.json").is_file()
  again = sequence.train_in_turn(config, names, tmp_path / "killed")
  assert again == whole
  assert json.loads((tmp_path / "killed/2/sequence.json").read_text())["scores"] == matrix[2]


def test_what_goes_on_forgets(config, tasks, tmp_path):
  found = sequence.train_in_turn(config, tasks[1][:2], tmp_path)
  assert found["matrix"][0][1] is None
  assert found["matrix"][1][0] < found["matrix"][0][0]  # the second task is the first with its labels turned
  assert found["backward"] == -found["forgetting"] < 0
  assert min(found["examples"]) > 5 and found["metric"] == "accuracy" and len(found["tasks"]) == 2


@pytest.mark.slow
def test_kept_adapters_forget_nothing(config, tasks, tmp_path):
  found = sequence.train_in_turn(config, tasks[1][:2], tmp_path, keep=True)
  assert found["matrix"][1][0] == found["matrix"][0][0] and found["forgetting"] == 0.0 and found["keep"]


def test_one_data_set_is_no_sequence(config, tmp_path):
  with pytest.raises(UserError, match="two data sets or more"):
    sequence.train_in_turn(config, ("csv:a.csv",), tmp_path)


def test_section():
  summary, own = summary_of("full", "lora"), []
  for row, last in (("full", 0.5), ("lora", 0.8)):
    for seed in (0, 1):
      matrix = [[0.9, None], [last + 0.01 * seed, 0.85]]
      held = {"tasks": ["csv:a/films.csv", "packaged:tweets"], "metric": "accuracy", "keep": False, "matrix": matrix}
      held |= {"examples": [9, 9], **sequence.figures(matrix)}
      own.append(measured(row, dimension.NAME, seed, **held))
  found = dimension.summarize(own, summary)
  assert found["matrix"]["full"][1] == [pytest.approx(0.505), pytest.approx(0.85)]
  assert found["matrix"]["full"][0][1] is None
  section = dimension.section(found, own, summary)
  assert "films and tweets" in section.sentences[0] and section.rows[0][-1] == "+40.0"
  assert all(plot.draw(narrow) is not None for plot in section.plots for narrow in (True, False))
