"""How long a text set takes to its first batch, by its number of examples, and what the host holds of it.

    python -m experiments.benchmarks.start_up --out=runs/benchmarks/start_up.json

The examples are generated, written as JSON lines, and read by the input that masked language modelling takes, each
number in a process of its own with an empty cache: opening checks every row, and where there are at most
`MEASURED_AT_ONCE` examples their lengths are measured before the first batch, else a run of batches at a time. Seconds
are of the machine that it runs on; memory is the process's beyond what it held when all was imported, at its peak and
with the first batch made.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments.benchmarks.measuring import command_of, record

WORDS = [
  f"{first}{last}" for first in ("ca", "mo", "ti", "wor", "na", "le") for last in ("r", "n", "me", "ld", "st", "p")
]


def written(folder: Path, count: int) -> Path:
  """A folder with `count` short texts to train on, and 200 for validation."""
  draw = random.Random(0)
  for split, size in (("train", count), ("validation", 200)):
    with (folder / f"{split}.jsonl").open("w") as file:
      for _ in range(size):
        file.write(json.dumps({"text": " ".join(draw.choices(WORDS, k=draw.randint(5, 14)))}) + "\n")
  return folder


def measured(model: str, data: str) -> dict[str, Any]:
  """What opening, ordering and the first batch take, in this process."""
  import peftjax.train.loop  # noqa: F401  # what a run imports
  from experiments.benchmarks.rival import forget_peak, held
  from peftjax import config as config_lib
  from peftjax import tasks
  from peftjax.data import make_loaders
  from peftjax.data.inputs.masked_tokens import MaskedTokens
  from peftjax.data.sources.opening import open_as

  config = config_lib.load("", [f"data.name=jsonl:{data}", "task.name=masked_lm", "data.max_length=48"])
  forget_peak()
  before, begin = held(), time.perf_counter()
  dataset = open_as(config.data.name, config.data)
  opened = time.perf_counter()
  task = tasks.make("masked_lm", ())
  loaders = make_loaders(config, dataset, lambda header: MaskedTokens(config, header, task, Path(model)))
  next(loaders.train)
  ready = time.perf_counter()
  return {
    "examples": dataset.splits["train"],
    "file_bytes": (Path(data) / "train.jsonl").stat().st_size,
    "open_seconds": opened - begin,
    "first_batch_seconds": ready - begin,
    "held_bytes": held() - before,
    "peak_bytes": held("VmHWM") - before,
  }


def main() -> None:
  """Measures each number of examples."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--counts", default="10000,100000,1000000,10000000")
  parser.add_argument("--one", default="", help="model and data of the one that this process measures")
  parser.add_argument("--out", default="")
  flags = parser.parse_args()
  if flags.one:
    print(json.dumps(measured(*flags.one.split(","))))
    return
  rows = []
  with tempfile.TemporaryDirectory() as folder:
    model = Path(folder) / "model"
    subprocess.run(
      [sys.executable, "-m", "peftjax.data.inputs.tokenizer_training", "--kind=wordpiece", "--vocab_size=1024",
       "--data=packaged:banking77", "--like=configs/bert_mini/config.json", f"--out={model}"], check=True,
    )  # fmt: skip
    for count in map(int, flags.counts.split(",")):
      with tempfile.TemporaryDirectory() as data:
        written(Path(data), count)
        found = subprocess.run(
          [sys.executable, "-m", "experiments.benchmarks.start_up", f"--one={model},{data}"],
          check=True, capture_output=True, text=True, env={**os.environ, "PEFTJAX_CACHE": f"{data}/cache"},
        )  # fmt: skip
      rows.append(json.loads(found.stdout.splitlines()[-1]))
      print(rows[-1], flush=True)
  record("start_up", {"command": command_of("experiments.benchmarks.start_up"), "rows": rows}, flags.out)


if __name__ == "__main__":
  main()
