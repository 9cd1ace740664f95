"""One resolution of a config: `inspect` and `plan` see the task, the labels and the head that `train` trains."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import pytest

import peftjax
from peftjax import config as configs
from peftjax import methods
from peftjax.config import default
from peftjax.errors import UserError
from peftjax.train import assemble, folder, inspection, loop, plan
from peftjax.train.run import optimizer_of
from tests.data.language_folders import LLAMA, language_folder, reversal_data
from tests.data.tiny import jsonl
from tests.train.conftest import write_model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
  folder = tmp_path_factory.mktemp("models")
  return {
    "bert": write_model(folder / "bert" / "model"),
    "llama": language_folder(folder / "llama", LLAMA),
  }


@pytest.fixture
def data(tmp_path, monkeypatch):
  monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path / "cache"))
  rows = {
    "three": [{"text": f"a film {index}", "label": "abc"[index % 3]} for index in range(12)],
    "numbers": [{"text": f"a film {index}", "label": index / 7} for index in range(12)],
    "several": [{"text": f"a film {index}", "labels": ["a", "b", "c", "d"][: index % 4 + 1]} for index in range(12)],
    "tags": [{"tokens": ["a", "film"], "tags": ["O", "B-X"]} for _ in range(12)],
    "texts": [{"text": f"a film {index}"} for index in range(12)],
  }
  found = {name: f"jsonl:{jsonl(tmp_path / name / 'train.jsonl', one).parent}" for name, one in rows.items()}
  return found | {"prompts": reversal_data(tmp_path / "prompts")}


def config_of(model, name, *overrides):
  given = (f"model.path={model}", "model.init=random", f"data.name={name}", "data.max_length=16", "train.batch_size=4")
  return configs.load("", (*given, *overrides))


@pytest.mark.parametrize(
  ("model", "name", "task", "labels"),
  [
    ("bert", "three", "text_classification", 3),
    ("bert", "numbers", "text_classification", 1),
    ("bert", "several", "text_classification", 4),
    ("bert", "tags", "token_classification", 2),
    ("llama", "three", "text_classification", 3),
    ("llama", "texts", "causal_lm", 0),
    ("llama", "prompts", "causal_lm", 0),
  ],
)
def test_inspect_and_plan_mean_what_train_trains(models, data, model, name, task, labels):
  config = config_of(models[model], data[name])
  run = loop.make_run(config)
  counts = inspection.inspect(config)
  assert counts | {"notes": []} == inspection.report(run.model) | {"notes": []}
  setting = assemble.setting(config)
  assert (setting.task.name, setting.task.num_labels) == (run.task.name, run.task.num_labels) == (task, labels)
  assert setting.task.label_names == run.task.label_names
  batch = next(run.loaders.train)
  spec = setting.inputs().training().batch_spec(4)
  assert {name: str(one.dtype) for name, one in spec.items()} == {name: str(one.dtype) for name, one in batch.items()}
  assert {name: one.ndim for name, one in batch.items()} == {name: len(one.shape) for name, one in spec.items()}
  planned = plan.plan(config, arguments=True)
  assert planned["arguments_by_kind"]["trainable"] == 4 * counts["trainable"]


def test_data_that_is_not_here_is_told_and_config_json_speaks(models, data, tmp_path):
  config = config_of(models["llama"], "jsonl:/not/here/at/all")
  found = inspection.inspect(config)
  assert found["head"] == 0 and "no file '/not/here/at/all'" in found["notes"][0]
  with pytest.raises(UserError, match="no file '/not/here/at/all'"):
    assemble.setting(config, trains=True)
  labelled = tmp_path / "labelled"
  labelled.mkdir()
  saved = json.loads((models["bert"] / "config.json").read_text())
  names = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "bad", "1": "fair", "2": "good"}}
  (labelled / "config.json").write_text(json.dumps(saved | names))
  setting = assemble.setting(config_of(labelled, "jsonl:/not/here/at/all"))
  assert setting.task.label_names == ("bad", "fair", "good")


def test_a_head_of_the_same_labels_in_another_order(models, data, tmp_path):
  """Training would go on, and scores be counted, as if the head's first label were the data's first."""
  saved = json.loads((models["bert"] / "config.json").read_text()) | {
    "architectures": ["BertForSequenceClassification"]
  }
  config = config_of(tmp_path, data["three"], "model.init=pretrained")

  def written(*names):
    labels = {str(index): name for index, name in enumerate(names)}
    (tmp_path / "config.json").write_text(json.dumps(saved | {"id2label": labels}))
    return config

  said = (
    "model.path: its head's label 0 is 'b', and the data's is 'a': the same labels in another order; .*new_head=True"
  )
  with pytest.raises(UserError, match=said):
    assemble.setting(written("b", "a", "c"))
  for changed in ("model.new_head=True", "model.init=random"):
    assemble.setting(config_of(tmp_path, data["three"], "model.init=pretrained", changed))
  for names in (("a", "b", "c"), ("LABEL_0", "LABEL_1", "LABEL_2"), ("x", "y", "z")):
    assert assemble.setting(written(*names)).task.label_names == ("a", "b", "c")
  adapter = tmp_path / "adapter"
  adapter.mkdir()
  (adapter / "adapter_config.json").write_text("{}")
  (adapter / "peftjax.json").write_text(json.dumps({"id2label": {"0": "a", "1": "c", "2": "b"}}))
  with pytest.raises(UserError, match="model.adapter: its head's label 1 is 'c', and the data's is 'b'"):
    assemble.setting(config_of(tmp_path, data["three"], "model.init=pretrained", f"model.adapter={adapter}"))


def test_a_config_that_names_no_data(models):
  bare = assemble.setting(config_of(models["bert"], ""))
  assert bare.task is None and not bare.header.name
  trained = assemble.setting(config_of(models["bert"], ""), trains=True)
  assert trained.header.name == configs.DEFAULT_DATA and trained.task.num_labels == 2
  named = assemble.setting(config_of(models["bert"], configs.DEFAULT_DATA))
  assert named.task.label_names == trained.task.label_names
  assert assemble.setting(default()).task.num_labels == 2  # the default run has both
  assert assemble.setting(config_of(models["bert"], configs.DEFAULT_DATA, "task.name=none")).task is None


def test_the_default_data_by_its_name_is_the_same_run(tmp_path):
  config = default()
  folder.write_config(tmp_path, config, {"task": "text_classification", "label_names": ["bad", "good"]})
  config.data.name = configs.DEFAULT_DATA
  assert folder.differing_fields(tmp_path, config) == []
  config.data.name = "packaged:banking77"
  assert folder.differing_fields(tmp_path, config) == ["data.name: 'packaged:movie_reviews' -> 'packaged:banking77'"]


def test_labels_by_the_config_alone(models):
  asked = assemble.setting(config_of(models["bert"], "", "task.name=text_classification", "task.num_labels=5"))
  assert asked.task.label_names == tuple(f"LABEL_{index}" for index in range(5))
  assert asked.model(abstract=True).params["classifier"]["bias"].shape == (5,)
  assert asked.inputs().batch_spec(4)["labels"].shape == (4,)


@pytest.mark.parametrize(
  ("model", "name", "override", "message"),
  [
    ("bert", "texts", "seed=0", "task.name: neither 'jsonl:.*' nor '.*' names a task; set it"),
    ("bert", "prompts", "seed=0", "has a source and a target, and '.*' writes no text"),
    ("bert", "three", "task.name=token_classification", "holds data for 'text_classification'"),
    ("bert", "three", "task.num_labels=2", "has 3 labels: a, b, c"),
    ("bert", "three", "task.name=causal_lm", "bert models have no causal_lm head"),
    ("bert", "three", "task.class_wieghts=(1,1,1)", "did you mean 'class_weights'"),
  ],
)
def test_every_verb_says_the_same_of_a_mistake(models, data, model, name, override, message):
  config = config_of(models[model], data[name], override)
  with pytest.raises(UserError, match=message):
    loop.make_run(config)
  if "set it" in message:  # a bare encoder may be looked at
    assert assemble.setting(config).task is None
    message = "is a bare encoder; set the task"
  else:
    with pytest.raises(UserError, match=message):
      inspection.inspect(config)
  with pytest.raises(UserError, match=message):
    plan.plan(config, arguments=True)


def test_inspect_and_plan_read_the_adapter_that_train_goes_on_from(models, data, tmp_path):
  given = ("model.init=pretrained", f"model.adapter={tmp_path / 'adapter'}", "method.rank=2")
  config = config_of(models["bert"], data["three"], *given)
  for verb in (inspection.inspect, plan.plan):
    with pytest.raises(UserError, match="no adapter folder .*adapter"):
      verb(config)
  (tmp_path / "adapter").mkdir()
  with pytest.raises(UserError, match="has no adapter_config.json; expected a PEFT adapter folder"):
    inspection.inspect(config)
  base = peftjax.load(models["bert"], task="text_classification", label_names=("a", "b", "c"))
  base.add(peftjax.methods.LoRA(rank=3), jax.random.key(0)).save_adapter(tmp_path / "adapter")
  run, counts = loop.make_run(config), inspection.inspect(config)
  assert counts | {"notes": []} == inspection.report(run.model) | {"notes": []}
  assert {row["shape"][-1] for row in counts["leaves"] if row["path"].endswith("lora_a")} == {3}
  planned = plan.plan(config, arguments=True)
  assert planned["arguments_by_kind"]["trainable"] == 4 * counts["trainable"]


def test_whole_numbers_have_no_gradient():
  params = {"kernel": jnp.ones((2, 3)), "steps": jnp.arange(4)}
  net = peftjax.wrap(lambda p, x: x @ p["kernel"] + p["steps"].sum(), params, example_inputs={"x": jnp.ones((1, 2))})
  config = default()
  config.method.name = "full"
  with pytest.raises(UserError, match="method 'full' trains 'steps', of int32; .* should say 'frozen' of this leaf"):
    optimizer_of(config, net.add(methods.Full()), 4)
