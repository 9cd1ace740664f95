"""`peftjax sample`: what is wrong is said before anything is sampled."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from peftjax import cli, sampling_verb
from tests.oracles import pipelines


@pytest.fixture
def sample(monkeypatch, capsys):
  """A function of more flags to (exit code, stderr); nothing is sampled; `asked` says whether it would be."""

  pipeline = pipelines.pipeline(small=True)[1]
  capsys.readouterr()  # what making it prints

  def run(*flags):
    code = cli.main(["sample", f"--model={pipeline}", "--prompt=a dog", "--steps=1", *flags])
    return code, capsys.readouterr().err

  def sampled(model, plan, folder, texts, *more):
    run.asked = len(texts)
    return np.zeros((len(texts), 8, 8, 3), np.uint8)

  run.asked = 0
  monkeypatch.setattr(sampling_verb, "_sampled", sampled)
  return run


def test_others_pictures_are_refused_before_sampling(sample, tmp_path):
  Image.new("RGB", (2, 2)).save(tmp_path / "00001.png")
  code, said = sample(f"--out={tmp_path}", "--count=2")
  assert (code, sample.asked) == (2, 0) and "00001.png" in said and said.count("\n") == 1
  (tmp_path / "file").write_text("")
  code, said = sample(f"--out={tmp_path / 'file'}")
  assert (code, sample.asked) == (2, 0) and "is a file; choose a folder" in said
  assert sample(f"--out={tmp_path}", "--count=1")[0] == 0 and sample.asked == 1
  assert sorted(one.name for one in tmp_path.glob("*.png")) == ["00000.png", "00001.png", "sheet.png"]


@pytest.mark.parametrize("spec", ["=0.5", "dog=", "dog=x", "a,=1"])
def test_an_adapter_is_a_folder_with_a_number(sample, spec, tmp_path):
  code, said = sample(f"--adapter={spec}", f"--out={tmp_path}")
  assert (code, sample.asked) == (2, 0)
  assert "expected FOLDER or FOLDER=WEIGHT" in said or "a has no folder of an adapter" in said
