"""A folder of several models, in diffusers' layout, through the verbs: inspected, planned, trained, exported."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax import UserError, cli, masks, methods
from peftjax.composite import component, compose
from peftjax.loading import from_config, initialise, load
from tests.methods import tiny
from tests.train import composite_parts as parts

HERE = "tests.train.composite_parts"
OWN = f"{HERE}:TEXT,{HERE}:UNET"
INDEX = {"_class_name": "TinyPipeline", "text": ["transformers", "Text"], "unet": ["diffusers", "UNet"],
         "scheduler": ["diffusers", "DDIMScheduler"], "checker": [None, None]}  # fmt: skip
INPUTS = {
  "text": {"words": jnp.ones((2, parts.WORDS))},
  "unet": {"sample": jnp.linspace(-1, 1, 2 * 6 * 6 * 3).reshape(2, 6, 6, 3)},
}


def write(folder):
  folder.mkdir()
  for name, kind, family in (("text", "model_type", parts.TEXT), ("unet", "_class_name", parts.UNET)):
    model = from_config({kind: family.model_types[0], "in_channels": 3}, family=family)
    model = initialise(model, jax.random.key(len(name)))
    tiny.replaced(model, tiny.noise_on(masks.flatten(model.params), scale=0.1)).save(folder / name)
  (folder / "scheduler").mkdir()
  (folder / "scheduler" / "scheduler_config.json").write_text('{"beta_start": 0.1}')
  (folder / "scheduler" / "weights.bin").write_bytes(b"no")
  (folder / "model_index.json").write_text(json.dumps(INDEX))
  return folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path / "cache"))
  return write(tmp_path / "pipe")


def run(capsys, verb, *flags):
  code = cli.main([verb, "--json", *flags])
  out = capsys.readouterr()
  assert code == 0, out.err
  return json.loads(out.out.strip().splitlines()[-1])


def flags_of(folder, *more):
  given = {"model.path": folder, "model.family": OWN, "data.name": f"{HERE}:pairs", "task.name": f"{HERE}:Matching",
           "method.name": "lora", "method.rank": 2, "method.targets": "('unet.*',)", "train.steps": 3,
           "train.batch_size": 8, "train.eval_batch_size": 8, "train.tensorboard": False}  # fmt: skip
  return [*(f"--config.{name}={value}" for name, value in given.items()), *more]


def test_every_verb_reads_the_folder(folder, tmp_path, capsys):
  flags = flags_of(folder)
  table = run(capsys, "inspect", *flags)
  trained = {leaf["path"] for leaf in table["leaves"] if leaf["group"] != "frozen"}
  assert trained == {f"unet.{module}.lora_{x}" for module in ("conv_in", "out") for x in "ab"}
  assert table["buffers"] == 16
  assert run(capsys, "plan", *flags)["fits"]
  summary = run(capsys, "train", *flags, f"--workdir={tmp_path / 'run'}")
  assert summary["parameters"]["trainable"] == table["trainable"]
  scored = run(
    capsys, "eval", f"--workdir={tmp_path / 'run'}", f"--trust={OWN},{HERE}:pairs,{HERE}:Matching,{HERE}:PairInput"
  )
  assert scored["step"] == 3
  for form, out in (("peft", "adapter"), ("merged", "merged")):
    result = run(capsys, "export", f"--workdir={tmp_path / 'run'}", f"--format={form}", f"--out={tmp_path / out}")
    assert result["bytes"] > 0
  assert {path.name for path in (tmp_path / "adapter").iterdir()} == {"unet"}
  base, adapted, merged = (
    load(path, adapter, family=OWN)(**INPUTS)["unet"]["embedding"]
    for path, adapter in ((folder, None), (folder, tmp_path / "adapter"), (tmp_path / "merged", None))
  )
  np.testing.assert_allclose(adapted, merged, rtol=1e-5, atol=1e-6)
  assert np.abs(adapted - base).max() > 1e-6
  assert json.loads((tmp_path / "merged" / "model_index.json").read_text()) == INDEX
  assert (tmp_path / "merged" / "scheduler" / "scheduler_config.json").is_file()
  assert not (tmp_path / "merged" / "scheduler" / "weights.bin").exists()


@pytest.mark.slow
def test_methods_are_compared_on_it(folder, tmp_path, capsys):
  rows = {"full": {"method": {"name": "patterns", "train": ("unet.*",)}}, "lora": {"method": {"targets": ("unet.*",)}}}
  (tmp_path / "pair_study.py").write_text(
    f"from peftjax.config import default\n\ndef get_config():\n  config = default()\n"
    f"  config.compare.methods = {rows!r}\n  config.compare.seeds = (0,)\n  config.compare.dimensions = ()\n"
    f"  config.compare.baseline = ''\n  config.compare.timing_rounds = 0\n  return config\n"
  )
  flags = [flag for flag in flags_of(folder) if "method." not in flag]
  run(capsys, "compare", f"--config={tmp_path / 'pair_study.py'}", *flags, f"--workdir={tmp_path / 'study'}")
  assert (tmp_path / "study" / "report.html").is_file()


def test_a_component_alone_trains(folder):
  model = load(folder, family=OWN).add(methods.Patterns(train=("unet.*",)))
  groups = masks.flatten(model.labels())
  assert {path.partition(".")[0] for path, group in groups.items() if group != masks.FROZEN} == {"unet"}


def test_components_have_dtypes_of_their_own(folder):
  model = load(folder, family=OWN, component_dtypes={"text": "bfloat16"})
  kinds = {path: leaf.dtype for path, leaf in masks.flatten(model.params).items()}
  assert kinds["text.proj.kernel"] == jnp.bfloat16
  assert kinds["unet.conv_in.kernel"] == jnp.float32
  found = model(**INPUTS)
  np.testing.assert_allclose(
    found["unet"]["embedding"], component(model, "unet")(**INPUTS["unet"])["embedding"], atol=1e-6
  )
  with pytest.raises(UserError, match="no component 'txt'.*'text'"):
    load(folder, family=OWN, component_dtypes={"txt": "bfloat16"})


def test_one_model_under_two_names_is_two(folder):
  one = load(folder / "unet", family=parts.UNET)
  both = compose({"student": one, "teacher": one}).add(methods.Patterns(train=("student.*",)))
  groups = masks.flatten(both.labels())
  assert all(group == masks.FROZEN for path, group in groups.items() if path.startswith("teacher."))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda pipe: (pipe / "unet" / "config.json").write_text('{"_class_name": "VNet"}'), "component 'unet'.*'VNet'"),
    (lambda pipe: (pipe / "model_index.json").write_text(json.dumps({**INDEX, "vae": ["diffusers", "VAE"]})),
     "lists 'vae', and there is no such folder"),
    (lambda pipe: (pipe / "model_index.json").write_text(json.dumps({**INDEX, "unet": ["diffusers", "UNet3D"]})),
     "component 'unet'.*says that it is a UNet3D.*'UNet'"),
    (lambda pipe: (pipe / "unet" / "config.json").write_text('{"_class_name": "UNet", "in_channels": 5}'),
     "component 'unet'.*conv_in.weight.*shape"),
    (lambda pipe: (pipe / "unet" / "model.safetensors").unlink(), "component 'unet'.*no .*safetensors"),
  ],
)  # fmt: skip
def test_what_is_wrong_with_a_component_is_one_line(folder, change, message):
  change(folder)
  with pytest.raises(UserError, match=message):
    load(folder, family=OWN)


def test_a_task_of_one_model_is_refused(folder, capsys):
  code = cli.main(["inspect", *flags_of(folder, "--config.task.name=text_classification", "--config.data.name=")])
  assert code == 2
  assert "several" in capsys.readouterr().err
