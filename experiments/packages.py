"""The wheel and the source distribution, installed in empty environments of several Pythons, where they train.

    python -m experiments.packages --python=python3.11 --python=python3.12 --python=python3.13

A row for each is printed: what was installed, its versions, the seconds of installing and of training. Nothing of this
checkout is on the path there; versions are those that pip chooses by setup.py, or those of `--lock`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
QUICK = (
  "--config.data.train_examples=64",
  "--config.data.eval_examples=64",
  "--config.data.max_length=32",
  "--config.train.epochs=1",
)
TOLD = ("jax", "flax", "numpy", "optax", "orbax-checkpoint")
VERSIONS = (
  "import importlib.metadata as m, json, platform, peftjax, sys; "
  f"print(json.dumps({{'python': platform.python_version(), **{{name: m.version(name) for name in {TOLD}}}}})); "
  "print(peftjax.__file__, file=sys.stderr)"
)


def run(command: Sequence[str | Path], where: Path, **more: str) -> str:
  """What a command prints on stdout; its stderr is shown where it fails."""
  kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
  done = subprocess.run(list(map(str, command)), cwd=where, env={**kept, **more}, capture_output=True, text=True)
  if done.returncode:
    sys.exit(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stderr[-4000:]}")
  return done.stdout


def build(folder: Path) -> tuple[Path, Path]:
  """(wheel, source distribution) of what git tracks here."""
  source = folder / "source"
  for name in run(["git", "ls-files"], ROOT).splitlines():
    if (ROOT / name).is_file():
      (source / name).parent.mkdir(parents=True, exist_ok=True)
      (source / name).write_bytes((ROOT / name).read_bytes())
  made = f"from setuptools import build_meta as b; b.build_sdist({str(folder)!r}); b.build_wheel({str(folder)!r})"
  run([sys.executable, "-c", made], source)
  return next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))


def tried(python: str, package: Path, folder: Path, lock: str) -> dict[str, str]:
  """Installs a package into a new environment of a Python and trains in it."""
  folder.mkdir(parents=True)
  run([python, "-m", "venv", "env"], folder)
  there = (folder / "env" / "bin" / "python").absolute()
  pip, start = [there, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"], time.monotonic()
  if lock:
    run([*pip, "-r", ROOT / lock], ROOT)
  run([*pip, package], folder)
  installed = time.monotonic()
  version = run([there.parent / "peftjax", "--version"], folder).strip()
  command = [there.parent / "peftjax", "train", "--json", "--workdir=run", *QUICK]
  summary = json.loads(run(command, folder, JAX_PLATFORMS="cpu"))
  trained = time.monotonic()
  saying = "--text=Dull from start to end."
  (row,) = run([there.parent / "peftjax", "predict", "--workdir=run", saying], folder, JAX_PLATFORMS="cpu").splitlines()
  assert summary["step"] == 2 and json.loads(row)["label"] in ("negative", "positive")
  return {
    **json.loads(run([there, "-c", VERSIONS], folder)),
    "package": "wheel" if package.suffix == ".whl" else "sdist",
    "peftjax": version.removeprefix("peftjax "),
    "install s": f"{installed - start:.0f}",
    "train s": f"{trained - installed:.0f}",
  }


def main() -> None:
  """Tries every Python with the wheel, and the first also with the source distribution."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--python", action="append", default=[], help="an interpreter; may be given several times")
  parser.add_argument("--lock", default="", help="a lock to install first, such as requirements-newest.lock")
  given = parser.parse_args()
  pythons = given.python or [sys.executable]
  with tempfile.TemporaryDirectory() as made:
    folder = Path(made)
    wheel, source = build(folder)
    for number, (python, package) in enumerate([*((one, wheel) for one in pythons), (pythons[0], source)]):
      row = tried(python, package, folder / str(number), given.lock)
      if not number:
        print("|", " | ".join(row), "|\n|" + "---|" * len(row))
      print("|", " | ".join(row.values()), "|", flush=True)


if __name__ == "__main__":
  main()
