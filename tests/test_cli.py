"""A user's mistake is one clear line on stderr and exit code 2."""

from __future__ import annotations

import json

import pytest

from peftjax import cli


@pytest.mark.parametrize(
  ("arguments", "expected"),
  [
    (["inspekt"], "did you mean 'inspect'"),
    (["inspect", "--workdir=x"], "unrecognized arguments"),
    (["train"], "--workdir"),
    (["inspect", "--config.method.name=lroa"], "did you mean 'lora'"),
    (["inspect", "--config.method.rnak=8"], "did you mean 'rank'"),
    (["inspect", "--config.method.rank=0"], "expected a positive number"),
    (["inspect", "--config.method.rank='8'"], "expected int"),
    (["inspect", "--config.method.bias=some"], "unknown mode 'some'"),
    (["inspect", "--config.method.init=gausian"], "did you mean 'gaussian'"),
    (["inspect", "--config.method.targets=('querry',)"], "did you mean 'query'"),
    (["inspect", "--config.method.targets=query"], "targets=('query',)"),
    (["inspect", "--config.method.exclude=('nothing',)"], "lora.exclude"),
    (["inspect", "--config.method.layers=(6,)"], "no layer 6; the model has 6"),
    (["inspect", "--config.method.rank_pattern={'qeury':3}"], "did you mean 'query'"),
    (["inspect", "--config.method.modules_to_save=('poler',)"], "did you mean 'pooler'"),
    (["inspect", "--config.method.name=no_such_module:Mine"], "cannot import 'no_such_module'"),
    (["inspect", "--config.method.name=json:Mine"], "json has no 'Mine'"),
    (["inspect", "--config.method.name=last_k", "--config.method.k=7"], "expected 1 to 6"),
    (["inspect", "--config.method.name=hybrid"], "hybrid.methods is empty"),
    (["inspect", "--config.model.path=no/such/folder"], "no folder 'no/such/folder'"),
    (["inspect", "--config.model.attention=fast"], "unknown backend 'fast'"),
    (["inspect", "--config.model.remat=minimum"], "did you mean 'minimal'"),
    (["inspect", "--config.model.dtype=float23"], "did you mean 'float32'"),
    (["inspect", "--config.task.name=text_clasification"], "did you mean 'text_classification'"),
  ],
)
def test_one_line_and_exit_code_2(arguments, expected, capsys):
  assert cli.main(arguments) == 2
  captured = capsys.readouterr()
  assert captured.out == ""
  assert len(captured.err.splitlines()) == 1
  assert expected in captured.err


def test_help_lists_the_verbs(capsys):
  assert cli.main([]) == 0
  listed = capsys.readouterr().out
  assert all(verb in listed for verb in cli.VERBS)


@pytest.mark.parametrize(
  ("content", "expected"),
  [
    ("{", "is no JSON"),
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
