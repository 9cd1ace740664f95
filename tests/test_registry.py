"""Own code by name: found where the user works, and never run because a folder's files name it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from peftjax import cli, registry
from peftjax import config as configs
from peftjax.errors import UserError
from peftjax.registry import only_trusted, resolve
from peftjax.train import finished, loop
from peftjax.train.hint import already_finished, trust_flag
from tests.train.conftest import config, material

__all__ = ["config", "material"]  # fixtures of the training tests

OWN = """
import pathlib
from peftjax.methods import LoRA
pathlib.Path({mark!r}).touch()
class Thing(LoRA):
  name = 'thing'
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
  """(a folder to work in, the mark that says whether its module ran)."""
  folder, mark = tmp_path / "project", tmp_path / "ran"
  folder.mkdir()
  (folder / "own_thing.py").write_text(OWN.format(mark=str(mark)))
  monkeypatch.chdir(folder)
  monkeypatch.setattr(sys, "path", list(sys.path))
  monkeypatch.setattr(registry, "_named", set())
  yield folder, mark
  sys.modules.pop("own_thing", None)


@pytest.mark.parametrize("name", ["own_thing:Thing", "./own_thing.py:Thing", "{folder}/own_thing.py:Thing"])
def test_a_module_or_a_file_where_the_command_runs(own, name):
  found = resolve("method.name", name.format(folder=own[0]), {})
  assert found.name == "thing" and own[1].exists()
  assert resolve("method.name", name.format(folder=own[0]), {}) is found


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("thing", "unknown 'thing'"),
    ("own_thing:Thign", "did you mean 'Thing'"),
    ("own_thign:Thing", "cannot import 'own_thign'"),
    ("./own_thign.py:Thing", "no file './own_thign.py'; did you mean 'own_thing.py'"),
    ("./own_thing:Thing", "write own_thing:Thing"),
    ("broken:Thing", "cannot import 'broken': ZeroDivisionError: division by zero (broken.py, line 1)"),
    ("reads:Thing", "cannot import 'reads': ModuleNotFoundError: No module named 'optaxx' (reads.py, line 2)"),
    ("./reads.py:Thing", "'./reads.py': ModuleNotFoundError: No module named 'optaxx' (reads.py, line 2)"),
    ("no_such.module:Thing", "No module named 'no_such'); it must be on the Python path"),
    ("./broken.py:Thing", "cannot import './broken.py': ZeroDivisionError"),
    ("./json.py:Thing", "would be the module 'json', which there is already"),
    (":Thing", "is no module name"),
  ],
)
def test_a_name_that_leads_nowhere_is_one_line(own, name, words):
  for file in ("broken.py", "json.py"):
    (own[0] / file).write_text("1 / 0\n")
  (own[0] / "reads.py").write_text("import numpy\nimport optaxx\n")
  with pytest.raises(UserError) as caught:
    resolve("method.name", name, {})
  assert words in str(caught.value)


def test_what_lies_where_the_command_runs_hides_nothing_installed(own):
  (own[0] / "tensorboardX.py").write_text("1 / 0\n")
  resolve("method.name", "own_thing:Thing", {})
  import tensorboardX

  assert "site-packages" in tensorboardX.__file__


@pytest.mark.parametrize("name", ["own_thing:Thing", "os:system", "subprocess:Popen", "./own_thing.py:Thing"])
def test_a_folders_files_name_no_code(own, tmp_path, name):
  with only_trusted(tmp_path / "run"), pytest.raises(UserError, match="code that would be run; if it is yours, say so"):
    resolve("method.name", name, {})
  assert not own[1].exists()
  with only_trusted(tmp_path / "run", (name,)):
    resolve("method.name", name, {})


def test_a_folder_vouches_for_the_files_in_it(own, tmp_path, monkeypatch):
  """Wherever the command runs; for nothing that is installed, nothing beside it, and nothing where it has no file."""
  folder, mark = own
  monkeypatch.chdir(tmp_path)
  (folder / "tensorboardX.py").write_text("1 / 0\n")
  (tmp_path / "beside.py").write_text("1 / 0\n")
  with only_trusted(tmp_path / "run", (str(folder),)):
    for name in ("tensorboardX:Thing", "beside:Thing", "os:system", f"{tmp_path}/beside.py:Thing"):
      with pytest.raises(UserError, match="or --trust=FOLDER that its file stands in"):
        resolve("method.name", name, {})
    assert not mark.exists()
    assert resolve("method.name", "own_thing:Thing", {}).name == "thing"
    assert resolve("method.name", f"{folder}/own_thing.py:Thing", {}).name == "thing"
  with only_trusted(folder, (str(folder),)), pytest.raises(UserError, match="no code is read from there"):
    resolve("method.name", "own_thing:Thing", {})
  with pytest.raises(UserError, match="expected module:Name, or a folder"), only_trusted(tmp_path, ("no_such",)):
    pass


def test_a_folder_that_does_not_have_the_module_that_would_be_imported(own, tmp_path, monkeypatch):
  """`python -m` puts the current folder first; another folder of its name is then not the one that is trusted."""
  folder, other = own[0], tmp_path / "other"
  other.mkdir()
  monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
  with (
    only_trusted(tmp_path / "run", (str(other),)),
    pytest.raises(UserError, match=rf"'own_thing' lies in {folder}, not in {other}; if it is yours"),
  ):
    resolve("method.name", "own_thing:Thing", {})
  (other / "own_thing.py").write_text("1 / 0\n")
  with (
    only_trusted(tmp_path / "run", (str(other),)),
    pytest.raises(UserError, match=rf"the one in {folder} comes before that in {other}: run the command elsewhere"),
  ):
    resolve("method.name", "own_thing:Thing", {})
  assert not own[1].exists()


def test_what_a_run_says_at_its_end_names_its_own_code(own, tmp_path, monkeypatch):
  made, done = configs.default(), {"step": 3, "method": "lora"}
  assert trust_flag(made) == "" and "--out=START, and" in already_finished(Path("a"), done, made)
  made.update({"method": {"name": "own_thing:Thing"}, "task": {"name": "own_thing:Other"}})
  made.data.name = "csv:own/{split}.csv"
  assert trust_flag(made) == " --trust=." and "--out=START --trust=., and" in already_finished(Path("a"), done, made)
  monkeypatch.chdir(tmp_path)
  made.data.name = "project/own_thing.py:data:fold=3"
  monkeypatch.setattr(sys, "path", [str(own[0]), *sys.path])
  assert trust_flag(made) == " --trust=project"
  made.model.path = "no_such_module:net"
  assert trust_flag(made) == " --trust=no_such_module:net,project"
  monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)  # as where a program was started by its file
  made.model.family = "__main__:Family"
  assert "__main__:Family" in trust_flag(made)
  said = already_finished(Path("a"), {**done, "method": "full"}, made)
  flags = "--format=peft --out=START --trust=no_such_module:net,__main__:Family,project"  # no merged folder is its own
  assert flags in said and said.endswith("train with --config.model.adapter=START in another folder")


def test_what_the_user_has_named_is_believed_and_only_that(own, tmp_path):
  resolve("method.name", "own_thing:Thing", {})
  with only_trusted(tmp_path / "run"):
    assert resolve("method.name", "own_thing:Thing", {}).name == "thing"
    with pytest.raises(UserError, match="would be run"):
      resolve("method.name", "own_thing:pathlib", {})


def test_no_code_lies_in_the_folder_that_is_read(own, monkeypatch):
  """Although the user vouches for its name, and works there."""
  folder, mark = own
  monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
  for name in ("own_thing:Thing", "./own_thing.py:Thing"):
    with only_trusted(folder, (name,)), pytest.raises(UserError, match="lies in .*; no code is read from there"):
      resolve("method.name", name, {})
  assert not mark.exists()


def test_a_run_that_names_a_module_of_its_own(own, config, tmp_path, capsys):
  """`eval` and `export` read its config.json as data; `--trust` names the module again."""
  mark = own[1]
  config.train.update({"steps": 2, "predictions": False})
  config.method.name = "own_thing:Thing"
  run = tmp_path / "run"
  loop.train(config, run)
  assert finished.load_model(run)[1] == 2  # this program has named it
  registry._named.clear()
  capsys.readouterr()
  del sys.modules["own_thing"]
  mark.unlink()
  commands = (
    ["eval", f"--workdir={run}"],
    ["export", f"--workdir={run}", "--format=merged", f"--out={tmp_path / 'out'}"],
  )
  for command in commands:
    assert cli.main(command) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "say so with --trust=own_thing:Thing" in said and not mark.exists()
  for command in commands:
    assert cli.main([*command, "--trust=other:One,own_thing:Thing"]) == 0
  assert mark.exists()

  saved = json.loads((run / "config.json").read_text())
  for method in ({"name": "hybrid", "methods": [{"name": "os:system"}]}, {"name": "subprocess:Popen", "args": "true"}):
    (run / "config.json").write_text(json.dumps({**saved, "method": method}))
    assert cli.main(["eval", f"--workdir={run}"]) == 2
    assert "code that would be run" in capsys.readouterr().err
