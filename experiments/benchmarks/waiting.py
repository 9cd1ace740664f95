"""How long the device waits for the host while `peftjax train` trains, data loading and all.

    python -m experiments.benchmarks.waiting --out=runs/benchmarks/waiting.json

Two LoRA runs: a LLaMA of 135M on gsm8k's texts, packed, and a ViT-B/16 on pictures of signed digits; both data sets
come with the package, the weights are random. `jax.profiler` sees the whole run, and the share of the window of its
middle updates in which no kernel runs is what is told. The LLaMA's tokenizer is that of --tokenizer, a folder.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import jax

from experiments.benchmarks.measuring import command_of, is_accelerator, record
from experiments.benchmarks.profile_step import events_of, idle_share
from experiments.benchmarks.shapes import find
from peftjax import config as config_lib

STEPS, WINDOW = 150, 80  # updates of a run; those of the window, the last of which are before the run's end


def setting(kind: str, tokenizer: str, folder: Path, rows: int) -> Any:
  """The config of a run."""
  shape = find("vit-b16" if kind == "pictures" else "llama-135m")
  model = folder / kind
  model.mkdir()
  hf_config = dict(shape.hf_config)
  config = config_lib.default()
  if kind == "pictures":
    with config.unlocked():
      config.input = {"name": "images", "size": 224}
    config.data.name = "packaged:sign_digits"
  else:
    for name in ("tokenizer.json", "tokenizer_config.json"):
      (model / name).write_bytes((Path(tokenizer) / name).read_bytes())
    config.data.name = "packaged:gsm8k"
    config.data.update({"packing": True, "max_length": 512, "buckets": ()})
  (model / "config.json").write_text(json.dumps(hf_config))
  config.model.update({"path": str(model), "init": "random", "compute_dtype": "bfloat16", "dtype": "bfloat16"})
  config.train.update({"steps": STEPS, "batch_size": rows, "save_every": 0, "eval_every": 0, "final_splits": ()})
  config.train.update({"tensorboard": False, "log_every": 10})
  config.task.generate = False
  with config.unlocked():
    config.method = {"name": "lora", "rank": 8, "targets": "all-linear"}
  return config


def measured(kind: str, tokenizer: str, rows: int) -> dict[str, Any]:
  """The idle share of a run, and its median step."""
  from peftjax.train.loop import train

  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    config = setting(kind, tokenizer, folder, rows)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # a whole run's calls would be more than a trace holds
    options.host_tracer_level = 0 if is_accelerator() else 2
    with jax.profiler.trace(str(folder / "trace"), profiler_options=options):
      summary = train(config, folder / "run")
    events = events_of(folder / "trace")
  seconds = float(summary["step_seconds"])
  end = max(one["ts"] + one.get("dur", 0) for one in events) - 10e6 * seconds
  window = [one for one in events if end - 1e6 * WINDOW * seconds < one["ts"] < end]
  found = {"run": kind, "rows": rows, "step_seconds": seconds, "kernels": len(window)}
  return found | {"idle": idle_share(window), "compilations": len(summary["compiled"])}


def main() -> None:
  """Measures."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--tokenizer", default="", help="folder with a tokenizer.json; without it only pictures run")
  parser.add_argument("--rows", type=int, default=32)
  parser.add_argument("--out", default="")
  flags = parser.parse_args()
  rows = []
  for kind in ("text", "pictures") if flags.tokenizer else ("pictures",):
    rows.append(measured(kind, flags.tokenizer, flags.rows))
    print(rows[-1], flush=True)
    record("waiting", {"command": command_of("experiments.benchmarks.waiting"), "rows": rows}, flags.out)


if __name__ == "__main__":
  main()
