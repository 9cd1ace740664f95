"""The first hour of a new user, step by step from a fresh clone: what each command takes.

    python -m experiments.first_hour                       all steps; about an hour on two shared cores
    python -m experiments.first_hour --without=first,demo

Prints a row as each step ends: seconds by the clock, and processor seconds, which other work on the machine changes
little. Commands are those of README.md and docs/first_steps.md, in the clone's own environment.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
_P = "peftjax"
STEPS: Mapping[str, Sequence[str]] = {
  "install": ("make", ".venv/.installed-runtime", f"PYTHON={sys.executable}"),
  "list": (_P, "list", "methods"),
  "config": (_P, "config", "lr"),
  "inspect": (_P, "inspect", "--config.method.name=ia3"),
  "ia3": (_P, "train", "--workdir=runs/ia3", "--config.method.name=ia3", "--config.data.train_examples=1000"),
  "predict": (_P, "predict", "--workdir=runs/ia3", "--text=Dull from start to end."),
  "export": (_P, "export", "--workdir=runs/ia3", "--format=peft", "--out=adapter"),
  "own method": (_P, "inspect", "--config.method.name=docs/examples/ssf.py:SSF"),
  "guide": (_P, "guide", "--config.guide.examples=500", "--config.guide.latency=same"),
  "first": (_P, "train", "--workdir=runs/first"),
  "demo": ("make", "demo", f"PYTHON={sys.executable}"),
}


def timed(command: Sequence[str], where: Path) -> tuple[float, float]:
  """(seconds, processor seconds) of a command; its output is shown where it fails."""
  kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
  path = f"{where / '.venv' / 'bin'}{os.pathsep}{kept['PATH']}"
  before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
  done = subprocess.run(command, cwd=where, env={**kept, "PATH": path}, capture_output=True, text=True, check=False)
  seconds, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
  if done.returncode:
    sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
  return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def rows(without: Sequence[str], folder: Path) -> Iterator[tuple[str, float, float]]:
  """(command, seconds, processor seconds) of each step, the clone first."""
  yield "git clone", *timed(("git", "clone", "--quiet", str(ROOT), str(folder / "peftjax")), folder)
  for name, command in STEPS.items():
    if name not in without:
      shown = " ".join(one for one in command if not one.startswith("PYTHON="))
      yield shown, *timed(command, folder / "peftjax")


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--without", default="", help=f"steps to leave out, by comma: {', '.join(STEPS)}")
  without = [one for one in parser.parse_args().without.split(",") if one]
  if unknown := [one for one in without if one not in STEPS]:
    parser.error(f"--without={unknown[0]}: expected some of {', '.join(STEPS)}")
  print("| command | seconds | processor seconds |\n|---|---:|---:|")
  with tempfile.TemporaryDirectory() as made:
    for command, seconds, processor in rows(without, Path(made)):
      print(f"| `{command}` | {seconds:.0f} | {processor:.0f} |", flush=True)


if __name__ == "__main__":
  main()
