"""Plans of tiny models: for this machine, and for a slice of TPUs that is not here."""

from __future__ import annotations

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
  assert found["arguments_by_kind"]["frozen"] == 4 * base
  assert found["arguments_by_kind"]["trainable"] == 4 * adapter
  assert 8 * adapter <= found["arguments_by_kind"]["optimizer"] < 8 * adapter + 64
  assert found["arguments_by_kind"]["batch"] == 4 * (3 * 4 * 16 + 2 * 4)


LORA = ("method.rank=16", "method.targets=all-linear", "model.dtype=bfloat16")


@pytest.mark.parametrize(
  ("method", "most"),
  [
    (LORA, {"all-gather": 117, "all-reduce": 4, "all-to-all": 1}),
    ((*LORA, "model.quantize=nf4"), {"all-gather": 101, "all-reduce": 4, "all-to-all": 1}),
    (("method.name=full",), {"all-gather": 62, "all-reduce": 5, "all-to-all": 2}),
  ],
)
def test_a_slice_that_is_not_here(plan, method, most):
  """The small sister of the plans of 7 billion parameters, as test_large_plans.py has them."""
  flags = ("mesh.data=1", "mesh.fsdp=-1", "model.remat=full", "model.compute_dtype=bfloat16", "data.max_length=128")
  found = plan("--topology=v5e:2x2", *(f"--config.{one}" for one in (*flags, *method)))
  assert found["fits"] and found["devices"] == 4 and found["device_kind"] == "TPU v5 lite"
  assert found["mesh"] == {"data": 1, "fsdp": 4, "tensor": 1, "sequence": 1}
  # Each kernel of a layer, and each adapter, comes to the batch, forward and backward; the batch stays.
  assert set(found["collectives"]) == set(most)
  assert all(found["collectives"][kind] <= number for kind, number in most.items()), found["collectives"]
  assert found["collectives"]["all-gather"] >= 7
  assert found["largest_replicated"] <= 2**15  # the scale of a norm, A's small part
  whole = plan("--arguments", *(f"--config.{one}" for one in method))["arguments_by_kind"]
  largest = max(whole, key=lambda kind: whole[kind])  # small leaves, such as the adapters here, are held whole
  assert found["arguments_by_kind"][largest] < whole[largest] / 3.7


def test_one_chip(plan):
  found = plan("--arguments", "--topology=v5e:1x1")
  assert (found["devices"], found["device_kind"]) == (1, "TPU v5 lite")
  assert found["arguments_by_kind"] == plan("--arguments")["arguments_by_kind"]


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


def test_what_a_chip_cannot_hold_fits_once_it_is_split(plan, tmp_path):
  """The compiler itself gives up on the first, and compiles the last that was tried."""
  large = {"hidden_size": 1024, "num_hidden_layers": 60, "num_attention_heads": 8, "intermediate_size": 65536}
  (tmp_path / "large").mkdir()
  (tmp_path / "large" / "config.json").write_text(json.dumps({**LLAMA, **large}))
  flags = [f"model.path={tmp_path / 'large'}", "model.dtype=bfloat16", "model.remat=full"]
  found = plan("--topology=v5e:2x2", "--search", *(f"--config.{one}" for one in flags))
  assert not found["fits"] and found["compile_seconds"] is None
  assert found["bytes_per_device"]["total"] >= sum(found["arguments_by_kind"].values()) > found["limit_bytes"]
  assert found["fitting"] == ["mesh.data=1", "mesh.fsdp=-1"] and len(found["tried"]) == 1
  last = found["tried"][0]
  assert last["fits"] and last["bytes_per_device"]["total"] < found["limit_bytes"] / 2


def test_evaluation_is_no_part_of_a_plan(plan):
  found = plan("--arguments", "--topology=v5e:2x2", "--config.train.eval_batch_size=6")
  assert found["notes"] == ["training on this mesh needs another train.eval_batch_size, such as 8"]


def test_arguments_alone(plan):
  whole, found = plan(), plan("--arguments")
  assert found["arguments_by_kind"] == whole["arguments_by_kind"] and found["fits"]
  assert found["bytes_per_device"] == {
    "arguments": sum(whole["arguments_by_kind"].values()),
    "temp": None,
    "total": None,
  }
