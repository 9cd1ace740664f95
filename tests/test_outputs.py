"""Nothing that was not written here is lost: what saving and exporting does to a folder that holds something."""

from __future__ import annotations

import json
import re
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

import peftjax
from peftjax import UserError, loading, outputs
from peftjax.interop import peft
from peftjax.methods import LoRA
from peftjax.model import Model
from peftjax.models import pretrained, writing
from tests.test_model import CONFIG


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Model:
  folder = tmp_path_factory.mktemp("outputs") / "base"
  made = loading.initialise(loading.from_config(CONFIG), jax.random.key(0))
  made.save(folder)
  for name in ("tokenizer.json", "chat_template.jinja", "preprocessor_config.json", "added_tokens.json", "notes.md"):
    (folder / name).write_text(name)
  (folder / "additional_chat_templates").mkdir()
  (folder / "additional_chat_templates" / "tools.jinja").write_text("tools")
  return peftjax.load(folder)


@pytest.fixture(scope="module")
def adapted(base: Model) -> Model:
  return base.add(LoRA(rank=2, targets=("query",)), jax.random.key(1))


def content(folder: Path) -> dict[str, bytes]:
  files = sorted(path for path in folder.rglob("*") if path.is_file())
  return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


SAVES: dict[str, Callable[..., None]] = {
  "model": lambda base, adapted, folder, **how: base.save(folder, **how),
  "adapter": lambda base, adapted, folder, **how: adapted.save_adapter(folder, **how),
}


@pytest.fixture(params=SAVES)
def save(request: Any, base: Model, adapted: Model) -> Callable[..., None]:
  return lambda folder, **how: SAVES[request.param](base, adapted, folder, **how)


def test_files_go_beside_what_is_there(save: Callable[..., None], tmp_path: Path) -> None:
  (tmp_path / "src").mkdir()
  (tmp_path / "src" / "main.py").write_text("mine")
  (tmp_path / "report.safetensors").write_bytes(b"mine too")
  before = content(tmp_path)
  save(tmp_path)
  after = content(tmp_path)
  assert {name: after[name] for name in before} == before
  assert len(after) > len(before) + 2
  assert not list(tmp_path.glob(".peftjax-*"))


@pytest.mark.parametrize("name", ["run", "study", "checkpoints", "other", "link"])
def test_a_folder_with_something_of_another_origin_is_refused_and_kept(
  name: str, save: Callable[..., None], tmp_path: Path
) -> None:
  folder = tmp_path / "out"
  folder.mkdir()
  (tmp_path / "elsewhere").write_text("elsewhere")
  if name == "run":
    (folder / "metrics.jsonl").write_text("{}")
  elif name == "study":
    (folder / "results.jsonl").write_text("{}")
  elif name == "checkpoints":
    (folder / "checkpoints" / "300").mkdir(parents=True)
    (folder / "checkpoints" / "300" / "state").write_text("state")
  for file in ("config.json", "adapter_config.json"):
    if name == "other":
      (folder / file).write_text('{"model_type": "bert"}')
    elif name == "link":
      (folder / file).symlink_to(tmp_path / "elsewhere")
  before = content(tmp_path)
  with pytest.raises(UserError, match=r"choose another folder"):
    save(folder)
  assert content(tmp_path) == before


def test_the_bases_own_folder_is_refused(save: Callable[..., None], base: Model, tmp_path: Path) -> None:
  assert base.folder is not None
  before = content(base.folder)
  for folder in (base.folder, tmp_path / "link"):
    if folder != base.folder:
      folder.symlink_to(base.folder)
    with pytest.raises(UserError, match=r"is the folder of the base model|holds config\.json"):
      save(folder)
  assert content(base.folder) == before


@pytest.mark.parametrize("place", ["checkpoints", "checkpoints/4", "checkpoints/4/default", "checkpoints/best"])
def test_nothing_is_written_among_checkpoints(place: str, save: Callable[..., None], tmp_path: Path) -> None:
  (tmp_path / "checkpoints" / "4").mkdir(parents=True)
  (tmp_path / "config.json").write_text("{}")
  with pytest.raises(UserError, match="among a run's checkpoints; choose another folder, or --overwrite"):
    save(tmp_path / place)
  assert list(content(tmp_path)) == ["config.json"]


def test_a_list_claims_nothing_behind_a_link(base: Model, tmp_path: Path) -> None:
  """As a folder that somebody else made may say."""
  (tmp_path / "precious").mkdir()
  (tmp_path / "precious" / "mine.txt").write_text("a")
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "link").symlink_to(tmp_path / "precious")
  (tmp_path / "out" / "one.txt").symlink_to(tmp_path / "precious" / "mine.txt")
  digest = outputs.digest(tmp_path / "precious" / "mine.txt")
  entry = {"kind": "model", "sha256": [digest]}
  listed = {"files": {"link/mine.txt": entry, "one.txt": entry, "link/../link/mine.txt": entry}}
  (tmp_path / "out" / outputs.LIST).write_text(json.dumps(listed))
  base.save(tmp_path / "out")
  outputs.remove(tmp_path / "out")
  assert (tmp_path / "precious" / "mine.txt").read_text() == "a" and (tmp_path / "out" / "one.txt").is_symlink()


def test_what_was_written_here_is_written_again_and_what_changed_since_is_not(
  save: Callable[..., None], tmp_path: Path
) -> None:
  folder = tmp_path / "out"
  save(folder)
  first = content(folder)
  save(folder)
  assert content(folder) == first
  (config,) = folder.glob("*config.json") if (folder / "adapter_config.json").exists() else [folder / "config.json"]
  config.write_text('{"edited": true}')
  before = content(folder)
  with pytest.raises(UserError, match=r"has been changed since peftjax wrote it, and would be replaced"):
    save(folder)
  assert content(folder) == before
  (folder / "mine").write_text("mine")
  save(folder, overwrite=True)
  assert content(folder) == {**first, "mine": b"mine"}


def test_one_s_own_is_what_is_listed_of_the_kind_or_known_by_what_it_holds(tmp_path: Path) -> None:
  with outputs.written(tmp_path, ["config.json"], "model") as folder:
    (folder / "config.json").write_text("{}")
  outputs.check_own(tmp_path, ["config.json", "absent", "none/*.png"])
  outputs.check_own(tmp_path, ["config.json"], kind="model")
  outputs.check_own(tmp_path, ["config.json"], kind="run", is_own=lambda path: path.read_text() == "{}")
  with pytest.raises(
    UserError, match=r"config\.json is no run's, and would be replaced; move it, or choose another fold"
  ):
    outputs.check_own(tmp_path, ["config.json"], kind="run", whose="run's")
  (tmp_path / "samples").mkdir()
  for name in ("2.png", "1.png"):
    (tmp_path / "samples" / name).symlink_to("nowhere")
  with pytest.raises(UserError, match=r"samples/1\.png is no file, and would be replaced; ask"):
    outputs.check_own(tmp_path, ["samples/*.png"], "ask", whose="run's")
  (tmp_path / "config.json").write_text("{ }")
  with pytest.raises(UserError, match=r"config\.json has been changed since peftjax wrote it, and would be replaced"):
    outputs.check_own(tmp_path, ["config.json"], kind="model", is_own=lambda path: True)


def test_overwriting_replaces_names_and_deletes_nothing(base: Model, tmp_path: Path) -> None:
  (tmp_path / "config.json").write_text('{"model_type": "other"}')
  (tmp_path / "pytorch_model.bin").write_bytes(b"weights")
  (tmp_path / "checkpoints" / "2").mkdir(parents=True)
  base.save(tmp_path, overwrite=True)
  assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "bert"
  assert (tmp_path / "pytorch_model.bin").read_bytes() == b"weights"
  assert (tmp_path / "checkpoints" / "2").is_dir()


def test_what_an_earlier_output_of_the_kind_left_goes(
  base: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(writing, "MAX_SHARD_BYTES", 3000)
  base.save(tmp_path)
  assert (tmp_path / pretrained.index_of("model")).is_file() and len(list(tmp_path.glob("*.safetensors"))) > 2
  (tmp_path / "extra.safetensors").write_bytes(b"mine")
  monkeypatch.undo()
  base.save(tmp_path)
  assert {path.name for path in tmp_path.glob("*.safetensors")} == {pretrained.WEIGHTS, "extra.safetensors"}
  assert not (tmp_path / pretrained.index_of("model")).exists()
  assert peftjax.load(tmp_path).architecture == base.architecture
  monkeypatch.setattr(writing, "MAX_SHARD_BYTES", 3000)
  (tmp_path / outputs.LIST).unlink()
  with pytest.raises(UserError, match=r"holds model\.safetensors: it would be loaded in place of the index"):
    base.save(tmp_path, overwrite=True)


def test_a_model_and_an_adapter_that_would_be_read_together_are_kept_apart(
  base: Model, adapted: Model, tmp_path: Path
) -> None:
  adapted.save_adapter(tmp_path / "adapter")
  adapted.merge().save(tmp_path / "model")
  before = content(tmp_path)
  with pytest.raises(UserError, match=r"holds adapter_config\.json: transformers would put that adapter on this model"):
    adapted.merge().save(tmp_path / "adapter", overwrite=True)
  with pytest.raises(UserError, match=r"holds config\.json: transformers would load that model with this adapter"):
    adapted.save_adapter(tmp_path / "model", overwrite=True)
  assert content(tmp_path) == before


@pytest.mark.parametrize("name", ["vocab.txt", "generation_config.json", "additional_chat_templates/other.jinja"])
def test_a_model_does_not_go_to_what_belongs_to_another_ones_inputs(name: str, base: Model, tmp_path: Path) -> None:
  """None of the names is the base's own, so that nothing would be replaced, and all would be read with it."""
  (tmp_path / name).parent.mkdir(exist_ok=True)
  (tmp_path / name).write_text("another model's")
  before = content(tmp_path)
  with pytest.raises(UserError, match=rf"holds {re.escape(name)}: it would be read with this model, and .* has none"):
    base.save(tmp_path)
  assert content(tmp_path) == before
  base.save(tmp_path, overwrite=True)
  assert (tmp_path / name).read_text() == "another model's"
  base.save(tmp_path, overwrite=True)


@pytest.fixture
def small_disk() -> Iterator[Callable[[int], None]]:
  """Sets how large a file may be, as a full disk would."""
  handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
  resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  signal.signal(signal.SIGXFSZ, handler)


def test_a_write_without_space_changes_nothing(
  save: Callable[..., None], small_disk: Callable[[int], None], tmp_path: Path
) -> None:
  save(tmp_path / "out")
  before = content(tmp_path)
  small_disk(1500)
  for name in ("out", "new"):
    with pytest.raises(UserError, match="cannot write"):
      save(tmp_path / name)
  assert content(tmp_path) == before


def test_a_write_that_was_cut_off_between_two_files_can_be_done_again(
  base: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  base.save(tmp_path)
  first, replace = content(tmp_path), Path.replace
  other = base.with_params(jax.tree.map(lambda leaf: leaf + 1, base.params))

  def cut(path: Path, target: Path) -> Path:
    if target.name == pretrained.WEIGHTS:
      raise OSError("cut off")
    return replace(path, target)

  monkeypatch.setattr(Path, "replace", cut)
  with pytest.raises(UserError, match="cut off"):
    other.save(tmp_path)
  monkeypatch.undo()
  other.save(tmp_path)
  wanted = content(tmp_path)
  assert wanted.keys() == first.keys() and wanted[pretrained.WEIGHTS] != first[pretrained.WEIGHTS]
  base.save(tmp_path)
  assert content(tmp_path) == first


def test_removing_takes_what_was_written_and_nothing_else(adapted: Model, tmp_path: Path) -> None:
  adapted.save_adapter(tmp_path / "out")
  outputs.remove(tmp_path / "out")
  assert not (tmp_path / "out").exists()
  adapted.save_adapter(tmp_path / "out")
  (tmp_path / "out" / "mine").write_text("mine")
  (tmp_path / "out" / peft.CONFIG).write_text("{}")
  outputs.remove(tmp_path / "out")
  assert content(tmp_path / "out") == {"mine": b"mine", peft.CONFIG: b"{}"}
  outputs.remove(tmp_path / "nowhere")


OUTSIDE = '{"files": {"../victim": {"kind": "model", "sha256": ["x"]}}}'


@pytest.mark.parametrize("listed", ["[]", '{"files": 3}', OUTSIDE])
def test_a_list_that_is_none_claims_nothing(listed: str, base: Model, tmp_path: Path) -> None:
  (tmp_path / "victim").write_text("mine")
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / outputs.LIST).write_text(listed)
  outputs.remove(tmp_path / "out")
  assert (tmp_path / "victim").read_text() == "mine"


def test_all_that_belongs_to_tokenizer_and_processor_travels(base: Model, tmp_path: Path) -> None:
  base.save(tmp_path)
  for name in ("tokenizer.json", "chat_template.jinja", "preprocessor_config.json", "added_tokens.json"):
    assert (tmp_path / name).read_text() == name
  assert (tmp_path / "additional_chat_templates" / "tools.jinja").read_text() == "tools"
  assert not (tmp_path / "notes.md").exists()


def test_no_folder_is_removed_but_those_made_here() -> None:
  for path in Path(peftjax.__file__).parent.rglob("*.py"):
    found = re.findall(r"rmtree\((.*?)[,)]", path.read_text())
    assert found == (["temporary"] if path.name == "outputs.py" else []), path
