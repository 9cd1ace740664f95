"""Every example of docs/adapters.md runs, in order."""

from __future__ import annotations

import re
from pathlib import Path

from tests.methods import tiny

PAGE = Path(__file__).parents[2] / "docs" / "adapters.md"


def test_the_page_runs(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  tiny.encoder().save(tmp_path / "my-base")
  blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
  assert len(blocks) == 7
  code = "\n".join(blocks)
  exec(compile(code, str(PAGE), "exec"), {})
  assert (tmp_path / "as-lora" / "adapter_config.json").is_file()
