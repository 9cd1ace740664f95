"""A run over an nf4 base from its config to its export: trained, restored, evaluated, merged."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import peftjax
from peftjax import masks
from peftjax.quantize import kind_of
from peftjax.train import finished, loop
from peftjax.train.rows import read_rows


def losses(folder):
  return [row["loss"] for row in read_rows(folder / "metrics.jsonl") if "split" not in row]


def test_a_run_over_an_nf4_base(config, tmp_path):
  config.train.update({"log_every": 1, "predictions": False})
  config.data.buckets = ()
  floats = loop.train(config, tmp_path / "float")
  config.model.quantize = "nf4"
  summary = loop.train(config, tmp_path / "whole")
  kernels = 4 * 2 * (4 * 8 * 8 + 2 * 8 * 12) + 4 * 8 * 8
  assert floats["bytes"]["weights"] - summary["bytes"]["weights"] > 0.5 * kernels  # blocks of 8 and 12 have many scales
  assert summary["base"]["hash"] != floats["base"]["hash"]
  np.testing.assert_allclose(losses(tmp_path / "whole"), losses(tmp_path / "float"), atol=0.1)
  assert losses(tmp_path / "whole") != losses(tmp_path / "float")

  _, step, model = finished.load_model(tmp_path / "whole")
  assert step == config.train.steps
  assert {kind_of(leaf) for path, leaf in masks.flatten(model.params).items() if ".encoder." in path} == {
    "nf4",
    "float32",
  }
  found = finished.evaluate_run(tmp_path / "whole", ["validation"])["metrics"]["validation"]
  assert found["accuracy"] == pytest.approx(summary["metrics"]["validation"]["accuracy"])

  result = finished.export(tmp_path / "whole", "merged", tmp_path / "merged")
  assert result["quantization"]["leaves"] == 7 and 0.02 < result["quantization"]["mean_error"] < 0.15
  merged = peftjax.load(tmp_path / "merged")
  inputs = {"input_ids": np.array([[2, 5, 9, 3]]), "attention_mask": np.ones((1, 4), np.int32)}
  np.testing.assert_allclose(merged(**inputs)["logits"], model(**inputs)["logits"], rtol=1e-4, atol=1e-5)
  assert {str(leaf.dtype) for leaf in jax.tree.leaves(merged.params)} == {"float32"}
