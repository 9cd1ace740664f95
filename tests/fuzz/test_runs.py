"""A run's folder and the command line on inputs that nobody meant them for: configs, summaries, rows, costs, the JSON
and the manifest of checkpoints, results of studies, the settings of methods, verbs and flags.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st

from peftjax import cli, methods, optim
from peftjax import config as configs
from peftjax.compare import records
from peftjax.config.table import ALIASES, FIELDS
from peftjax.errors import UserError
from peftjax.methods import METHODS
from peftjax.train import checkpoint, compiling, faults, folder, manifest, rows
from tests.compare import synthetic
from tests.fuzz.test_text import VALUES, changed, mangled

COUNTS = [pytest.param(150, id="quick"), pytest.param(12_000, id="all", marks=pytest.mark.slow)]
RESOLVED = {"task": "text_classification", "label_names": ["a", "b"], "total_steps": 3}
SUMMARY = {
  "step": 3,
  "metrics": {"validation": {"loss": 0.5}},
  "train": {"loss": 1.0},
  "main_metric": "accuracy",
  "config": "",
}
COST = {"shape": "8x16", "compile_seconds": 1.0, "flops": 3, "xla_flops": 4.0, "temp_bytes": 5, "argument_bytes": 6}


@st.composite
def json_bytes(draw: st.DrawFn, good: Any) -> bytes:
  """A JSON text near a good one, or one whose bytes are spoiled."""
  value = draw(changed(good))
  content = json.dumps(value, default=str).encode(errors="surrogatepass")
  return draw(mangled(content)) if draw(st.integers(0, 2)) == 0 else content


def saved_config() -> dict[str, Any]:
  return {**json.loads(json.dumps(configs.default().to_dict(), default=list)), "resolved": RESOLVED}


@pytest.mark.parametrize("count", COUNTS)
def test_config_json_of_a_run(fuzz, tmp_path, count):
  given = configs.default()
  (tmp_path / "checkpoints" / "3").mkdir(parents=True)

  def act(content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    config, resolved = folder.read_config(tmp_path)
    assert isinstance(resolved.task, str) and config.train.batch_size >= 1
    folder.check_same_run(tmp_path, given)

  counts = fuzz("config.json of runs", json_bytes(saved_config()), act, count)
  assert counts["refused"] > 0


@pytest.mark.parametrize("count", COUNTS)
def test_summary_json(fuzz, tmp_path, count):
  (tmp_path / "config.json").write_text(json.dumps(saved_config()))
  (tmp_path / "checkpoints" / "3").mkdir(parents=True)

  def act(content: bytes) -> None:
    (tmp_path / "summary.json").write_bytes(content)
    found = folder.finished_summary(tmp_path)
    assert found is not None and found["step"] == 3

  fuzz("summary.json", json_bytes(SUMMARY), act, count)


@pytest.mark.parametrize("count", COUNTS)
def test_rows_of_metrics(fuzz, tmp_path, count):
  good = [{"step": 1, "loss": 0.5}, {"step": 2, "split": "validation", "accuracy": None}, {"step": 2, "skipped": True}]
  path = tmp_path / "metrics.jsonl"

  @st.composite
  def lines(draw: st.DrawFn) -> bytes:
    each = [json.dumps(draw(changed(row)), default=str) for row in good]
    return draw(mangled("".join(f"{one}\n" for one in each).encode(errors="surrogatepass")))

  def act(content: bytes) -> None:
    path.write_bytes(content)
    file = rows.RowFile(path, 2)
    file.write({"step": 3, "loss": float("nan")})
    file.close()
    assert rows.read_rows(path)[-1] == {"step": 3, "loss": None}

  fuzz("metrics.jsonl", lines(), act, count)


@pytest.mark.parametrize("count", COUNTS)
def test_costs(fuzz, tmp_path, count):
  def act(content: bytes) -> None:
    (tmp_path / "compiled.json").write_bytes(content)
    compiling.Costs(tmp_path, lambda _: None)

  fuzz("compiled.json", json_bytes({"8x16": COST, "8x8": COST}), act, count)


@pytest.mark.parametrize("count", COUNTS)
def test_results_of_a_study(fuzz, tmp_path, count):
  """As `guide` reads those of others."""
  (made,) = synthetic.results({"lora": synthetic.METHODS["lora"]}, seeds=1, examples=3, steps=2)
  good = json.loads(json.dumps(made.to_json()))
  path = tmp_path / "results.jsonl"

  def act(content: bytes) -> None:
    path.write_bytes(content.replace(b"\n", b" ") + b"\n")
    records.read_results(path)

  found = fuzz("results of studies", json_bytes(good) | st.just(json.dumps(good).encode()), act, count)
  assert found["refused"] > 0 and found["ok"] > 0


def damaged_or(act: Callable[[Any], Any]) -> Callable[[Any], Any]:
  """What the reader of checkpoints does with an error: the checkpoint is damaged."""

  def told(value: Any) -> None:
    try:
      act(value)
    except Exception as error:
      raise UserError(f"damaged: {faults.first_line(error)}") from None

  return told


@pytest.mark.parametrize("count", COUNTS)
def test_meta_of_checkpoints(fuzz, count):
  """What is read of it is compared with what the run expects, and never makes anything by itself."""
  array = {"shape": [2, 3], "dtype": "float32", "fingerprint": "0" * 16}
  good = {"base": {"path": "m", "hash": "a" * 64}, "arrays": {"a.kernel": array}, "position": {"step": 1}}
  like = {"a.kernel": checkpoint.jax.ShapeDtypeStruct((2, 3), checkpoint.jax.numpy.float32)}

  def act(meta: Any) -> None:
    checkpoint._digest(meta)
    checkpoint._check_base(meta, checkpoint.Base("m", "a" * 64))
    checkpoint._check_arrays(meta["arrays"], like)

  fuzz("meta of checkpoints", changed(good), damaged_or(act), count)


@pytest.mark.parametrize("count", COUNTS)
def test_manifests(fuzz, tmp_path, count):
  """Also those whose own digest is right."""
  (tmp_path / "meta").mkdir()
  (tmp_path / "meta" / "metadata").write_bytes(b"{}")
  manifest.write(tmp_path)
  good = (tmp_path / "manifest").read_bytes()

  def act(given: tuple[bytes, bool]) -> None:
    content, fits = given
    body = content.partition(b"\n")[2]
    (tmp_path / "manifest").write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body if fits else content)
    try:
      manifest.verify(tmp_path)
    except ValueError as error:
      raise UserError(str(error)) from None

  fuzz("manifests", st.tuples(mangled(good), st.booleans()), act, count)


@pytest.mark.parametrize("count", COUNTS)
def test_settings_of_methods(fuzz, count):
  names = sorted({field for method in METHODS.values() for field in getattr(method, "__dataclass_fields__")})

  @st.composite
  def settings(draw: st.DrawFn) -> dict[str, Any]:
    fields = {draw(st.sampled_from([*names, *ALIASES, "x"])): draw(VALUES) for _ in range(draw(st.integers(0, 3)))}
    return {"name": draw(st.sampled_from([*METHODS, "LoRA", "json:loads", ":", "a:b", "", 3])), **fields}

  def act(given: dict[str, Any]) -> None:
    methods.settings.check(methods.build(given))

  fuzz("settings of methods", settings(), act, count)


@pytest.mark.parametrize("count", COUNTS)
def test_groups_of_the_optimizer(fuzz, count):
  @st.composite
  def groups(draw: st.DrawFn) -> dict[str, Any]:
    fields = st.sampled_from([*optim.GROUP_FIELDS, "lr", ""])
    return {
      draw(st.sampled_from(["head", "adapter", "haed"])): draw(st.dictionaries(fields, VALUES, max_size=2) | VALUES)
    }

  def act(given: dict[str, Any]) -> None:
    config = configs.default().optim
    try:
      with config.unlocked():
        config.groups = given
    except ValueError:  # a ConfigDict refuses keys with dots where a config file sets them
      return
    for one in optim.group_settings(config, {"head", "adapter"}, learning_rate=1e-3).values():
      optim.make_schedule(one.schedule, 10, one.warmup)

  fuzz("groups of the optimizer", groups(), act, count)


WORDS = st.one_of(
  st.sampled_from(
    [*cli.VERBS, "--json", "--workdir", "--workdir=", "--config", "--config=", "--config=x.py:1", "--help=1"]
  ),
  st.sampled_from(
    ["--workdir=/nowhere/run", "--out=x", "--format=peft", "--trust=a:b,", "-x", "--", "", "=", "²", "\udcff"]
  ),
  st.builds("--config.{}={}".format, st.sampled_from(sorted(FIELDS)), st.text(max_size=5)),
  st.builds("--config.{}".format, st.text(max_size=8)),
  st.text(max_size=6),
)


@pytest.mark.parametrize("count", COUNTS)
def test_the_command_line(fuzz, count, monkeypatch, capsys):
  """Up to what a verb makes of its config; runs, models and data have tests of their own."""

  def stopped(parsed: Any, overrides: list[str]) -> int:
    cli._config(parsed, overrides)
    return 0

  monkeypatch.setattr(cli, "_RUN", dict.fromkeys(cli.VERBS, stopped))
  words = st.builds(lambda verb, rest: [*([verb] if verb else []), *rest], st.sampled_from([*cli.VERBS, ""]),
                    st.lists(WORDS, max_size=4))  # fmt: skip
  fuzz("command lines", words, cli._dispatch, count)
  capsys.readouterr()
