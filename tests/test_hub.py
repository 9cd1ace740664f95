"""Models and data sets of a hub: from the cache of huggingface_hub, and from a server that answers as hubs do."""

from __future__ import annotations

import hashlib
import http.server
import json
import shutil
import threading
import urllib.parse

import jax
import numpy as np
import pytest
from huggingface_hub import constants

from peftjax import cli, load, masks
from peftjax.data import open_data
from peftjax.errors import NotHere, UserError
from peftjax.methods import LoRA
from peftjax.train import assemble
from tests.train.conftest import config, material

__all__ = ["config", "material"]  # fixtures of the training tests
COMMIT = "0123456789abcdef" * 2 + "01234567"


class Hub(http.server.BaseHTTPRequestHandler):
  """Answers what `snapshot_download` asks of a hub; `folders` are its repositories, `asked` the paths it was asked."""

  folders: dict = {}
  asked: list = []

  def do_HEAD(self):
    self.do_GET()

  def do_GET(self):
    path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
    self.asked.append(path)
    for name, folder in self.folders.items():
      files = sorted(one for one in folder.rglob("*") if one.is_file())
      kind = "datasets" if name.startswith("datasets/") else "models"
      bare = name.removeprefix("datasets/")
      if path.startswith(f"/api/{kind}/{bare}/"):
        if "no-such" in path:
          return self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if f"/{bare}/tree/" in path:
          tree = [
            {"type": "file", "oid": "0" * 40, "size": one.stat().st_size, "path": one.relative_to(folder).as_posix()}
            for one in files
          ]
          return self._answer(200, json.dumps(tree).encode(), {})
        names = [{"rfilename": one.relative_to(folder).as_posix()} for one in files]
        return self._answer(200, json.dumps({"id": bare, "sha": COMMIT, "siblings": names}).encode(), {})
      if path.startswith(f"/{name}/resolve/{COMMIT}/"):
        content = (folder / path.removeprefix(f"/{name}/resolve/{COMMIT}/")).read_bytes()
        etag = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        return self._answer(200, content, etag)
    return self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

  def _answer(self, code, content, headers):
    self.send_response(code)
    for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}.items():
      self.send_header(name, value)
    self.end_headers()
    if self.command == "GET":
      self.wfile.write(content)

  def log_message(self, *args):
    pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
  """Repository -> folder, of a hub that is asked instead of the real one; its cache is empty."""
  Hub.folders, Hub.asked = {}, []
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  endpoint = f"http://127.0.0.1:{server.server_port}"
  for name, value in (("HF_HUB_CACHE", str(tmp_path / "hub")), ("HF_HUB_OFFLINE", False)):
    monkeypatch.setattr(constants, name, value)
  monkeypatch.setenv("HF_ENDPOINT", endpoint)
  yield Hub.folders
  server.shutdown()
  server.server_close()


def test_a_model_is_downloaded_once_and_nothing_that_runs(hub, config, material, tmp_path, monkeypatch, capsys):
  shutil.copytree(material / "model", tmp_path / "repo")
  (tmp_path / "repo" / "modeling_tiny.py").write_text("raise SystemExit('run')\n")
  (tmp_path / "repo" / "pytorch_model.bin").write_bytes(b"pickle")
  hub["owner/tiny"] = tmp_path / "repo"
  model = load("hub:owner/tiny")
  ids = np.array([[2, 5, 9, 3]])
  wanted = load(material / "model")(input_ids=ids)["last_hidden_state"]
  assert np.array_equal(model(input_ids=ids)["last_hidden_state"], wanted)
  got = {path.rpartition("/")[2] for path in Hub.asked if "/resolve/" in path}
  assert got == {"config.json", "model.safetensors", "vocab.txt"}
  Hub.asked.clear()
  Hub.folders.clear()
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  config.model.path = "hub:owner/tiny"
  assert not assemble.is_own("hub:owner/tiny") and not assemble.is_own("hub:tiny")
  assert assemble.setting(config).model().folder == model.folder
  assert not Hub.asked
  assert cli.main(["inspect", "--json", f"--config.model.path=hub:owner/tiny@{COMMIT}"]) == 0
  assert json.loads(capsys.readouterr().out)["architecture"] == "BertModel"
  with pytest.raises(NotHere, match="hub:owner/other is not in the cache"):
    load("hub:owner/other")


def test_an_adapter_is_downloaded_and_put_on_its_base(hub, material, tmp_path, config):
  base = load(material / "model", task="text_classification", num_labels=2)
  model = base.add(LoRA(rank=3, alpha=7.0, targets=("query", "output.dense")), jax.random.key(0))
  flat = masks.flatten(model.params)
  noise = np.random.default_rng(0)
  for path in model.adapter_paths():
    flat[path] = flat[path] + noise.normal(size=flat[path].shape).astype(np.float32)
  model = model.with_params(masks.unflatten(flat))
  model.save_adapter(tmp_path / "whole")
  (tmp_path / "whole" / "adapter_model.bin").write_bytes(b"pickle")
  hub["owner/whole"] = tmp_path / "whole"
  ids = np.array([[2, 5, 9, 3]])
  found = load(material / "model", adapter="hub:owner/whole", task="text_classification", num_labels=2)
  assert np.array_equal(found(input_ids=ids)["logits"], model(input_ids=ids)["logits"])
  assert not np.array_equal(found(input_ids=ids)["logits"], base(input_ids=ids)["logits"])
  assert not [path for path in Hub.asked if path.endswith("adapter_model.bin")]
  config.model.adapter = "hub:owner/whole"
  assert assemble.setting(config).model().methods == found.methods
  with pytest.raises(UserError, match="no such model on the hub"):
    load(material / "model", adapter="hub:owner/nothing")


def test_a_data_set_is_read_from_its_tables(hub, tmp_path):
  rows = [{"text": f"t {index}", "label": "ab"[index % 2]} for index in range(20)]
  (tmp_path / "repo" / "fine").mkdir(parents=True)
  (tmp_path / "repo" / "fine" / "train.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
  (tmp_path / "repo" / "script.py").write_text("raise SystemExit('run')\n")
  hub["datasets/owner/rows"] = tmp_path / "repo"
  found = open_data("hub:owner/rows:fine")
  assert found.label_names == ("a", "b") and found.split("train")[3] == {"text": "t 3", "label": 1}
  with pytest.raises(UserError, match="no folder 'coarse' in it; it has fine"):
    open_data("hub:owner/rows:coarse")
  with pytest.raises(UserError, match="no such dataset on the hub"):
    open_data("hub:owner/nothing")
  with pytest.raises(UserError, match="no revision 'no-such'"):
    open_data("hub:owner/rows@no-such")


@pytest.mark.parametrize("spec", ["hub:", "hub:a/b/c", "hub:../x", "hub:owner/name@"])
def test_names_that_are_none(spec):
  with pytest.raises(UserError, match=r"expected hub:OWNER/NAME"):
    load(spec)
