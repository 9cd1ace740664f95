"""Plans for NVIDIA's cards that are not here."""

from __future__ import annotations

import importlib.util
import json

import pytest

from peftjax import UserError, cli
from peftjax.parallel.cards import CARDS, usable_bytes
from peftjax.parallel.topology import topology_devices

LLAMA = {
  "model_type": "llama",
  "architectures": ["LlamaForCausalLM"],
  "vocab_size": 64,
  "hidden_size": 48,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "intermediate_size": 80,
}
HAS_COMPILER = importlib.util.find_spec("jax_plugins.xla_cuda12") if importlib.util.find_spec("jax_plugins") else None


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("t4:0", "--topology=t4:0: expected t4, or the number of such cards in a machine, t4:8"),
    ("t4:2x2", "the number of such cards"),
    ("h100", "did you mean 'h100-80gb'?"),
    ("A100-40GB", "did you mean 'a100-40gb'?"),
  ],
)
def test_cards_that_are_none(name, words):
  with pytest.raises(UserError) as caught:
    topology_devices(name)
  assert words in str(caught.value)


def test_jax_takes_a_share_of_a_cards_memory(monkeypatch):
  for variable in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
    monkeypatch.delenv(variable, raising=False)
  assert usable_bytes("v100-16gb") == 16_935_682_048 * 3 // 4
  monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
  assert usable_bytes("t4") == 15_843_721_216 // 2
  for wrong in ("half", "0", "-1", "nan", "inf"):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", wrong)
    with pytest.raises(UserError, match=rf"FRACTION={wrong}: expected the share .* such as 0.75"):
      usable_bytes("t4")


def test_a_description_is_of_its_card():
  said = CARDS["t4"].described("t4").split()
  for field, value in (("major:", "7"), ("minor:", "5"), ("core_count:", "40"), ("device_memory_size:", "15843721216")):
    assert said[said.index(field) + 1] == value


@pytest.mark.skipif(bool(HAS_COMPILER), reason="the compiler for cards is installed")
def test_without_the_compiler_it_says_what_to_install():
  with pytest.raises(UserError, match=r"pip install 'peftjax\[cuda\]'"):
    topology_devices("t4")


@pytest.mark.skipif(not HAS_COMPILER, reason="needs the compiler for cards: pip install 'peftjax[cuda]'")
@pytest.mark.parametrize(("name", "count"), [("t4", 1), ("h100-80gb:4", 4)])
def test_a_step_is_compiled_for_cards_that_are_not_here(name, count, tmp_path, capsys):
  (tmp_path / "config.json").write_text(json.dumps(LLAMA))
  flags = [f"--config.model.path={tmp_path}", "--config.train.batch_size=4", "--config.data.max_length=16"]
  assert cli.main(["plan", "--json", f"--topology={name}", *flags]) == 0
  found = json.loads(capsys.readouterr().out)
  assert (found["devices"], found["device_kind"]) == (count, name.partition(":")[0])
  each = found["bytes_per_device"]
  assert each["total"] >= each["arguments"] + each["temp"] and each["temp"] > 0
  assert set(found["collectives"]) == ({"all-reduce"} if count > 1 else set())
  assert found["limit_bytes"] == usable_bytes(found["device_kind"])
