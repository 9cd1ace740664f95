"""Files that a study would write over and that are not a study's: refused in one line, before anything is trained."""

from __future__ import annotations

import json
import shutil

import pytest

from peftjax.compare import conclude_again
from peftjax.compare.folder import CONCLUSIONS
from peftjax.errors import UserError
from peftjax.train.folder import check_same_run, write_config
from tests.compare.test_study import config, run


def untouched(folder, message):
  before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
  with pytest.raises(UserError, match=message):
    run(config(), folder, lambda *_: pytest.fail("trained"))
  assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
  ("name", "content"),
  [
    ("report.html", "<h1>mine</h1>"),
    ("results.jsonl", '{"my": "results"}\n'),
    ("config.json", '{"model_type": "bert"}'),
    ("search.json", "[]"),
  ],
)
def test_what_others_wrote_stays(tmp_path, name, content):
  (tmp_path / name).write_text(content)
  untouched(tmp_path, rf"{name} is no study's, and would be replaced; move it, or choose another folder")


@pytest.mark.parametrize(
  "left", [("config.json", "metrics.jsonl", "summary.json"), ("config.json",), ("checkpoints/1",)]
)
def test_a_training_run_stays(tmp_path, left):
  """A run's config.json has the section `compare` too; an unfinished run may have checkpoints alone."""
  for name in left:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")
  write_config(tmp_path, config(), {"task": "text_classification"})
  if "config.json" not in left:
    (tmp_path / "config.json").unlink()
  untouched(tmp_path, "holds a training run, which a study would write over; choose another folder")


@pytest.mark.parametrize("finished", [True, False])
def test_a_study_is_no_place_for_a_run(study, tmp_path, finished):
  folder = tmp_path / "study"
  shutil.copytree(study, folder)
  if not finished:
    for name in (*CONCLUSIONS, "results.jsonl"):
      (folder / name).unlink()
  before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
  with pytest.raises(UserError, match="holds a study .*, which a run would write over; choose another folder"):
    check_same_run(folder, config())
  assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_study_whose_first_trial_failed_goes_on(tmp_path):
  def failing(*_):
    raise UserError("no such data")

  with pytest.raises(UserError, match="no such data"):
    run(config(), tmp_path, failing)
  assert (tmp_path / "config.json").is_file() and not (tmp_path / "results.jsonl").exists()
  assert run(config(), tmp_path).exit_code == 0


def test_what_was_changed_since_stays(tmp_path):
  run(config(), tmp_path)
  listed, report = tmp_path / ".peftjax_files.json", tmp_path / "report.html"
  assert set(json.loads(listed.read_text())["files"]) == {
    "summary.json", "claims.json", "report.html", "report.md", "report.tex",
  }  # fmt: skip
  report.write_text("<h1>mine</h1>")
  untouched(tmp_path, r"report\.html has been changed since peftjax wrote it, and would be replaced; move it")
  with pytest.raises(UserError, match="has been changed"):
    conclude_again(tmp_path)
  listed.unlink()  # as studies of earlier versions, which go on
  conclude_again(tmp_path)
  assert "<svg" in report.read_text() and listed.is_file()
  (tmp_path / "results.jsonl").write_text('{"my": "results"}\n')
  untouched(tmp_path, r"results\.jsonl, line 1: no record of a trial")


def test_a_link_in_a_reports_place_is_not_followed(tmp_path):
  other = tmp_path / "other.html"
  other.write_text("mine")
  (tmp_path / "study").mkdir()
  (tmp_path / "study" / "report.html").symlink_to(other)
  untouched(tmp_path / "study", r"report\.html is no file, and would be replaced")
  assert other.read_text() == "mine"


@pytest.mark.parametrize(
  ("name", "content", "said"),
  [
    ("summary.json", "[1]", "summary=.*expected an object"),
    ("summary.json", '{"failed": 3}', "failed=3: expected an object"),
    ("search.json", "[3]", "expected a list, each value an object"),
    ("search.json", '[{"row": 3}]', "search.json"),
    ("timing.json", "[3]", "timing.json: expected an object"),
    ("timing.json", "[" * 5000, "deep"),
    ("config.json", '{"compare": {"margin": "x"}}', r"compare\.margin"),
    ("results.jsonl", b"\xff", "results.jsonl, line 1: no record of a trial: not UTF-8"),
  ],
)
def test_a_damaged_file_of_a_kept_study_is_one_line(tmp_path, study, name, content, said):
  shutil.copytree(study, tmp_path / "study")
  (tmp_path / "study" / name).write_bytes(content if isinstance(content, bytes) else content.encode())
  (tmp_path / "study" / ".peftjax_files.json").unlink()
  with pytest.raises(UserError, match=said) as error:
    conclude_again(tmp_path / "study")
  assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
  folder = tmp_path_factory.mktemp("studies") / "study"
  run(config(), folder)
  return folder


@pytest.mark.parametrize("name", ["metrics.csv", "best.json", "predictions-test.npz", "samples/000001.png"])
def test_files_of_a_run_that_no_run_wrote_stay(tmp_path, name):
  (tmp_path / name).parent.mkdir(exist_ok=True)
  (tmp_path / name).write_text("mine")
  with pytest.raises(UserError, match=f"{name} is no run's, and would be replaced; move it, or choose another folder"):
    check_same_run(tmp_path, config())
  write_config(tmp_path, config(), {})
  check_same_run(tmp_path, config())  # a run that was killed before its first checkpoint goes on
