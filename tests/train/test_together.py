"""Many runs in one program: each ends as it would have ended alone."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from peftjax import config as configs
from peftjax import methods
from peftjax.errors import UserError
from peftjax.masks import flatten
from peftjax.models import pretrained
from peftjax.train import finished, loop, stacked, together
from peftjax.train.checkpoint import Base
from peftjax.train.flops import flops_of
from peftjax.train.rows import read_rows
from peftjax.train.watch import Diverged
from tests.train.test_loop import interrupted

RUNS = (  # fields in which the runs of a program differ
  {"seed": 0, "optim.learning_rate": 2e-2, "method.rank": 2, "method.alpha": 8.0},
  {"seed": 1, "optim.learning_rate": 5e-3, "method.rank": 5, "method.alpha": 3.0},
  {"seed": 0, "optim.learning_rate": 1e-2, "method.rank": 3, "method.alpha": 3.0},
)


def variants(config, **method):
  """Three configs; of methods other than LoRA's kin, ranks stay as they are."""
  made = []
  for fields in RUNS:
    one = copy.deepcopy(config)
    with one.unlocked():
      one.method.update(method)
      for name, value in fields.items():
        section, _, field = name.rpartition(".")
        if section != "method":
          (one[section] if section else one)[field] = value
        elif issubclass(methods.METHODS[one.method.name], methods.LoRA):
          one.method[field] = value
    made.append(one)
  return made


def interrupted_once(at_step):
  """As `interrupted`, by the data of the first run alone: a second signal would end the process at once."""
  resolves = iter([interrupted(at_step)])
  return lambda config: next(resolves, loop.make_run)(config)


def trained(folder):
  return finished.load_model(folder)[2].params


@pytest.mark.parametrize("name", ["lora", "vera", "prompt"])
def test_runs_end_as_they_would_alone(config, tmp_path, name):
  """With dropout, which draws the same numbers where all batches have one length; VeRA with batches of two lengths."""
  two_lengths = name == "vera"
  config.model.dropout = 0.0 if two_lengths else 0.1
  config.data.buckets = config.data.buckets if two_lengths else ()
  config.train.update({"steps": 5, "log_every": 2})
  config.optim.name = "adamw" if name in ("lora", "vera") else "sgd"  # Adam makes much of gradients that are rounding
  fields = {"num_virtual_tokens": 5} if name == "prompt" else {}
  configs = variants(config, name=name, **fields)[: 3 if name == "lora" else 2]
  summaries = together.train_together(configs, [tmp_path / "all" / str(index) for index in range(len(configs))])
  for index, (one, summary) in enumerate(zip(configs, summaries)):
    alone = loop.train(one, tmp_path / "alone" / str(index))
    assert summary["together"] == len(configs) and summary["parameters"] == alone["parameters"]
    assert summary["bytes"] == alone["bytes"] and summary["learning_rates"] == alone["learning_rates"]
    ours, theirs = (flatten(trained(tmp_path / kind / str(index))) for kind in ("all", "alone"))
    assert ours.keys() == theirs.keys()
    for leaf, value in theirs.items():
      np.testing.assert_allclose(ours[leaf], value, rtol=1e-4, atol=2e-6, err_msg=leaf)
    rows, wanted = (read_rows(tmp_path / kind / str(index) / "metrics.jsonl") for kind in ("all", "alone"))
    assert [(row["step"], row.get("split")) for row in rows] == [(row["step"], row.get("split")) for row in wanted]
    for row, other in zip(rows, wanted):
      np.testing.assert_allclose(row["loss"], other["loss"], rtol=2e-5)


def test_killed_and_resumed_as_if_nothing_had_happened(config, tmp_path):
  config.data.buckets = ()
  configs = variants(config, name="lora")
  folders = {kind: [tmp_path / kind / str(index) for index in range(3)] for kind in ("whole", "parts")}
  together.train_together(configs, folders["whole"])
  with pytest.raises(SystemExit) as caught:
    together.train_together(configs, folders["parts"], interrupted_once(7))
  assert caught.value.code == 143
  together.train_together(configs, folders["parts"])
  for whole, parts in zip(*folders.values()):
    for name in ("metrics.jsonl", "predictions-validation.npz", "config.json"):
      assert (parts / name).read_bytes() == (whole / name).read_bytes()
    jax.tree.map(np.testing.assert_array_equal, trained(parts), trained(whole))


@pytest.mark.slow
def test_on_a_mesh_as_on_one_device(config, tmp_path):
  """Leaves of all runs are split as one run's are; batches over data and fsdp."""
  config.data.buckets = ()
  config.model.dropout = 0.0
  config.optim.name = "sgd"
  config.train.update({"steps": 4, "log_every": 1})
  configs = variants(config, name="lora")[:2]
  summaries = together.train_together(configs, [tmp_path / "one" / str(index) for index in range(2)])
  for one in configs:
    one.mesh.update({"data": 2, "fsdp": 4})
  program = f"""
from ml_collections import ConfigDict
from peftjax.parallel import sharding
from peftjax.train import together
sharding.SMALLEST = 16
configs = [ConfigDict(fields) for fields in {[one.to_dict() for one in configs]!r}]
together.train_together(configs, [{str(tmp_path)!r} + "/mesh/" + str(index) for index in range(2)])
"""
  flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True, check=False, env={**os.environ, **flags}
  )
  assert done.returncode == 0, done.stderr[-3000:]
  for index, summary in enumerate(summaries):
    rows, wanted = (read_rows(tmp_path / kind / str(index) / "metrics.jsonl") for kind in ("mesh", "one"))
    np.testing.assert_allclose([row["loss"] for row in rows], [row["loss"] for row in wanted], rtol=2e-5)
    assert summary["together"] == 2 and len(rows) == 5


def test_one_of_them_goes_on_alone(config, tmp_path):
  """Its folder is that of an ordinary run: what was saved together is read by `train`."""
  config.data.buckets = ()
  configs = variants(config, name="lora")
  folders = [tmp_path / str(index) for index in range(3)]
  with pytest.raises(SystemExit):
    together.train_together(configs, folders, interrupted_once(7))
  summary = loop.train(configs[1], folders[1])
  assert summary["step"] == 12 and [row["step"] for row in read_rows(folders[1] / "metrics.jsonl")][:2] == [3, 6]


def test_one_that_diverges_does_not_end_the_others(config, tmp_path):
  config.data.buckets = ()
  configs = variants(config, name="lora")
  for one in configs:
    one.optim.update({"warmup": 0.0, "weight_decay": 0.0})
  configs[1].optim.learning_rate = 1e30
  folders = [tmp_path / str(index) for index in range(3)]
  good, bad, other = together.train_together(configs, folders)
  assert isinstance(bad, Diverged) and "step 2" in str(bad)
  assert good["step"] == other["step"] == 12 and not (folders[1] / "summary.json").exists()
  assert (folders[1] / together.DIVERGED).read_text().strip() == str(bad)
  assert together.train_together([configs[0], configs[2]], [folders[0], folders[2]]) == [good, other]


def test_the_base_is_held_once_and_the_cost_is_that_of_the_runs(config, tmp_path):
  """Sixteen LoRA runs: FLOPs and temporary bytes at most 1.05 times those of sixteen steps."""
  config.data.buckets = ()
  config.model.dropout = 0.0
  config.train.update({"steps": 1, "predictions": False})
  configs = []
  for seed in range(16):
    configs.append(copy.deepcopy(config))
    configs[-1].seed = seed
  program = stacked.Stacked.of(loop.make_run(each) for each in configs)
  assert not program.own and len(program.shared) > 20
  one = loop.make_run(configs[0])
  batch = next(one.loaders.train)
  many = {name: np.stack([array] * 16) for name, array in batch.items()}
  costs = []
  for step, state, frozen, given in (
    (one.step(), one.start(), one.frozen, batch),
    (program.step(), program.start(), program.frozen, many),
  ):
    traced = jax.jit(step, donate_argnums=0).trace(state, frozen, given)
    costs.append((flops_of(traced.jaxpr), traced.lower().compile().memory_analysis()))
  (flops, memory), (all_flops, all_memory) = costs
  assert all_flops <= 1.05 * 16 * flops
  assert all_memory.temp_size_in_bytes <= 1.05 * 16 * memory.temp_size_in_bytes
  base = sum(leaf.nbytes for leaf in program.shared.values())
  rest = memory.argument_size_in_bytes - base
  assert all_memory.argument_size_in_bytes - base == pytest.approx(16 * rest, rel=0.02)
  summaries = together.train_together(configs[:2], [tmp_path / "a", tmp_path / "b"])
  held = json.loads((tmp_path / "a" / "compiled.json").read_text())["8x16"]
  assert held["flops"] == pytest.approx(flops, rel=0.02) and held == summaries[0]["compiled"][0] | {}
  assert held["argument_bytes"] == pytest.approx(memory.argument_size_in_bytes, rel=0.02)


@pytest.mark.parametrize("quantize", ["", "nf4"])
def test_the_base_is_read_once(config, monkeypatch, quantize):
  config.model.update({"quantize": quantize, "quantize_block": 12, "quantize_exclude": ("*output.dense",)})
  configs, read = variants(config, name="lora"), []
  real = pretrained._read_into
  monkeypatch.setattr(
    pretrained, "_read_into", lambda target, name, *rest: (read.append(name), real(target, name, *rest))
  )
  with pretrained.reading_once():
    runs = [loop.make_run(each) for each in configs]
  assert len(read) == len(set(read)) > 20
  monkeypatch.undo()
  for each, one in zip(configs, runs):
    alone = loop.make_run(each)
    jax.tree.map(np.testing.assert_array_equal, one.model.params, alone.model.params)
    assert one.model.quantization_errors == alone.model.quantization_errors


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"method": {"dropout": 0.5}}, r"runs 0 and 1 do not fit in one program: method\.dropout is 0\.0 and 0\.5"),
    ({"train": {"steps": 9}}, "the number of updates is 12 and 9"),
    ({"optim": {"weight_decay": 0.5}}, r"optim\.weight_decay is 0\.01 and 0\.5"),
    ({"optim": {"name": "adafactor"}, "method": {"rank": 3}}, r"optim\.name is adamw and adafactor"),
  ],
)
def test_runs_that_do_not_fit(config, tmp_path, change, message):
  other = copy.deepcopy(config)
  with other.unlocked():
    for section, fields in change.items():
      other[section].update(fields)
  with pytest.raises(UserError, match=message):
    together.train_together([config, other], [tmp_path / "a", tmp_path / "b"])


def test_a_base_that_each_run_draws_says_so():
  runs = [
    SimpleNamespace(base=Base("nets:net", digest * 8), config=configs.default(), total_steps=3)
    for digest in ("12345678", "9abcdef0")
  ]
  said = r"has other values in each \(hashes 12345678 and 9abcdef0\), .* draw them from a key that all runs share, or"
  with pytest.raises(stacked.DoNotFit, match=said):
    stacked._check_alike(runs[0], runs[1], 1)
  runs[1].config.model.init = "random"
  with pytest.raises(stacked.DoNotFit, match="leave out model.init=random, or train"):
    stacked._check_alike(runs[0], runs[1], 1)


def test_widths_need_an_optimizer_of_single_elements(config, tmp_path):
  config.optim.name = "adafactor"
  with pytest.raises(UserError, match="optim.name='adafactor'; use adamw"):
    together.train_together(variants(config, name="lora"), [tmp_path / str(index) for index in range(3)])


def test_folders_differ(config, tmp_path):
  with pytest.raises(UserError, match="2 runs need as many different folders, got 2"):
    together.train_together([config, config], [tmp_path / "a", tmp_path / "a"])
