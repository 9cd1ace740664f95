"""Every bit of every file counts; files divide among processes."""

from __future__ import annotations

import jax
import pytest

from peftjax.errors import UserError
from peftjax.train import manifest


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "trainable" / "d").mkdir(parents=True)
  (tmp_path / "trainable" / "d" / "a b").write_bytes(bytes(range(0, 256, 5)))
  (tmp_path / "training").mkdir()
  (tmp_path / "training" / "x").write_bytes(b"training")
  (tmp_path / "empty").write_bytes(b"")
  manifest.write(tmp_path)
  return tmp_path


def test_each_flipped_bit_is_found(folder):
  assert manifest.verify(folder)
  for name in ("trainable/d/a b", "training/x", manifest.NAME):
    content = (folder / name).read_bytes()
    for place in range(8 * len(content)):
      flipped = bytearray(content)
      flipped[place // 8] ^= 1 << place % 8
      (folder / name).write_bytes(flipped)
      with pytest.raises(ValueError, match=f"^{name} has other bytes than were saved$"):
        manifest.verify(folder)
    (folder / name).write_bytes(content)
  assert manifest.verify(folder)


def test_missing_cut_and_grown_files_are_found(folder):
  (folder / "trainable" / "other").write_bytes(b"of no concern")
  assert manifest.verify(folder)
  (folder / "empty").write_bytes(b"1")
  with pytest.raises(ValueError, match="^empty has another size"):
    manifest.verify(folder)
  assert manifest.verify(folder, ("trainable", "training"))
  (folder / "training" / "x").write_bytes(b"train")
  with pytest.raises(ValueError, match="^training/x has another size"):
    manifest.verify(folder, ("training",))
  assert manifest.verify(folder, ("trainable",))
  (folder / "trainable" / "d" / "a b").unlink()
  with pytest.raises(ValueError, match="^trainable/d/a b is missing$"):
    manifest.verify(folder, ("trainable",))
  (folder / manifest.NAME).unlink()
  assert not manifest.verify(folder)


def test_what_may_not_be_read_is_no_damage(folder, monkeypatch):
  """So that it is not deleted for that."""

  def refused(path):
    raise PermissionError(13, "Permission denied", str(path))

  monkeypatch.setattr(manifest, "_digest", refused)
  with pytest.raises(UserError, match="empty may not be read by this user"):
    manifest.verify(folder)


def test_processes_divide_files_by_size(monkeypatch):
  sizes, parts = [5, 100, 3, 40, 60, 0, 0], []
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  for process in range(2):
    monkeypatch.setattr(jax, "process_index", lambda process=process: process)
    parts.append(manifest._share(sizes))
  assert sorted(parts[0] + parts[1]) == list(range(len(sizes)))
  assert abs(sum(sizes[i] for i in parts[0]) - sum(sizes[i] for i in parts[1])) <= 8
