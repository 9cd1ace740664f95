"""What the command line tells of itself: its kinds, fields, runs, help and what a shell completes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from peftjax import cli
from peftjax.compare import overview
from peftjax.config import FIELDS
from peftjax.errors import UserError
from peftjax.methods import METHODS
from peftjax.no_tpu import NO_TPU
from peftjax.tasks import TASKS
from peftjax.train import loop
from peftjax.verbs import VERBS
from tests.train.conftest import config, material

__all__ = ["config", "material"]  # fixtures of the training tests


def printed(capsys, *arguments):
  assert cli.main(list(arguments)) == 0
  return capsys.readouterr().out


def test_everything_there_is_has_a_line_that_says_what_it_is(capsys):
  assert json.loads(printed(capsys, "list", "methods", "--json")).keys() == METHODS.keys()
  assert json.loads(printed(capsys, "list", "tasks", "--json")).keys() == TASKS.keys()
  for kind in cli.KINDS:
    found = json.loads(printed(capsys, "list", kind, "--json"))
    assert found and all(len(text) > 8 for text in found.values()), kind
  assert "csv:" in printed(capsys, "list", "data")
  lora = json.loads(printed(capsys, "list", "methods", "lora", "--json"))
  assert lora["fields"]["method.rank"] == 8 and "scale" in printed(capsys, "list", "tasks", "contrastive")
  assert cli.main(["list", "method"]) == 2
  assert "did you mean 'methods'" in capsys.readouterr().err


def test_fields_are_found_by_section_by_others_names_and_by_meaning(capsys):
  assert json.loads(printed(capsys, "config", "--json")).keys() >= FIELDS.keys()
  assert set(json.loads(printed(capsys, "config", "train", "--json"))) == {one for one in FIELDS if one[:6] == "train."}
  rate = printed(capsys, "config", "lr")
  assert rate.startswith("optim.learning_rate = 0.0\n") and "a finite number of at least 0" in rate
  assert "lora  " in printed(capsys, "config", "lora_alpha")
  assert "train.final_splits" in printed(capsys, "config", "evaluated after the last step")
  assert json.loads(printed(capsys, "config", "--json", "--config.seed=3"))["seed"] == 3
  assert cli.main(["config", "learning_rat"]) == 0
  assert cli.main(["config", "qqqq"]) == 2


def test_each_verb_helps_with_its_sections_and_examples(capsys):
  for verb, one in cli.VERBS.items():
    with pytest.raises(SystemExit) as ended:
      cli.main([verb, "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0 and f"peftjax {verb}" in text
    assert all(f"  {section}:" in text for section in one.sections)
    assert one.examples and all(f"peftjax {example}" in text for example in one.examples)


@pytest.mark.parametrize(
  ("line", "expected"),
  [
    ("peftjax gen", ["generate"]),
    ("peftjax train --wor", ["--workdir="]),
    ("peftjax train --config.optim.learn", ["--config.optim.learning_rate="]),
    ("peftjax list meth", ["methods"]),
    ("peftjax predict --config.se", []),
  ],
)
def test_a_shell_completes(line, expected, tmp_path, capsys):
  (tmp_path / "completion").write_text(printed(capsys, "completion", "bash"))
  words = line.split(" ")
  script = (
    f"source {tmp_path / 'completion'}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; COMP_LINE='{line}'; "
    'COMP_POINT=${#COMP_LINE}; _peftjax; printf "%s\\n" "${COMPREPLY[@]}"'
  )
  done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True)
  assert done.stdout.split() == expected


def test_runs_are_told_filtered_and_drawn(config, tmp_path, capsys):
  for name, seed in (("a", 0), ("b/c", 1)):
    config.seed, config.train.steps, config.train.eval_every = seed, 2, 1
    loop.train(config, tmp_path / name)
  (tmp_path / "model").mkdir()
  (tmp_path / "model" / "config.json").write_text('{"model_type": "bert"}')
  (tmp_path / "b" / "c" / "summary.json").unlink()
  rows = overview.found(tmp_path)
  assert [(row["run"], row["seed"], row["state"]) for row in rows] == [
    ("a", 0, "finished"), ("b/c", 1, "stopped or under way at 2 of 2"),
  ]  # fmt: skip
  summary = json.loads((tmp_path / "a" / "summary.json").read_text())
  assert rows[0]["scores"]["test"] == summary["metrics"]["test"]["accuracy"]
  assert [row["run"] for row in overview.found(tmp_path, "seed=1")] == ["b/c"]
  assert [row["run"] for row in overview.found(tmp_path, "a*")] == ["a"]
  with pytest.raises(UserError, match="did you mean 'method'"):
    overview.found(tmp_path, "methd=lora")
  text = printed(capsys, "runs", str(tmp_path), f"--plot={tmp_path / 'curves.svg'}")
  assert "b/c" in text and "accuracy" in text and "damaged" not in text
  drawn = (tmp_path / "curves.svg").read_text()
  assert drawn.count("training loss") == 1 and "<svg" in drawn
  for name in ("curves.svg", "curves.png", "curves.png", "curves.pdf", "curves.pdf"):  # and what was drawn, anew
    printed(capsys, "runs", str(tmp_path), f"--plot={tmp_path / name}")
  (tmp_path / "mine.png").write_bytes(b"a picture")
  assert cli.main(["runs", str(tmp_path), f"--plot={tmp_path / 'mine.png'}"]) == 2
  assert "choose another name" in capsys.readouterr().err and (tmp_path / "mine.png").read_bytes() == b"a picture"
  assert cli.main(["train", f"--workdir={tmp_path / 'a'}", *flags_of(config, 0)]) == 0
  shown = capsys.readouterr()
  assert "already finished" in shown.err and "To train longer" in shown.err
  assert "test" in shown.out and "{" not in shown.out


@pytest.mark.parametrize(("rows", "shown"), [((), ["full", "head", "lora"]), (("lora", "full"), ["lora", "full"])])
def test_a_study_is_listed_with_the_rows_that_it_has(tmp_path, rows, shown):
  held = {"methods": {"full": {}, "head": {}, "lora": {}}, "rows": rows}
  (tmp_path / "config.json").write_text(json.dumps({"compare": held}))
  assert overview.found(tmp_path)[0]["methods"] == shown


def flags_of(config, seed):
  names = ("model.path", "data.name", "data.max_length", "data.buckets", "train.batch_size", "train.eval_batch_size",
           "train.steps", "train.save_every", "train.log_every", "train.eval_every", "train.tensorboard",
           "optim.learning_rate")  # fmt: skip
  values = {name: config[name.split(".")[0]][name.split(".")[1]] for name in names}
  return [f"--config.seed={seed}", *(f"--config.{name}={value}" for name, value in values.items())]


@pytest.mark.parametrize("verb", [name for name, verb in VERBS.items() if verb.required])
def test_what_is_required_may_not_be_empty(verb, tmp_path, monkeypatch, capsys):
  """As a variable of the shell without a value gives it: nothing is written to the current folder."""
  monkeypatch.chdir(tmp_path)
  needed = VERBS[verb].required
  for empty in needed:
    values = {name: "" if name == empty else "given" for name in needed}
    given = [value if name in VERBS[verb].words else f"--{name}={value}" for name, value in values.items()]
    assert cli.main([verb, *given]) == 2
    assert f"{empty} is empty; expected " in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


def test_nothing_is_said_of_a_tpu_that_is_not_there():
  environment = {name: value for name, value in os.environ.items() if name not in ("JAX_PLATFORMS", *NO_TPU)}
  code = "import sys; from peftjax import cli; cli.without_noise(); import jax; print(jax.devices()[0].platform)"
  done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
  assert done.stderr == "" and done.stdout.strip()
