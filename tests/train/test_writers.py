"""Where a run's numbers go beside metrics.jsonl: each writer is read back by other programs than its own."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pandas as pd
import pytest
from ml_collections import ConfigDict

from peftjax.errors import UserError
from peftjax.train import loop
from peftjax.train.rows import read_rows
from peftjax.train.writers import WRITERS, Begun, check
from peftjax.train.writers.tensorboard import TensorBoard

there = {name: importlib.util.find_spec(name) is not None for name in ("mlflow", "wandb")}


def numbers_of(folder):
  """(step, name) -> value of every number in metrics.jsonl that is one, named as writers get it."""
  found = {}
  for row in read_rows(folder / "metrics.jsonl"):
    prefix = row.get("split", "train")
    for name, value in row.items():
      if name == "learning_rate":
        found |= {(row["step"], f"train/learning_rate/{group}"): rate for group, rate in value.items()}
      elif name not in ("step", "split"):
        found[row["step"], f"{prefix}/{name}"] = value
  return found


def test_numbers_for_tensorboard(tmp_path):
  """Read back by the frames of its format: length, its checksum, the event, its checksum."""
  from tensorboardX.proto import event_pb2

  writer = TensorBoard(Begun(tmp_path, 4, {}), ConfigDict())
  for step in (5, 6):
    writer.write(step, {"train/loss": step / 4, "train/grad_norm": 2.0})
  writer.close(failed=False)
  (path,) = (tmp_path / "tensorboard").iterdir()
  content, found = path.read_bytes(), []
  while content:
    size = int.from_bytes(content[:8], "little")
    found.append(event_pb2.Event.FromString(content[12 : 12 + size]))
    content = content[16 + size :]
  assert [event.step for event in found if event.session_log.status] == [5]
  numbers = [(event.step, event.summary.value[0].tag, event.summary.value[0].simple_value) for event in found
             if event.summary.value]  # fmt: skip
  wanted = [(step, name, value) for step in (5, 6) for name, value in (("loss", step / 4), ("grad_norm", 2.0))]
  assert numbers == [(step, f"train/{name}", value) for step, name, value in wanted]


def test_a_number_that_is_not_finite_makes_no_line_of_tensorboards(tmp_path, caplog):
  writer = TensorBoard(Begun(tmp_path, 0, {}), ConfigDict())
  writer.write(1, {"test/loss": float("nan")})
  writer.close(failed=False)
  assert not caplog.records


def test_a_table_of_a_run_that_was_interrupted(config, tmp_path, train_in_two):
  """pandas reads the numbers of metrics.jsonl, each once, though steps 6 to 8 were trained twice."""
  config.train.update({"writers": ("csv",), "eval_every": 5, "log_every": 2})
  train_in_two(config, tmp_path / "run", 9)
  table = pd.read_csv(tmp_path / "run" / "metrics.csv").set_index("step")
  found = table[[name for name in table.columns if not name.startswith("timing/")]].stack().dropna()
  wanted = numbers_of(tmp_path / "run")
  assert {key: pytest.approx(value) for key, value in found.items()} == wanted
  assert len(found) == len(wanted) and found.index.is_unique
  assert "timing/step_seconds" in table.columns and list(table.index) == sorted(table.index)


OWN = """
from peftjax.train.writers import Writer


class Failing(Writer):
  name = "failing"
  settings = {"after": 1}

  def write(self, step, values):
    if step > self.options.after:
      raise ConnectionError("the service is gone\\nand more")


class Lacking(Failing):
  name = "lacking"
  package = "no_such_package"
"""


def test_an_own_writer_whose_service_fails(config, tmp_path, monkeypatch, capsys):
  (tmp_path / "own_writers.py").write_text(OWN)
  monkeypatch.syspath_prepend(tmp_path)
  config.train.update({"steps": 4, "log_every": 1, "save_every": 0, "writers": ("own_writers:Failing", "csv")})
  config.writers.failing = ConfigDict({"after": 2})
  assert loop.train(config, tmp_path / "run")["step"] == 4
  lines = [line for line in capsys.readouterr().err.splitlines() if "failing" in line]
  assert lines == [
    "failing: ConnectionError: the service is gone; the run goes on without it, and metrics.jsonl has all numbers"
  ]
  assert pd.read_csv(tmp_path / "run" / "metrics.csv")["train/loss"].count() == 4
  config.train.writers = ("own_writers:Lacking",)
  config.writers = ConfigDict()
  with pytest.raises(UserError, match=r"lacking needs no_such_package: pip install 'peftjax\[lacking\]'"):
    check(config)
  del sys.modules["own_writers"]


@pytest.mark.parametrize(
  ("names", "fields", "line"),
  [
    (("cvs",), {}, "train.writers: unknown 'cvs'; did you mean 'csv'"),
    (("csv",), {"csv": {"path": "x"}}, "writers.csv.path: no such field of CsvTable; it has no settings"),
    (("csv",), {"wandb": {"mode": "offline"}}, "writers.wandb: no such writer in train.writers"),
  ],
)
def test_what_no_writer_is(config, names, fields, line):
  config.train.writers, config.writers = names, ConfigDict(fields)
  with pytest.raises(UserError, match=line):
    check(config)


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
@pytest.mark.skipif(all(there.values()), reason="both packages are installed")
def test_a_package_that_is_not_there(config, name):
  if there[name]:
    pytest.skip(f"{name} is installed")
  config.train.writers = (name,)
  with pytest.raises(UserError, match=rf"train.writers: {name} needs {name}: pip install 'peftjax\[{name}\]'"):
    check(config)
  assert name in WRITERS


def wandb_records(content, block=2**15):
  """The records of a .wandb file: a header of 7 bytes, then LevelDB's log format, in blocks."""
  at, record = 7, b""
  while at + 7 <= len(content):
    if block - at % block < 7:  # what is left of a block is filled up
      at += block - at % block
      continue
    size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
    record += content[at + 7 : at + 7 + size]
    at += 7 + size
    if kind in (1, 4):  # whole, or its last part
      yield record
      record = b""


@pytest.mark.skipif(not there["wandb"], reason="wandb is an extra")
def test_weights_and_biases_offline(config, tmp_path, train_in_two, monkeypatch):
  """The service's own reader of the files that `wandb sync` uploads; both parts have one id."""
  from wandb.proto import wandb_internal_pb2

  monkeypatch.setenv("WANDB_MODE", "offline")
  config.train.update({"writers": ("wandb",), "eval_every": 5, "log_every": 2, "save_every": 4})
  config.writers.wandb = ConfigDict({"project": "own", "mode": "offline"})
  train_in_two(config, tmp_path / "run", 9)
  found, names = {}, set()
  for path in sorted((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")):
    for content in wandb_records(path.read_bytes()):
      record = wandb_internal_pb2.Record()
      record.ParseFromString(content)
      if record.HasField("run"):
        names.add((record.run.run_id, record.run.project))
      row = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
      found |= {(row["step"], name): value for name, value in row.items() if name[:1] != "_" and name != "step"}
  assert {key: value for key, value in found.items() if not key[1].startswith("timing/")} == numbers_of(
    tmp_path / "run"
  )
  assert names == {(json.loads((tmp_path / "run" / "wandb_run.json").read_text())["id"], "own")}


@pytest.fixture
def mlflow_server(tmp_path):
  """The address of MLflow's own server, which is asked to end with the test."""
  if importlib.util.find_spec("flask") is None:
    pytest.skip("mlflow-skinny, the extra, has no server; mlflow has")
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  store = f"sqlite:///{tmp_path / 'server.db'}"
  flags = (f"--backend-store-uri={store}", "--host=127.0.0.1", f"--port={port}", "--workers=1")
  with (tmp_path / "server.log").open("wb") as log:
    command = [sys.executable, "-m", "mlflow", "server", *flags]
    process = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path, start_new_session=True)
  address = f"http://127.0.0.1:{port}"
  try:
    while True:
      assert process.poll() is None, (tmp_path / "server.log").read_text()
      try:
        urllib.request.urlopen(f"{address}/health", timeout=300).close()
        break
      except OSError:
        time.sleep(0.2)
    yield address
  finally:
    os.killpg(process.pid, signal.SIGTERM)
    process.wait()


@pytest.mark.skipif(not there["mlflow"], reason="mlflow is an extra")
@pytest.mark.parametrize("where", ["store", "server"])
def test_mlflow(where, config, tmp_path, train_in_two, request):
  from mlflow import MlflowClient

  uri = f"sqlite:///{tmp_path / 'mlflow.db'}" if where == "store" else request.getfixturevalue("mlflow_server")
  config.train.update({"writers": ("mlflow",), "eval_every": 5, "log_every": 2, "save_every": 4})
  config.writers.mlflow = ConfigDict({"tracking_uri": uri, "experiment": "own"})
  train_in_two(config, tmp_path / "run", 9)
  client = MlflowClient(tracking_uri=uri)
  (run,) = client.search_runs([client.get_experiment_by_name("own").experiment_id])
  found = [(one.step, name, one.value) for name in run.data.metrics
           for one in client.get_metric_history(run.info.run_id, name)]  # fmt: skip
  kept = [(step, name, value) for step, name, value in found if not name.startswith("timing/")]
  assert {(step, name): value for step, name, value in kept} == numbers_of(tmp_path / "run")
  assert len(kept) == len(numbers_of(tmp_path / "run"))  # none twice, though steps were trained twice
  assert run.info.status == "FINISHED" and run.data.params["train.batch_size"] == "8"
