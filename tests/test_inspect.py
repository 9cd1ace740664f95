"""`peftjax inspect` gives published counts exactly, from a folder that holds a config.json alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peftjax import cli

ROWS = json.loads((Path(__file__).parent / "published" / "param_counts.json").read_text())
ENCODERS = [row for row in ROWS if row["model_family"] in ("bert-base-cased", "roberta-base", "roberta-large")]
MODEL_TYPES = {"bert-base-cased": "bert", "roberta-base": "roberta", "roberta-large": "roberta"}

# HF PEFT's setting -> ours; those that leave the counts alone are not named.
RENAMED = {"r": "rank", "lora_alpha": "alpha", "target_modules": "targets", "bias": "bias"}
METHODS: dict[str, dict[str, str]] = {
  "LORA": RENAMED,
  "VERA": RENAMED,
  "FOURIERFT": {**RENAMED, "n_frequency": "n_frequency"},
  "VBLORA": {**RENAMED, "num_vectors": "num_vectors", "vector_length": "vector_length", "topk": "topk"},
  "PREFIX_TUNING": {"num_virtual_tokens": "num_virtual_tokens"},
  "LOREFT": {"r": "rank"},
}
NAMES = {"PREFIX_TUNING": "prefix", "LOREFT": "reft"}


def overrides(row: dict[str, Any]) -> list[str]:
  method = row["method"]
  found = [f"--config.method.name={NAMES.get(method, method.lower())}"]
  for theirs, ours in METHODS[method].items():
    value = row["method_config"].get(theirs)
    if value not in (None, "none"):
      found.append(f"--config.method.{ours}={tuple(value) if isinstance(value, list) else value}")
  return found


def folder_of(row: dict[str, Any], path: Path) -> Path:
  config = {**row["hf_config"], "model_type": MODEL_TYPES[row["model_family"]]}
  config["architectures"] = [config.pop("_class", "RobertaModel")]
  (path / "config.json").write_text(json.dumps(config))
  return path


@pytest.mark.parametrize("row", ENCODERS, ids=lambda row: f"{row['model_family']}-{row['method']}-{row['trainable']}")
def test_encoder_rows(row, tmp_path, capsys):
  folder = folder_of(row, tmp_path)
  code = cli.main(["inspect", "--json", f"--config.model.path={folder}", *overrides(row)])
  result = json.loads(capsys.readouterr().out)
  assert code == 0
  assert result["trainable"] == row["trainable"]
  assert result["peft_total"] == row["total"]
  assert result["trainable"] == result["adapter"] + result["head"]
  assert result["total"] == sum(result["groups"].values())
  assert result["total"] + result["buffers"] == sum(leaf["parameters"] for leaf in result["leaves"])


def test_the_default_is_a_run_with_a_head(capsys):
  assert cli.main(["inspect", "--json"]) == 0
  result = json.loads(capsys.readouterr().out)
  assert result["adapter"] == 6 * 2 * 2 * 384 * 8
  assert result["head"] == 384 * 2 + 2
  assert result["percent"] == pytest.approx(100 * result["trainable"] / result["total"])


def test_the_table_names_the_pattern_that_matched(capsys):
  assert cli.main(["inspect", "--config.method.targets=('key','output.dense')"]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert any("attention.self.key.lora_a" in line and line.split()[-1] == "key" for line in lines)
  assert any("attention.output.dense.lora_b" in line and line.split()[-1] == "output.dense" for line in lines)


@pytest.mark.parametrize(
  ("method", "parts"),
  [
    (["name=lora"], "adapter 73,728, head 770"),
    (["name=full"], "adapter 0, of the base 22,713,216, head 770"),
    (["name=lora", "bias=all"], "adapter 73,728, of the base 26,112, head 770"),
  ],
)
def test_leaves_of_the_base_are_no_adapter(method, parts, capsys):
  assert cli.main(["inspect", *(f"--config.method.{one}" for one in method)]) == 0
  assert capsys.readouterr().out.rstrip().endswith(parts)


@pytest.mark.parametrize(
  ("method", "adapter"),
  [
    (["name=full"], 22_713_216),
    (["name=head"], 0),
    (["name=bitfit"], 6 * (4 * 384 + 1536 + 384 + 2 * 384) + 384 + 384),
    (["name=layernorm"], (6 * 2 + 1) * 2 * 384),
    (["name=last_k", "k=2"], 2 * (4 * (384 * 384 + 384) + 2 * 384 * 1536 + 1536 + 384 + 4 * 384)),
    (["name=lora", "rank=5", "layers=(1,4)"], 2 * 2 * 2 * 384 * 5),
    (["name=lora", "rank=5", "rank_pattern={'layer.2.attention.self.query':3}"], (11 * 5 + 3) * 2 * 384),
    (["name=ia3"], 6 * (384 + 384 + 384 + 1536)),
    (["name=houlsby", "bottleneck_dim=7"], 6 * 2 * (2 * 384 * 7 + 7 + 384)),
    (["name=prompt", "num_virtual_tokens=11"], 11 * 384),
    (["name=hybrid", "methods=({'name':'lora','layers':(0,1)},{'name':'last_k','k':1})"],
     2 * 2 * 2 * 384 * 8 + 4 * (384 * 384 + 384) + 2 * 384 * 1536 + 1536 + 384 + 4 * 384),
  ],
)  # fmt: skip
def test_counts_by_hand(method, adapter, capsys):
  assert cli.main(["inspect", "--json", *(f"--config.method.{one}" for one in method)]) == 0
  assert json.loads(capsys.readouterr().out)["adapter"] == adapter
