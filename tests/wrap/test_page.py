"""Every example of docs/your_own_model.md runs, in order."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "your_own_model.md"


def test_the_examples_run(tmp_path, monkeypatch, capsys):
  pytest.importorskip("equinox")
  pytest.importorskip("haiku")
  monkeypatch.chdir(tmp_path)
  text = PAGE.read_text()
  names: dict[str, object] = {}
  for number, code in enumerate(re.findall(r"```python\n(.*?)```", text, re.DOTALL)):
    exec(compile(code, f"example {number}", "exec"), names)
  table = re.search(r"```\n\n((?:    .*\n)+)", text)
  assert table is not None
  printed = [re.sub(r"\s+", " ", line).strip() for line in capsys.readouterr().out.splitlines()]
  for line in table.group(1).splitlines():
    assert line.strip() == "..." or re.sub(r"\s+", " ", line).strip() in printed, line


def test_the_loop_of_the_readme_trains(tmp_path, monkeypatch):
  import jax.numpy as jnp

  monkeypatch.chdir(tmp_path)
  text = (PAGE.parents[1] / "README.md").read_text()
  code = next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "peftjax.wrap" in block)
  assert len([line for line in code.splitlines() if line]) <= 18
  x = jnp.ones((3, 5))
  names = {
    "net": lambda params, x: jnp.tanh(x @ params["up"]) @ params["down"],
    "params": {"up": 0.1 * jnp.ones((5, 4)), "down": 0.1 * jnp.ones((4, 2))},
    "x": x,
    "loss_of": lambda y, batch: ((y - batch["y"]) ** 2).mean(),
    "batches": [{"x": x, "y": jnp.ones((3, 2))}] * 2,
  }
  exec(compile(code, "README.md", "exec"), names)
  assert (tmp_path / "adapter" / "adapter.safetensors").is_file()
