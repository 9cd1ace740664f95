"""A run's folder whose files are damaged: one line that names the file, and nothing in it is lost."""

from __future__ import annotations

import hashlib
import json
import os
import shutil

import pytest

from peftjax import cli
from peftjax.errors import UserError
from peftjax.train import finished, loop, manifest
from tests.train.conftest import run_config


@pytest.fixture(scope="module")
def trained(tmp_path_factory, material):
  """(config, folder) of a finished run of four steps, with two checkpoints."""
  config = run_config(material)
  config.data.buckets = ()
  config.train.update({"steps": 4, "save_every": 2, "log_every": 1})
  folder = tmp_path_factory.mktemp("damaged") / "run"
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("PEFTJAX_CACHE", str(material / "cache"))
    loop.train(config, folder)
  return config, folder


@pytest.fixture
def run(trained, material, tmp_path, monkeypatch):
  """A copy of the run's folder."""
  monkeypatch.setenv("PEFTJAX_CACHE", str(material / "cache"))
  return shutil.copytree(trained[1], tmp_path / "run")


def files_in(folder):
  return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edited(**changes):
  return lambda text: json.dumps({**json.loads(text), **changes})


DAMAGE = [
  ("config.json", lambda text: text[:-20], "config.json: no JSON"),
  ("config.json", lambda text: "[]", "expected a JSON object"),
  ("config.json", lambda text: '{"a":' * 10**5, "more than 100 deep"),
  ("config.json", lambda text: "{}", "config.json"),
  ("config.json", edited(train=3), "train=3: expected a section"),
  ("config.json", edited(seed="x"), "seed='x': expected a whole number"),
  ("config.json", edited(model={"path": 7}), "model.path=7: expected a text"),
  ("config.json", edited(mesh={"data": 0}), "mesh.data=0"),
  ("config.json", edited(method={"name": ["lora"]}), "method.name=('lora',): expected a text"),
  ("config.json", edited(method={"name": "lora", "rank": -1}), "rank=-1: expected a whole number"),
  ("config.json", edited(method={"name": "lora", "items": 1}), "method.items: no field can have this name"),
  ("config.json", edited(unknown={"a": 1}), "config.unknown.a: no such field"),
  ("config.json", edited(resolved=None), 'no section "resolved"'),
  ("config.json", edited(resolved={"task": 3, "label_names": ["a"]}), "resolved.task"),
  ("config.json", edited(resolved={"task": "text_classification", "label_names": [1]}), "resolved.label_names"),
]


@pytest.mark.parametrize(("file", "damage", "words"), DAMAGE, ids=[words for _, _, words in DAMAGE])
def test_eval_and_export_say_it_in_one_line(run, tmp_path, capsys, file, damage, words):
  (run / file).write_text(damage((run / file).read_text()))
  before = files_in(run)
  for verb in (["eval"], ["export", "--format=peft", f"--out={tmp_path / 'out'}"]):
    assert cli.main([*verb, f"--workdir={run}"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and words in said, said
  assert files_in(run) == before


ROWS = [
  ("metrics.jsonl", lambda text: "{\n" + text, "metrics.jsonl:1: no JSON"),
  ("metrics.jsonl", lambda text: text.replace('"step": 2', '"step": "2"'), "expected an object with a whole number"),
  ("metrics.jsonl", lambda text: "[" * 10**5 + "\n" + text, "metrics.jsonl:1: lists and objects in JSON"),
  ("timing.jsonl", lambda text: "3\n" + text, "timing.jsonl:1: expected an object"),
  ("metrics.jsonl", lambda text: text + "\ud800", "metrics.jsonl"),
  ("compiled.json", lambda text: '{"8x16": 3}', "expected the fields shape"),
  ("compiled.json", lambda text: text.replace("flops", "flosp"), "expected the fields shape"),
  ("config.json", lambda text: "{}", "is no run's"),
  ("config.json", edited(seed="x"), "seed='x'"),
]


@pytest.mark.parametrize(("file", "damage", "words"), ROWS, ids=[words for _, _, words in ROWS])
def test_a_run_that_would_go_on_says_it_in_one_line(trained, run, file, damage, words):
  config, whole = trained
  (run / "summary.json").unlink()
  kept = (run / file).read_bytes()
  (run / file).write_bytes(damage(kept.decode()).encode(errors="surrogatepass"))
  if words == "metrics.jsonl":  # a last line that was cut off, of whatever bytes, is none
    assert loop.train(config, run)["step"] == 4
    return
  with pytest.raises(UserError) as caught:
    loop.train(config, run)
  assert words in str(caught.value) and file in str(caught.value)
  (run / file).write_bytes(kept)
  assert loop.train(config, run)["step"] == 4
  assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(
  ("damage", "words"),
  [
    (lambda text: "{", "no JSON"),
    (lambda text: "[]", "expected a JSON object"),
    (edited(step="4"), "step, main_metric and config"),
    (edited(step=10**400), "step, main_metric and config"),  # no name that a folder can have
    (edited(step=5), "whose checkpoint of step 5 is gone"),
    (edited(metrics=[]), "metrics and train"),
    (edited(metrics={"validation": 3}), "metrics and train"),
    (edited(config=3), "step, main_metric and config"),
    (edited(config="0"), "belongs to another config"),
  ],
)
def test_a_damaged_summary_is_no_answer(trained, run, damage, words):
  path = run / "summary.json"
  path.write_text(damage(path.read_text()))
  with pytest.raises(UserError) as caught:
    loop.train(trained[0], run)
  assert words in str(caught.value)


META = {
  "no JSON": lambda text: "{",
  "a list": lambda text: "[]",
  "deep": lambda text: '{"a":' * 10**5,
  "no base": edited(base=None),
  "a base of numbers": edited(base=[1]),
  "no arrays": edited(arrays=None),
  "an array without fields": edited(arrays={"step": 3}),
  "another digest": edited(position={"step": 9, "identity": {}}),
}


@pytest.mark.parametrize("name", META)
def test_a_checkpoint_whose_meta_is_damaged_is_set_aside(trained, run, caplog, name):
  """With a manifest that fits it, as somebody may write one."""
  config, whole = trained
  (run / "summary.json").unlink()
  meta = next(path for path in (run / "checkpoints" / "4" / "meta").rglob("*") if path.name == "metadata")
  meta.write_text(META[name](meta.read_text()))
  manifest.write(run / "checkpoints" / "4")
  kept = {path.relative_to(run / "checkpoints" / "4"): content for path, content in
          files_in(run / "checkpoints" / "4").items()}  # fmt: skip
  with pytest.raises(UserError, match="damaged"):
    finished.load_model(run)
  assert loop.train(config, run)["step"] == 4
  assert "checkpoint 4 is damaged and passed over" in caplog.text
  aside = run / "checkpoints" / "4.damaged"
  assert {path.relative_to(aside): content for path, content in files_in(aside).items()} == kept
  assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
  assert finished.load_model(run)[1] == 4


def test_where_all_are_damaged_nothing_is_touched(trained, run):
  (run / "summary.json").unlink()
  for step in ("2", "4"):
    (run / "checkpoints" / step / "manifest").unlink()
  before = files_in(run / "checkpoints")
  for _ in range(2):
    with pytest.raises(UserError, match="all checkpoints are damaged"):
      loop.train(trained[0], run)
  assert files_in(run / "checkpoints") == before


def test_links_lead_nowhere(trained, run, tmp_path):
  """Out of the folder nothing is written, cleaned up or read as a checkpoint."""
  config, _ = trained
  (run / "summary.json").unlink()
  mine = tmp_path / "mine"
  mine.write_text("my own")
  for name in (".lock", "metrics.jsonl", "config.json"):
    (tmp_path / f"{name}.kept").write_bytes((run / name).read_bytes())
    (run / name).unlink()
    (run / name).symlink_to(mine if name == ".lock" else tmp_path / f"{name}.kept")
  with pytest.raises(UserError, match=r"cannot write the folder .*: Too many levels of symbolic links"):
    loop.train(config, run)
  (run / ".lock").unlink()
  kept = (tmp_path / "metrics.jsonl.kept").read_bytes()
  loop.train(config, run)
  assert mine.read_text() == "my own" and (tmp_path / "metrics.jsonl.kept").read_bytes() == kept
  (run / "summary.json").unlink()
  (run / "checkpoints" / "4").rename(tmp_path / "elsewhere")
  (run / "checkpoints" / "4").symlink_to(tmp_path / "elsewhere")
  for act in (lambda: loop.train(config, run), lambda: finished.load_model(run)):
    with pytest.raises(UserError, match=r"checkpoints/4 is a link"):
      act()
  assert (tmp_path / "elsewhere" / "manifest").is_file()


def test_a_manifest_names_no_file_elsewhere_and_no_pipe(trained, run, tmp_path):
  (run / "summary.json").unlink()
  folder = run / "checkpoints" / "4"
  listed = (folder / "manifest").read_bytes().partition(b"\n")[2].decode().splitlines()
  digest, size, _ = listed[0].split(" ", 2)
  for name in ("../../config.json", "/etc/hostname"):
    body = "".join(f"{line}\n" for line in (*listed, f"{digest} {size} {name}")).encode()
    (folder / "manifest").write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    with pytest.raises(ValueError, match="manifest has other bytes"):
      manifest.verify(folder)
  manifest.write(folder)
  name = next(line.split(" ", 2)[2] for line in listed)
  (folder / name).unlink()
  os.mkfifo(folder / name)
  with pytest.raises(ValueError, match="cannot be read"):
    manifest.verify(folder)
