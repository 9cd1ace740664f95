"""A user's mistake is one clear line on stderr and exit code 2."""

from __future__ import annotations

import json
import shutil

import pytest

from peftjax import __version__, cli
from peftjax.data import packages
from tests.train.conftest import config, material

__all__ = ["config", "material"]  # fixtures of the training tests


@pytest.fixture(autouse=True, scope="module")
def _packaged_model():
  packages.model_folder("minilm")  # the first use says on stderr that it downloads


@pytest.mark.parametrize(
  ("arguments", "expected"),
  [
    (["inspekt"], "did you mean 'inspect'"),
    (["inspect", "--workdir=x"], "unrecognized arguments"),
    (["train"], "--workdir"),
    (["inspect", "--config.method.name=loraa"], "did you mean 'lora'"),
    (["inspect", "--config.method.rnak=8"], "did you mean 'rank'"),
    (["inspect", "--config.method.rank=0"], "expected a whole number from 1"),
    (["inspect", "--config.method.rank='8'"], "expected a whole number"),
    (["inspect", "--config.method.bias=some"], "unknown mode 'some'"),
    (["inspect", "--config.method.init=gausian"], "did you mean 'gaussian'"),
    (["inspect", "--config.method.targets=('querry',)"], "did you mean 'query'"),
    (["inspect", "--config.method.targets=query"], "targets=('query',)"),
    (["inspect", "--config.method.exclude=('nothing',)"], "lora.exclude"),
    (["inspect", "--config.method.layers=(6,)"], "no layer 6; the model has 6"),
    (["inspect", "--config.method.rank_pattern={'qeury':3}"], "did you mean 'query'"),
    (["inspect", "--config.method.modules_to_save=('poler',)"], "did you mean 'pooler'"),
    (["inspect", "--config.method.name=no_such_module:Mine"], "cannot import 'no_such_module'"),
    (["inspect", "--config.method.name=json:Mine"], "json has no 'Mine'; known: JSONDecodeError"),
    (["inspect", "--config.method.name=LoRA"], "did you mean 'lora'? (your own is module:Name)"),
    (["inspect", "--config.method.name=./no_such.py:X"], "method.name: no file './no_such.py'"),
    (["inspect", "--config.model.path=packged:minilm"], "did you mean 'packaged:minilm'?"),
    (["train", "--workdir=x", "--config.model.path=packged:minilm"], "did you mean 'packaged:minilm'?"),
    (["train", "--workdir=x", "--config.model.path=no/such/folder"], "no folder 'no/such/folder'"),
    (["generate", "--model=no/such/folder", "--prompt=x"], "no folder 'no/such/folder'"),
    (["inspect", "--config.data.name=own/reviews.csv"], "did you mean 'csv:own/reviews.csv'?"),
    (["inspect", "--config.data.name=."], "did you mean 'folder:.'?"),
    (["inspect", "--config.method.name=last_k", "--config.method.k=7"], "expected 1 to 6"),
    (["inspect", "--config.method.name=hybrid"], "hybrid.methods is empty"),
    (["inspect", "--config.model.path=no/such/folder"], "no folder 'no/such/folder'"),
    (["inspect", "--config.model.attention=fast"], "expected one of 'auto'"),
    (["inspect", "--config.model.remat=minimum"], "did you mean 'minimal'"),
    (["inspect", "--config.model.dtype=float23"], "did you mean 'float32'"),
    (["inspect", "--config.task.name=text_clasification"], "did you mean 'text_classification'"),
  ],
)
def test_one_line_and_exit_code_2(arguments, expected, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert cli.main(arguments) == 2
  captured = capsys.readouterr()
  assert captured.out == ""
  assert len(captured.err.splitlines()) == 1
  assert expected in captured.err
  assert not captured.err.rstrip().endswith((";", ":"))


def test_the_version(capsys):
  assert cli.main(["--version"]) == 0
  assert capsys.readouterr().out == f"peftjax {__version__}\n"


def test_help_lists_the_verbs(capsys):
  assert cli.main([]) == 0
  listed = capsys.readouterr().out
  assert all(verb in listed for verb in cli.VERBS)


@pytest.mark.parametrize(
  ("content", "expected"),
  [
    ("{", "no JSON"),
    ("[]", "expected a JSON object"),
    ("{}", "has no model_type"),
    ('{"model_type": "bertt"}', "did you mean 'bert'"),
    ('{"model_type": "bert", "hidden_act": "geluu"}', "did you mean 'gelu'"),
  ],
)
def test_a_bad_config_json(content, expected, tmp_path, capsys):
  (tmp_path / "config.json").write_text(content)
  assert cli.main(["inspect", f"--config.model.path={tmp_path}"]) == 2
  assert expected in capsys.readouterr().err


def test_a_method_of_the_users_own(tmp_path, monkeypatch, capsys):
  (tmp_path / "my_methods.py").write_text(
    "import dataclasses\n"
    "from peftjax.methods import LoRA\n"
    "@dataclasses.dataclass(frozen=True, kw_only=True)\n"
    "class Wide(LoRA):\n"
    "  name = 'wide'\n"
    "  extra: int = 3\n"
    "  def settings(self, name):\n"
    "    return self.rank + self.extra, 1.0\n"
    "def only_queries(name, leaf):\n"
    "  return 'mine' if '.query.' in name and leaf.ndim == 2 else 'frozen'\n"
  )
  monkeypatch.chdir(tmp_path)
  assert cli.main(["inspect", "--json", "--config.method.name=my_methods:Wide", "--config.method.extra=5"]) == 0
  assert json.loads(capsys.readouterr().out)["adapter"] == 6 * 2 * 2 * 384 * 13
  assert cli.main(["inspect", "--json", "--config.method.name=my_methods:only_queries"]) == 0
  assert json.loads(capsys.readouterr().out)["groups"]["mine"] == 6 * 384 * 384


# Runs -------------------------------------------------------------------------------------------------------------


def truncate(path):
  path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
  ("break_it", "overrides", "expected"),
  [
    (lambda d: None, ["data.name=jsonl:{d}/nowhere.jsonl"], "nowhere.jsonl"),
    (lambda d: (d / "bad.jsonl").write_text('{"text": "a", "label": 0}\nno json\n'), ["data.name=jsonl:{d}/bad.jsonl"],
     "bad.jsonl:2: no JSON"),
    (lambda d: None, ["data.label_column=lable"], "did you mean 'label'"),
    (lambda d: None, ["task.num_labels=1"], "2 labels"),
    (lambda d: None, ["task.name=token_classification"], "token_classification"),
    (lambda d: truncate(next((d / "model").glob("*.safetensors"))), [], "no whole safetensors file"),
    (lambda d: (d / "model" / "vocab.txt").unlink(), [], "vocab.txt"),
    (lambda d: None, ["train.batch_size=0"], "train.batch_size"),
    (lambda d: None, ["train.accumulate=3"], "does not divide"),
    (lambda d: None, ["optim.schedule=cosinus"], "did you mean 'cosine'"),
    (lambda d: None, ["optim.groups.haed.learning_rate=1e-3"], "did you mean 'head'"),
    (lambda d: None, ["data.name=packaged:movie_review"], "did you mean 'movie_reviews'"),
    (lambda d: None, ["model.adapter={d}/model"], "adapter_config.json"),
  ],
)  # fmt: skip
def test_mistakes_before_a_run_cost_nothing(break_it, overrides, expected, config, material, tmp_path, capsys):
  folder = tmp_path / "d"
  shutil.copytree(material, folder, ignore=shutil.ignore_patterns("cache"))
  break_it(folder)
  given = [f"model.path={folder}/model", f"data.name=csv:{folder}/reviews.csv", "data.max_length=16", "train.steps=2"]
  flags = [f"--config.{one.format(d=folder)}" for one in (*given, *overrides)]
  assert cli.main(["train", f"--workdir={tmp_path / 'run'}", *flags]) == 2
  captured = capsys.readouterr()
  assert len(captured.err.splitlines()) == 1
  assert expected in captured.err
  assert not (tmp_path / "run").exists()


def test_another_run_in_the_folder_is_left_alone(config, material, tmp_path, capsys):
  flags = [f"--config.model.path={config.model.path}", f"--config.data.name={config.data.name}",
           "--config.data.max_length=16", "--config.data.buckets=(10,)", f"--workdir={tmp_path}"]  # fmt: skip
  assert cli.main(["train", "--config.train.steps=2", *flags]) == 0
  before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
  capsys.readouterr()
  assert cli.main(["train", "--config.train.steps=2", "--config.method.rank=3", *flags]) == 2
  assert "method.rank" in capsys.readouterr().err
  assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
  assert cli.main(["export", f"--workdir={tmp_path}", "--format=pft", "--out=x"]) == 2
  assert "did you mean 'peft'" in capsys.readouterr().err
  mine = tmp_path / "mine"
  mine.mkdir()
  (mine / "adapter_config.json").write_text("dear")
  for out in (mine, tmp_path):
    assert cli.main(["export", f"--workdir={tmp_path}", "--format=peft", f"--out={out}"]) == 2
    assert "choose another folder, or --overwrite" in capsys.readouterr().err
  assert {path: path.read_bytes() for path in before} == before
  assert (mine / "adapter_config.json").read_text() == "dear"
  assert cli.main(["export", f"--workdir={tmp_path}", "--format=peft", f"--out={mine}", "--overwrite"]) == 0


def test_training_does_not_replace_a_config_of_another_origin(config, material, tmp_path, capsys):
  (tmp_path / "config.json").write_text('{"model_type": "bert"}')
  flags = [f"--config.model.path={config.model.path}", f"--config.data.name={config.data.name}"]
  assert cli.main(["train", f"--workdir={tmp_path}", *flags]) == 2
  assert "config.json is no run's, and would be replaced" in capsys.readouterr().err
  assert (tmp_path / "config.json").read_text() == '{"model_type": "bert"}'
