"""An adapter knows its base by the base's config.json and values."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import peftjax
from peftjax import UserError, cli, loading
from peftjax.interop import peft
from peftjax.methods import Full, LoRA
from peftjax.models import pretrained
from tests.methods import tiny
from tests.models.decoder_models import LLAMA, random_model


@pytest.fixture
def folders(tmp_path: Path) -> Path:
  for seed, name in enumerate(("base", "other")):
    random_model(LLAMA, seed).save(tmp_path / name)
  base = peftjax.load(tmp_path / "base")
  base.add(LoRA(rank=2), jax.random.key(1)).save_adapter(tmp_path / "adapter")
  return tmp_path


def test_an_adapter_on_another_base_of_equal_shapes_is_refused_unless_asked(folders: Path) -> None:
  says = r"the adapter was trained on another base: .*other have another digest than peftjax\.json notes"
  with pytest.raises(UserError, match=says):
    peftjax.load(folders / "other", adapter=folders / "adapter")
  asked = peftjax.load(folders / "other", adapter=folders / "adapter", other_base=True)
  assert [method.name for method in asked.methods] == ["lora"]
  (folders / "base").rename(folders / "moved")
  assert peftjax.load(folders / "moved", adapter=folders / "adapter").methods  # the same bytes elsewhere
  (folders / "moved" / "config.json").write_text((folders / "other" / "config.json").read_text() + " ")
  with pytest.raises(UserError, match="trained on another base"):
    peftjax.load(folders / "moved", adapter=folders / "adapter")


def test_a_base_in_other_shards_is_the_same_base(folders: Path) -> None:
  base, again = folders / "base", folders / "again"
  tensors = load_file(base / "model.safetensors")
  places = {key: f"model-{number % 3}.safetensors" for number, key in enumerate(sorted(tensors, reverse=True))}
  again.mkdir()
  (again / "config.json").write_bytes((base / "config.json").read_bytes())
  (again / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))

  def write() -> None:
    for name in set(places.values()):
      save_file({key: tensors[key] for key, place in places.items() if place == name}, again / name)

  write()
  assert peftjax.load(again, adapter=folders / "adapter").methods
  first, *_ = places
  tensors[first] = tensors[first] + np.float32(1e-6)
  write()
  with pytest.raises(UserError, match="trained on another base"):
    peftjax.load(again, adapter=folders / "adapter")


def test_an_adapter_that_notes_its_bases_files_loads_still(folders: Path) -> None:
  ours = folders / "adapter" / peft.OURS
  noted = json.loads(ours.read_text()) | {"base_sha256": pretrained.file_hash(folders / "base")}
  ours.write_text(json.dumps(noted))
  assert peftjax.load(folders / "base", adapter=folders / "adapter").methods


def test_an_adapter_on_a_base_that_was_merged_in_memory_is_not_one_of_its_folder(folders: Path) -> None:
  base = peftjax.load(folders / "base")
  given = {"input_ids": np.arange(3, 12)[None]}
  for number, method in enumerate((LoRA(rank=2), Full())):
    trained = base.add(method, jax.random.key(1))
    merged = tiny.replaced(trained, tiny.noise_on(tiny.trainable(trained))).merge()
    again = merged.add(LoRA(rank=3), jax.random.key(2))
    again.save_adapter(folders / f"second-{number}")
    with pytest.raises(UserError, match="trained on a base into which another was merged"):
      peftjax.load(folders / "base", adapter=folders / f"second-{number}")
    merged.save(folders / f"merged-{number}")
    found = peftjax.load(folders / f"merged-{number}", adapter=folders / f"second-{number}", other_base=True)
    np.testing.assert_array_equal(found(**given)["logits"], again(**given)["logits"])


def test_an_adapter_that_says_nothing_of_its_base_loads_on_any(folders: Path, caplog: pytest.LogCaptureFixture) -> None:
  (folders / "adapter" / peft.OURS).unlink()
  with caplog.at_level(logging.INFO, logger="peftjax"):
    peftjax.load(folders / "other", adapter=folders / "adapter")
  assert "the adapter names the base" in caplog.text


def test_the_command_line_says_how(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
  verb = ["generate", f"--model={folders / 'other'}", f"--adapter={folders / 'adapter'}", "--prompt=a"]
  assert cli.main(verb) == 2
  assert "--other_base" in capsys.readouterr().err


def test_values_come_back_on_their_base(folders: Path) -> None:
  base = peftjax.load(folders / "base")
  model = base.add(LoRA(rank=2), jax.random.key(1))
  loaded = loading.load(folders / "base", adapter=folders / "adapter")
  given = {"input_ids": np.arange(3, 12)[None]}
  np.testing.assert_array_equal(loaded(**given)["logits"], model(**given)["logits"])
  assert "base_sha256" in json.loads((folders / "adapter" / peft.OURS).read_text())
