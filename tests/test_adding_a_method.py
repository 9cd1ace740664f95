"""The example of docs/adding_a_method.md, from outside the package: trained, resumed, merged, exported, compared."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from peftjax import cli, masks
from peftjax.methods import build
from peftjax.testing import check_method
from peftjax.train import finished, loop
from tests.train.conftest import config, material

__all__ = ["config", "material"]  # fixtures of the training tests

ROOT = Path(__file__).parent.parent
NAME = "docs.examples.ssf:SSF"


def test_the_page_shows_the_file():
  page = (ROOT / "docs" / "adding_a_method.md").read_text()
  shown = re.search(r"```python\n# docs/examples/ssf\.py\n(.*?)```", page, re.DOTALL)
  code = (ROOT / "docs" / "examples" / "ssf.py").read_text()
  assert shown is not None
  assert code.endswith(shown.group(1))
  assert len(shown.group(1).strip().splitlines()) < 40


COSTLY = ("convert", "combine", "mixed batch", "sweep", "resume", "stacked = unrolled", "remat", "int8 base")


def test_some_of_what_the_page_says_of_it(monkeypatch):
  monkeypatch.chdir(ROOT)
  page = (ROOT / "docs" / "adding_a_method.md").read_text()
  ssf = build({"name": NAME})
  found = check_method(ssf, skip=COSTLY)
  for column, cell in found.items():
    assert f"    {column:18}  {cell}\n" in page


@pytest.mark.slow
def test_all_of_what_the_page_says_of_it(monkeypatch, capsys):
  """The page's example, and below it what that printed."""
  monkeypatch.syspath_prepend(str(ROOT))
  page = (ROOT / "docs" / "adding_a_method.md").read_text()
  example = re.search(r"```python\n(from docs\.examples\.ssf.*?)```", page, re.DOTALL)
  assert example is not None
  exec(compile(example.group(1), "adding_a_method.md", "exec"), {})
  printed = capsys.readouterr().out
  assert "".join(f"    {line}\n" for line in printed.splitlines()) in page


def test_it_trains_resumes_merges_and_exports(config, tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  config.method.name = NAME
  summary = loop.train(config, tmp_path / "run")
  assert summary["parameters"]["adapter"] == 2 * 3 * 2 * 8
  assert summary == loop.train(config, tmp_path / "run")
  _, _, model = finished.load_model(tmp_path / "run")
  scales = [leaf for path, leaf in masks.flatten(model.params).items() if path.endswith("ssf_scale")]
  assert all(np.abs(leaf - 1.0).max() > 1e-3 for leaf in scales)
  batch = {"input_ids": np.arange(10).reshape(2, 5) + 2, "attention_mask": np.ones((2, 5), np.int32)}
  np.testing.assert_allclose(model.merge()(**batch)["logits"], model(**batch)["logits"], rtol=1e-5, atol=1e-6)
  finished.export(tmp_path / "run", "merged", tmp_path / "merged")
  assert json.loads((tmp_path / "merged" / "config.json").read_text())["model_type"] == "bert"


def test_inspect_and_patterns_come_for_free(monkeypatch, capsys):
  monkeypatch.chdir(ROOT)
  flags = [f"--config.method.name={NAME}", "--config.method.layers=(1,4)", "--config.method.targets=('dense',)"]
  assert cli.main(["inspect", "--json", *flags]) == 0
  assert json.loads(capsys.readouterr().out)["adapter"] == 2 * 2 * (384 + 1536 + 384)
  assert cli.main(["inspect", *flags[:1], "--config.method.targets=('denze',)"]) == 2
  assert "did you mean 'dense'" in capsys.readouterr().err


def test_a_mask_function_is_a_method_too():
  def norms(name, leaf):
    return "mine" if "LayerNorm" in name else masks.FROZEN

  assert build({"name": "full"}).mask("a.kernel", None) == "full"
  from peftjax.methods import MaskMethod

  method = MaskMethod(function=norms)
  assert method.mask("a.LayerNorm.scale", jax.ShapeDtypeStruct((3,), np.float32)) == "mine"
  assert method.mask("a.kernel", None) == masks.FROZEN
