"""Plans of tiny models: for this machine, and for a slice of TPUs that is not here."""

from __future__ import annotations

import importlib.util
import json

import pytest

from peftjax import cli

LLAMA = {
  "model_type": "llama",
  "architectures": ["LlamaForCausalLM"],
  "vocab_size": 512,
  "hidden_size": 256,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "num_key_value_heads": 1,
  "intermediate_size": 512,
  "tie_word_embeddings": False,
}


@pytest.fixture
def plan(tmp_path, capsys):
  def run(*flags):
    (tmp_path / "model").mkdir(exist_ok=True)
    (tmp_path / "model" / "config.json").write_text(json.dumps(LLAMA))
    given = [f"--config.model.path={tmp_path / 'model'}", "--config.train.batch_size=4", "--config.data.max_length=16"]
    code = cli.main(["plan", "--json", *given, *flags])
    out = capsys.readouterr()
    return json.loads(out.out) if code == 0 else out.err

  return run


def test_this_machine(plan):
  found = plan()
  assert found["fits"] and found["devices"] == 1 and found["collectives"] == {}
  each = found["bytes_per_device"]
  assert each["total"] >= each["arguments"] + each["temp"] > sum(found["arguments_by_kind"].values())
  base = 2 * 512 * 256 + 256 + 2 * (2 * 256 + 2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 512)
  adapter = 2 * 8 * ((256 + 256) + (256 + 128))  # rank 8 on q_proj and v_proj
  assert found["arguments_by_kind"]["base"] == 4 * base
  assert found["arguments_by_kind"]["adapter"] == 4 * adapter
  assert 8 * adapter <= found["arguments_by_kind"]["optimizer"] < 8 * adapter + 64
  assert found["arguments_by_kind"]["batch"] == 4 * (3 * 4 * 16 + 2 * 4)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is not installed")
def test_a_slice_that_is_not_here(plan):
  found = plan("--topology=v5e:2x2", "--config.mesh.data=1", "--config.mesh.fsdp=-1", "--config.model.remat=full")
  assert found["fits"] and found["devices"] == 4 and found["device_kind"] == "TPU v5 lite"
  assert found["mesh"] == {"data": 1, "fsdp": 4, "tensor": 1, "sequence": 1}
  assert set(found["collectives"]) <= {"all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"}
  assert found["collectives"]["all-gather"] >= 7  # each kernel of a layer comes to the batch, not the batch to it
  assert found["largest_replicated"] < 2**16
  whole = plan()
  assert found["arguments_by_kind"]["base"] < whole["arguments_by_kind"]["base"] / 3.9


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is not installed")
def test_an_unknown_slice(plan):
  assert "--topology=v5e:5x7: expected a generation and a shape, such as v5e:4x4" in plan("--topology=v5e:5x7")


def test_a_mesh_that_does_not_fit(plan):
  assert "expected a product of 1, the number of devices" in plan("--config.mesh.data=3")


def test_search_names_what_fits(plan, monkeypatch):
  from peftjax.train import plan as plan_lib

  needs = plan("--config.model.remat=full")["bytes_per_device"]["total"]
  monkeypatch.setattr(plan_lib, "limit_bytes", lambda device: needs - 1)
  found = plan("--search", "--config.model.remat=none")
  assert not found["fits"]
  assert found["fitting"] and found["tried"][-1]["fits"]
  assert found["tried"][-1]["overrides"] == found["fitting"]
  assert any("remat=full" in one for one in found["fitting"])


def test_arguments_alone(plan):
  whole, found = plan(), plan("--arguments")
  assert found["arguments_by_kind"] == whole["arguments_by_kind"] and found["fits"]
  assert found["bytes_per_device"] == {
    "arguments": sum(whole["arguments_by_kind"].values()),
    "temp": None,
    "total": None,
  }
