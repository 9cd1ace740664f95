"""A parameter's way from the command line to its leaf and back into the summary stays as short as
docs/architecture.md tells it.
"""

from __future__ import annotations

import traceback
from pathlib import Path

import peftjax
from peftjax import cli
from peftjax.methods import LoRA
from peftjax.models import pretrained
from peftjax.train import inspection

ROOT = Path(peftjax.__file__).parent
PAGE = ROOT.parent / "docs" / "architecture.md"


def test_the_way_is_as_short_as_the_page_says(config, tmp_path, material, monkeypatch):
  ways = {}

  def watch(owner, name):
    plain = getattr(owner, name)

    def watched(*args, **more):
      frames = [frame for frame in traceback.extract_stack() if Path(frame.filename).is_relative_to(ROOT)]
      found = [(Path(one.filename).relative_to(ROOT).as_posix(), one.name) for one in frames if one.name != "<lambda>"]
      ways.setdefault(name, found)
      return plain(*args, **more)

    monkeypatch.setattr(owner, name, watched)

  watch(pretrained, "as_leaf")
  watch(LoRA, "create")
  watch(inspection, "report")
  config.train.update({"steps": 1, "predictions": False, "final_splits": ()})
  config.data.buckets = ()
  path = tmp_path / "config.py"
  made = f"ConfigDict({config.to_dict()!r})"
  path.write_text(f"from ml_collections import ConfigDict\ndef get_config():\n  return {made}\n")
  verb = ["train", f"--config={path}", f"--workdir={tmp_path / 'run'}", "--config.method.rank=3"]
  assert cli.main(verb) == 0

  counts = {name: (len(way), len({file for file, _ in way})) for name, way in ways.items()}
  assert counts == {"as_leaf": (9, 5), "create": (9, 5), "report": (6, 4)}, ways
  page = PAGE.read_text(encoding="utf-8")
  told = page[page.index("## A parameter's way") : page.index("## What a new kind touches")]
  for name, way in ways.items():
    for function in (*(one for _, one in way), name):
      assert f"`{function}`" in told or f".{function}`" in told, function
