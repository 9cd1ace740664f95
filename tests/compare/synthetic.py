"""A study that never ran: records as a real one leaves them, from a model of accuracy with known truths."""

from __future__ import annotations

import zlib

import numpy as np
from scipy import special

from peftjax.compare import analysis, records
from peftjax.compare.scores import pack_scores
from peftjax.stored import plain
from peftjax.tasks.metric import Metric

ACCURACY = Metric("accuracy", "per-example", share=True, value="correct")
SPECS = {"accuracy": ACCURACY, "loss": Metric("loss", "corpus", "nats a token", higher_is_better=False)}

TOTAL = 22_713_986
HEAD = 770

#       row: (accuracy, trainable outside the head, FLOPs against full, learning rate)
METHODS = {
  "full": (0.837, TOTAL - HEAD, 1.0, 3e-5),
  "head": (0.751, 0, 0.34, 5e-3),
  "bitfit": (0.810, 27_264, 0.67, 1e-3),
  "lora": (0.824, 73_728, 0.68, 1e-3),
  "ia3": (0.813, 13_824, 0.67, 5e-3),
  "houlsby": (0.818, 304_512, 0.70, 1e-3),
  "prompt": (0.770, 7_680, 0.95, 1e-2),
}


def results(methods=METHODS, seeds=3, examples=2110, steps=420, spread=0.02, random_seed=0):
  """Records of every method under every seed; methods share which examples are hard, seeds move them a little."""
  rng = np.random.default_rng(random_seed)
  hard = rng.normal(0, 1.5, examples)
  deviation = np.sqrt(1.5**2 + 0.5**2 + 0.5**2)
  found = []
  taste = {name: rng.normal(0, 0.5, examples) for name in methods}
  for seed in range(seeds):
    for name, (accuracy, added, flops, rate) in methods.items():
      latent = special.ndtri(accuracy) * deviation + hard + taste[name] + rng.normal(0, spread)
      correct = latent + rng.normal(0, 0.5, examples) > 0
      found.append(record(name, seed, correct, added, flops, rate, steps, rng))
  return found


def record(name, seed, correct, added, flops, rate, steps, rng):
  trainable = added + HEAD
  loss = (
    0.69 * np.exp(-np.arange(steps) / (60 + 4 * len(name))) + 0.5 - 0.3 * correct.mean() + rng.normal(0, 0.03, steps)
  )
  made = {
    "run": f"{name}/seed-{seed}",
    "row": name,
    "seed": seed,
    "stage": "final",
    "method": {"name": name},
    "config": {"method": {"name": name}, "data": {"train_examples": 0}, "seed": seed},
    "config_hash": f"{zlib.crc32(f'{name}{seed}'.encode()):012x}",
    "metric": "accuracy",
    "metrics": {"test": {"accuracy": float(correct.mean()), "loss": float(0.9 - 0.5 * correct.mean())}},
    "metrics_spec": plain(SPECS),
    "scores": {"test": pack_scores({"correct": correct}, ACCURACY)},
    "parameters": {
      "trainable": trainable,
      "adapter": added,
      "head": HEAD,
      "total": TOTAL if name == "full" else TOTAL + added,
      "percent": 100 * trainable / TOTAL,
    },
    "bytes": {
      "weights": 4 * TOTAL,
      "gradients": 4 * trainable,
      "optimizer": 8 * trainable,
      "adapter_file": 4 * trainable + 1200,
    },
    "compiled": {
      shape: {"flops": round(size * flops), "temp_bytes": round(size / 120 * (0.3 + 0.7 * flops))}
      for shape, size in (("32x24", 1.6e10), ("32x48", 3.1e10))
    },
    "step_seconds": 0.24 * flops + 0.02 + float(rng.normal(0, 0.004)),
    "train_seconds": 120.0 * flops + float(rng.normal(0, 3)),
    "steps": steps,
    "learning_rate": rate,
    "curve": records.thin(zip(range(steps), loss)),
  }
  return records.Record.from_json(made)


def seconds(methods=METHODS, rounds=20):
  rng = np.random.default_rng(1)
  noise = np.exp(rng.normal(0, 0.06, rounds))
  return {
    name: list((0.24 * flops + 0.02) * noise * np.exp(rng.normal(0, 0.02, rounds)))
    for name, (_, _, flops, _) in methods.items()
  }


def summary_of(*names, flops=None):
  """A summary of rows that have a name and, if given, the FLOPs of a step."""
  cost = flops or {}
  row = {"method": {}, "runs": (), "seeds": (0,), "estimate": 0.5, "parameters": records.Parameters(trainable=1)}
  held = analysis.StepBytes(weights=1, gradients=1, optimizer=1, adapter_file=1)
  rows = tuple(analysis.Row(row=name, bytes=held, flops_per_step=cost.get(name), **row) for name in names)
  return analysis.Summary(metric="accuracy", metrics_spec=SPECS, reference="full", rows=rows)


def measured(row, name, seed=0, **found):
  """A record that holds nothing but what a dimension measured."""
  run = {"run": f"{row}/seed-{seed}", "row": row, "seed": seed, "metric": "accuracy", "metrics": {}, "steps": 1}
  held = {
    "parameters": {"trainable": 1},
    "bytes": dict.fromkeys(("weights", "gradients", "optimizer", "adapter_file"), 1),
  }
  return records.Record.from_json({**run, **held, "metrics_spec": plain(SPECS), "dimensions": {name: found}})
