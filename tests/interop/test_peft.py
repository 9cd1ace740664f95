"""What of a PEFT adapter folder is refused, and what peftjax.json adds to it."""

from __future__ import annotations

import dataclasses
import json
import re
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import peftjax
from peftjax import UserError, loading, masks, methods
from peftjax.interop import peft, targeting
from peftjax.interop.formats import FORMATS
from peftjax.methods import LoRA
from peftjax.model import Model
from tests.fuzz.harness import REFUSED, outcome_of

CONFIG = {
  "model_type": "bert",
  "architectures": ["BertForSequenceClassification"],
  "vocab_size": 31,
  "hidden_size": 12,
  "num_hidden_layers": 3,
  "num_attention_heads": 3,
  "intermediate_size": 20,
  "max_position_embeddings": 17,
  "num_labels": 4,
}
INPUTS = {"input_ids": np.arange(14).reshape(2, 7) + 1, "attention_mask": np.ones((2, 7), np.int32)}
QUERY = "base_model.model.bert.encoder.layer.1.attention.self.query"


def make(**config: Any) -> Model:
  return loading.initialise(loading.from_config({**CONFIG, **config}), jax.random.key(0))


@pytest.fixture(scope="module")
def base() -> Model:
  return make()


@pytest.fixture(scope="module")
def saved(base: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
  folder = tmp_path_factory.mktemp("adapters") / "lora"
  base.add(LoRA(rank=5, targets=("query",)), jax.random.key(1)).save_adapter(folder)
  return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
  return Path(shutil.copytree(saved, tmp_path / "lora"))


def edit_config(folder: Path, **values: Any) -> None:
  config = json.loads((folder / peft.CONFIG).read_text())
  (folder / peft.CONFIG).write_text(json.dumps({**config, **values}))


def edit_tensors(folder: Path, edit: Callable[[dict[str, np.ndarray]], None]) -> None:
  tensors = load_file(folder / peft.WEIGHTS)
  edit(tensors)
  save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, folder / peft.WEIGHTS)


@pytest.mark.parametrize(
  ("values", "says"),
  [
    ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens=[1, 2] is not supported"),
    ({"layer_replication": [[0, 2]]}, "layer_replication=[[0, 2]] is not supported"),
    ({"use_qalora": True}, "use_qalora=True is not supported; only False is"),
    ({"target_parameters": ["weight"]}, "38 tensors are missing, such as"),
    ({"use_rs_lora": True}, "unknown key 'use_rs_lora' for LORA; did you mean 'use_rslora'"),
    ({"peft_type": "XLORA"}, "peft_type 'XLORA' is not supported; expected one of"),
    ({"peft_type": None}, "no peft_type; expected one of"),
    ({"task_type": "TOKEN_CLS"}, "task_type is TOKEN_CLS, and BertForSequenceClassification is for text_class"),
    ({"target_modules": ["q_proj"]}, "target_modules ['q_proj'] names no module of this model; known:"),
    ({"target_modules": ["qeury"]}, "did you mean 'query'?"),
    ({"modules_to_save": ["classifer"]}, "modules_to_save: no module 'classifer'; did you mean 'classifier'?"),
    ({"init_lora_weights": "corda"}, "changes the base in a way that its name does not fix"),
    ({"init_lora_weights": "pissa_niter_16"}, "changes the base in a way that its name does not fix"),
    ({"init_lora_weights": "gausian"}, "init_lora_weights 'gausian' is not supported; did you mean 'gaussian'?"),
    ({"r": 4}, "lora_A.weight' has shape (5, 12), and this model needs (4, 12)"),
    ({"bias": "lora_only"}, "3 tensors are missing, such as"),
    ({"target_modules": ["query", "key"]}, "6 tensors are missing, such as"),
    ({"layers_to_transform": [0]}, "4 tensors are not implied by adapter_config.json, such as"),
  ],
)
def test_a_config_that_does_not_fit_is_one_line(values: dict[str, Any], says: str, base: Model, folder: Path) -> None:
  edit_config(folder, **values)
  with pytest.raises(UserError) as error:
    peft.load(base, folder)
  assert says in str(error.value)
  assert str(folder) in str(error.value)


@pytest.mark.parametrize(
  ("edit", "says"),
  [
    (lambda tensors: tensors.pop(f"{QUERY}.lora_B.weight"), f"1 tensors are missing, such as '{QUERY}.lora_B.weight'"),
    (lambda tensors: tensors.update({f"{QUERY}.lora_C.weight": np.zeros(2)}), f"such as '{QUERY}.lora_C.weight'"),
    (
      lambda tensors: tensors.update({f"{QUERY}.lora_A.weight": tensors[f"{QUERY}.lora_A.weight"].T}),
      "has shape (12, 5), and this model needs (5, 12); it is transposed",
    ),
    (
      lambda tensors: tensors.update({"base_model.model.classifier.weight": np.zeros((7, 12), np.float32)}),
      "has shape (7, 12), and this model needs (4, 12); the adapter is for another base model",
    ),
  ],
)
def test_tensors_that_do_not_fit_are_one_line(edit: Any, says: str, base: Model, folder: Path) -> None:
  edit_tensors(folder, edit)
  with pytest.raises(UserError) as error:
    peft.load(base, folder)
  assert says in str(error.value)


def test_another_base_is_refused(saved: Path) -> None:
  with pytest.raises(
    UserError, match=r"has shape \(5, 12\), and this model needs \(5, 15\); the adapter is for another"
  ):
    peft.load(make(hidden_size=15), saved)
  with pytest.raises(UserError, match=r"2 tensors are not implied|2 tensors are missing"):
    peft.load(make(num_hidden_layers=2), saved)


def test_folders_that_are_no_adapters(base: Model, folder: Path, tmp_path: Path) -> None:
  with pytest.raises(UserError, match=r"no adapter folder .*/lor'; did you mean 'lora'\?"):
    peft.load(base, tmp_path / "lor")
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match="empty has no adapter_config.json; expected a PEFT adapter folder"):
    peft.load(base, tmp_path / "empty")
  with pytest.raises(UserError, match="it has adapters named empty, lora|it has adapters named lora"):
    peft.load(base, tmp_path)
  whole = (folder / peft.WEIGHTS).read_bytes()
  (folder / peft.WEIGHTS).write_bytes(whole[:-9])
  with pytest.raises(UserError, match="is no whole safetensors file"):
    peft.load(base, folder)
  (folder / peft.WEIGHTS).rename(folder / peft.PICKLE)
  with pytest.raises(UserError, match=r"adapter_model\.bin is a pickle, which is never read"):
    peft.load(base, folder)
  (folder / peft.CONFIG).write_text("{")
  with pytest.raises(UserError, match="no JSON"):
    peft.load(base, folder)


def test_a_named_adapter_is_in_a_folder_of_its_name(base: Model, folder: Path) -> None:
  loaded = peft.load(base, folder.parent, name="lora")
  assert [method.name for method in loaded.methods] == ["lora"]


@pytest.mark.parametrize(
  ("method", "says"),
  [
    (methods.BitFit(), "PEFT has no format for 'bitfit'"),
    (methods.Houlsby(bottleneck_dim=3), "PEFT has no format for 'houlsby'"),
    (
      methods.Hybrid(methods=(LoRA(targets=("query",)), methods.IA3())),
      "holds one method, and the model has 'lora', 'ia3'",
    ),
    (methods.IA3(bias="all"), "PEFT's IA3 cannot hold"),
    (
      LoRA(targets=("query", "value"), modules_to_save=("value",)),
      "which PEFT saves whole in modules_to_save; exclude it",
    ),
  ],
)
def test_what_peft_cannot_say_is_refused(method: methods.Method, says: str, base: Model, tmp_path: Path) -> None:
  with pytest.raises(UserError) as error:
    base.add(method).save_adapter(tmp_path / "out")
  assert says in str(error.value)
  assert not (tmp_path / "out").exists()


def test_nothing_to_save(base: Model, tmp_path: Path) -> None:
  with pytest.raises(UserError, match="no adapter to save"):
    base.save_adapter(tmp_path / "out")


def test_settings_that_only_training_needs_come_back(base: Model, tmp_path: Path) -> None:
  method = LoRA(rank=3, targets=("query",), freeze_a=True, lr_ratio=16.0)
  base.add(method).save_adapter(tmp_path / "out")
  loaded = peft.load(base, tmp_path / "out").methods[0]
  assert isinstance(loaded, LoRA)
  assert (loaded.freeze_a, loaded.lr_ratio) == (True, 16.0)
  plain = peft.load(base, tmp_path / "out", inference=True).methods[0]
  assert isinstance(plain, LoRA)
  assert (plain.freeze_a, plain.lr_ratio) == (False, 1.0)


def test_a_base_without_a_head_gets_the_adapters(tmp_path: Path) -> None:
  names = ("red", "green", "blue")
  trained = loading.initialise(loading.from_config(CONFIG, label_names=names), jax.random.key(2))
  bare = loading.from_config({**CONFIG, "architectures": ["BertModel"]})
  encoder = {path.removeprefix("bert."): leaf for path, leaf in masks.flatten(trained.params).items()}
  encoder = {path: leaf for path, leaf in encoder.items() if not path.startswith("classifier")}
  bare.with_params(masks.unflatten(encoder)).save(tmp_path / "base")
  adapted = trained.add(LoRA(rank=2, targets=("query",)), jax.random.key(3))
  adapted.save_adapter(tmp_path / "adapter")
  loaded = peftjax.load(tmp_path / "base", adapter=tmp_path / "adapter")
  assert loaded.architecture == "BertForSequenceClassification"
  assert loaded.hf_config["id2label"] == {"0": "red", "1": "green", "2": "blue"}
  np.testing.assert_allclose(loaded(**INPUTS)["logits"], adapted(**INPUTS)["logits"], rtol=1e-6)


def test_layers_that_differ_are_unrolled(base: Model, tmp_path: Path) -> None:
  method = LoRA(rank=3, targets=("query", "value"), rank_pattern={r"layer\.2\..*query": 5}, layers=(0, 2))
  adapted = base.add(method, jax.random.key(4))
  adapted.save_adapter(tmp_path / "out")
  loaded = peft.load(base, tmp_path / "out")
  assert not loaded.stacks
  for path, leaf in masks.flatten(adapted.params).items():
    np.testing.assert_array_equal(masks.flatten(loaded.params)[path], leaf, err_msg=path)


def test_pissa_is_written_at_twice_the_rank(base: Model, tmp_path: Path) -> None:
  adapted = base.add(LoRA(rank=2, alpha=3.0, init="pissa", targets=("query", "word_embeddings")), jax.random.key(5))
  flat = masks.flatten(adapted.params)
  for path in adapted.adapter_paths():
    if not path.endswith("_init"):
      flat[path] = flat[path] + 0.2 * jax.random.normal(jax.random.key(len(path)), flat[path].shape)
  adapted = adapted.with_params(masks.unflatten(flat))
  adapted.save_adapter(tmp_path / "out")
  loaded = peft.load(base, tmp_path / "out")
  method = loaded.methods[0]
  assert isinstance(method, LoRA)
  assert (method.rank, method.alpha, method.init) == (4, 6.0, "kaiming")
  np.testing.assert_allclose(loaded(**INPUTS)["logits"], adapted(**INPUTS)["logits"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ("config", "name", "targeted"),
  [
    ({"target_modules": ["query"]}, "a.layer.0.query", True),
    ({"target_modules": ["uery"]}, "a.layer.0.query", False),
    ({"target_modules": r".*\.query"}, "a.layer.0.query", True),
    ({"target_modules": ["query"], "layers_to_transform": [1]}, "a.layer.0.query", False),
    ({"target_modules": ["query"], "layers_to_transform": 0}, "a.layer.0.query", True),
    ({"target_modules": ["query"], "layers_to_transform": [0]}, "layer.0.query", False),
    ({"target_modules": ["query"], "layers_to_transform": [0], "layers_pattern": "layer"}, "layer.0.query", True),
    ({"target_modules": ["query"], "layers_to_transform": [0], "layers_pattern": ["h"]}, "a.layer.0.query", False),
    ({"target_modules": ["query"], "exclude_modules": ["layer.0.query"]}, "a.layer.0.query", False),
    ({"target_modules": ["query"], "modules_to_save": ["layer"]}, "a.layer.0.query", False),
  ],
)
def test_modules_are_chosen_as_in_peft(config: dict[str, Any], name: str, targeted: bool) -> None:
  assert targeting.is_targeted(config, name) is targeted


def test_the_methods_settings_are_what_was_saved(base: Model, tmp_path: Path) -> None:
  method = LoRA(rank=3, alpha=5.0, dropout=0.25, targets=("query", "dense"), exclude=("pooler.dense",), rslora=True)
  base.add(method).save_adapter(tmp_path / "out")
  loaded = peft.load(base, tmp_path / "out").methods[0]
  for field in dataclasses.fields(method):
    assert getattr(loaded, field.name) == getattr(method, field.name), field.name


REPARAMETRIZED = [
  methods.Prefix(num_virtual_tokens=3, reparametrize=True, encoder_hidden_size=5),
  methods.PTuning(num_virtual_tokens=3, encoder_hidden_size=5),
  methods.PTuning(num_virtual_tokens=3, encoder_hidden_size=5, encoder_type="LSTM", encoder_num_layers=1),
]


@pytest.mark.parametrize("method", REPARAMETRIZED, ids=lambda method: method.name)
def test_a_network_that_makes_the_prompt_goes_on_training(method: methods.Method, base: Model, tmp_path: Path) -> None:
  adapted = base.add(method, jax.random.key(6))
  adapted.save_adapter(tmp_path / "out")
  loaded = peft.load(base, tmp_path / "out")
  assert jax.tree.structure(loaded.params) == jax.tree.structure(adapted.params)
  for path, leaf in masks.flatten(adapted.params).items():
    np.testing.assert_array_equal(masks.flatten(loaded.params)[path], leaf, err_msg=path)
  alone = peft.load(base, tmp_path / "out", inference=True)
  assert not any(path.rpartition(".")[2].startswith("encoder_") for path in alone.adapter_paths())
  np.testing.assert_allclose(alone(**INPUTS)["logits"], adapted(**INPUTS)["logits"], rtol=1e-5, atol=1e-6)
  edit_tensors(tmp_path / "out", lambda tensors: tensors.update(prompt_embeddings=tensors["prompt_embeddings"] + 1))
  with pytest.raises(UserError, match=r"peftjax\.safetensors does not make the 'prompt_embeddings'"):
    peft.load(base, tmp_path / "out")
  (tmp_path / "out" / peft.OUR_WEIGHTS).unlink()
  with pytest.raises(UserError, match=r"no peftjax\.safetensors"):
    peft.load(base, tmp_path / "out")


def test_a_rate_that_does_nothing_in_peft_does_nothing_here(base: Model, tmp_path: Path) -> None:
  model = base.add(methods.PTuning(num_virtual_tokens=3, encoder_hidden_size=5), jax.random.key(1))
  model.save_adapter(tmp_path)
  edit_config(tmp_path, encoder_dropout=0.5)
  (method,) = base.load_adapter(tmp_path).methods
  assert (method.encoder_type, method.encoder_dropout) == ("MLP", 0.0)
  edit_config(tmp_path, encoder_reparameterization_type="LSTM")
  with pytest.raises(UserError):  # the network's own leaves are those of an MLP
    base.load_adapter(tmp_path)


def test_a_prefix_on_some_layers_is_refused(base: Model, tmp_path: Path) -> None:
  with pytest.raises(
    UserError, match="PREFIX_TUNING has no word for which layers, and prefix leaves out 'bert.encoder"
  ):
    base.add(methods.Prefix(layers=(0,), num_virtual_tokens=2)).save_adapter(tmp_path / "out")


def test_vblora_of_top_weights_alone(base: Model, tmp_path: Path) -> None:
  method = methods.VBLoRA(
    rank=2, num_vectors=5, vector_length=4, topk=3, save_only_topk_weights=True, targets=("query",)
  )
  adapted = base.add(method, jax.random.key(7))
  adapted.save_adapter(tmp_path / "out")
  tensors = load_file(tmp_path / "out" / peft.WEIGHTS)
  assert tensors[f"{QUERY}.vblora_logits_A_topk_indices"].shape == (2, 3, 3)
  assert tensors[f"{QUERY}.vblora_logits_A_topk_indices"].dtype == np.uint8
  assert tensors[f"{QUERY}.vblora_logits_A_topk_weights"].shape == (2, 3, 2)
  loaded = peft.load(base, tmp_path / "out")
  np.testing.assert_allclose(loaded(**INPUTS)["logits"], adapted(**INPUTS)["logits"], rtol=1e-5, atol=1e-6)


def test_every_method_has_a_row_in_the_docs() -> None:
  page = (Path(__file__).parents[2] / "docs" / "interop.md").read_text()
  rows = dict(re.findall(r"^\| `(\w+)` \| (\w+)", page, re.MULTILINE))
  assert rows == {form.method.name: form.peft_type for form in FORMATS}
  without = page.split("Not there,")[1].split("\n\n")[0]
  for name in set(methods.METHODS) - set(rows):
    assert f"`{name}`" in without, name


def test_a_pruned_adalora(base: Model, tmp_path: Path) -> None:
  adapted = base.add(methods.AdaLoRA(init_r=4, target_r=2, targets=("query",)), jax.random.key(8))
  flat = masks.flatten(adapted.params)
  (path,) = (path for path in flat if path.endswith("lora_e"))
  flat[path] = jnp.asarray([[0.5, 0.0, -0.3, 0.0], [0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 0.0, 0.7]])
  adapted = adapted.with_params(masks.unflatten(flat))
  adapted.save_adapter(tmp_path / "out")
  tensors = load_file(tmp_path / "out" / peft.WEIGHTS)
  assert tensors[f"{QUERY.replace('1', '0')}.lora_A"].shape == (2, 12)
  assert tensors[f"{QUERY.replace('1', '2')}.lora_B"].shape == (12, 1)
  pattern = json.loads((tmp_path / "out" / peft.CONFIG).read_text())["rank_pattern"]
  assert pattern["bert.encoder.layer.0.attention.self.query.lora_E"] == [True, False, True, False]
  loaded = peft.load(base, tmp_path / "out")
  np.testing.assert_allclose(loaded(**INPUTS)["logits"], adapted(**INPUTS)["logits"], rtol=1e-5, atol=1e-6)
  loaded.save_adapter(tmp_path / "again")
  assert (tmp_path / "again" / peft.WEIGHTS).read_bytes() == (tmp_path / "out" / peft.WEIGHTS).read_bytes()
  edit_config(tmp_path / "out", init_r=5)
  with pytest.raises(UserError, match="has 4 entries, and init_r is 5"):
    peft.load(base, tmp_path / "out")


def test_one_method_with_modules_that_train_along(base: Model, tmp_path: Path) -> None:
  method = methods.Hybrid(methods=(LoRA(rank=2, targets=("query",)), methods.LayerNormTuning()))
  base.add(method, jax.random.key(9)).save_adapter(tmp_path / "norms")
  loaded = peft.load(base, tmp_path / "norms").methods
  assert [one.name for one in loaded] == ["lora"]
  assert len(loaded[0].modules_to_save) == 7
  biases = methods.Hybrid(methods=(LoRA(rank=2, targets=("query",)), methods.BitFit()))
  adapted = base.add(biases, jax.random.key(9))
  adapted.save_adapter(tmp_path / "biases")
  loaded = peft.load(base, tmp_path / "biases")
  assert loaded.methods[0].bias == "all"
  np.testing.assert_array_equal(loaded(**INPUTS)["logits"], adapted(**INPUTS)["logits"])


@pytest.mark.parametrize(
  ("values", "says"),
  [
    ({"r": "5"}, 'adapter_config.json: r="5": expected a finite number'),
    ({"r": 2.5}, "method.rank=2.5: expected a whole number"),
  ],
)
def test_values_of_the_wrong_type(values: dict[str, Any], says: str, base: Model, folder: Path) -> None:
  edit_config(folder, **values)
  with pytest.raises(UserError) as error:
    peft.load(base, folder)
  assert says in str(error.value)


@pytest.mark.parametrize(
  ("values", "says"),
  [
    ({"target_modules": 3}, "adapter_config.json: target_modules=3: expected a text or a list of names"),
    ({"target_modules": "("}, "the pattern '(' is no regular expression: missing )"),
    ({"layers_to_transform": "x"}, 'layers_to_transform="x": expected a whole number from 0 to 2147483647'),
    ({"modules_to_save": [3]}, "modules_to_save=[3]: expected a list, each value a text"),
    ({"rank_pattern": 1}, "rank_pattern=1: expected an object"),
    ({"lora_alpha": 10**400}, "expected a finite number"),
    ({"use_rslora": "yes"}, 'use_rslora="yes": expected true or false'),
    ({"task_type": 5}, "task_type=5: expected a text"),
  ],
)
def test_a_value_of_another_type_is_one_line(values: dict[str, Any], says: str, base: Model, folder: Path) -> None:
  edit_config(folder, **values)
  with pytest.raises(UserError) as error:
    peft.load(base, folder)
  assert says in str(error.value)


@pytest.mark.parametrize("ours", [{"settings": 3}, {"id2label": {"0": 1}}, {"base_sha256": 7}])
def test_what_peftjax_json_says_is_checked(ours: dict[str, Any], base: Model, folder: Path) -> None:
  (folder / peft.OURS).write_text(json.dumps({"method": "lora", **ours}))
  with pytest.raises(UserError, match=r"peftjax\.json: .*expected"):
    peft.load(base, folder)


@pytest.mark.parametrize("values", [{"r": 8_000_000}, {"r": 8_000_000, "init_lora_weights": "pissa"},
                                    {"rank_pattern": {".*query": 8_000_000}}])  # fmt: skip
def test_shapes_are_compared_before_leaves_of_a_huge_rank_are_made(
  values: dict[str, Any], base: Model, folder: Path
) -> None:
  edit_config(folder, **values)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  with pytest.raises(UserError, match="8000000"):
    peft.load(base, folder)
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_a_pattern_with_ways_without_end_is_answered(base: Model, folder: Path) -> None:
  edit_config(folder, target_modules="(([a-z_.0-9])+)+!")
  assert outcome_of(lambda: peft.load(base, folder), seconds=2.0).kind == REFUSED


HEAD = (
  "no module of the task's head, which trains whole, and target_modules names 'classifier' of it; expected it in "
  "modules_to_save"
)
TABLE = (
  "linear modules and convolutions, and target_modules names 'bert.embeddings.position_embeddings', an embedding; "
  "expected it left out"
)


@pytest.mark.parametrize(
  ("targets", "use_dora", "says"),
  [
    (["query", "classifier"], False, f"lora acts on {HEAD}"),
    (["classifier"], False, f"lora acts on {HEAD}"),
    (["query", "position_embeddings"], True, f"dora acts on {TABLE}"),
    (["position_embeddings"], True, f"dora acts on {TABLE}"),
  ],
)
def test_a_module_that_peft_reaches_and_the_method_does_not_is_named(targets, use_dora, says, base, folder):
  edit_config(folder, target_modules=targets, use_dora=use_dora, modules_to_save=None, task_type=None)
  edit_tensors(folder, lambda tensors: tensors.update({
    f"base_model.model.{module}.lora_A.weight": np.zeros((5, 12), np.float32)
    for module in ("classifier", "bert.embeddings.position_embeddings") if module.split(".")[-1] in targets
  }))  # fmt: skip
  with pytest.raises(UserError) as error:
    peft.load(base, folder)
  assert says in str(error.value) and "\n" not in str(error.value)


def test_copies_of_the_biases_of_a_module_that_is_saved_whole_are_passed_over(base, tmp_path):
  """As PEFT writes them with bias="all": of modules in it, with the adapter's name in the middle of theirs."""
  whole = "base_model.model.bert.encoder.layer.0.attention.output"
  method = LoRA(rank=2, targets=("query",), bias="all", modules_to_save=("layer.0.attention.output",))
  base.add(method).save_adapter(tmp_path)
  edit_tensors(tmp_path, lambda tensors: tensors.update({
    f"{whole}.{inner}.{leaf}": tensors[f"{whole}.{leaf}"] + differs
    for leaf in ("dense.bias", "LayerNorm.bias")
    for inner, differs in (("modules_to_save.mine", 0), ("original_module", 1))
  }))  # fmt: skip
  loaded = peft.load(base, tmp_path)
  assert [name.rpartition(".")[2] for name in loaded.bound[-1].method.modules_to_save] == ["LayerNorm", "dense"]
  edit_tensors(tmp_path, lambda tensors: tensors.update({
    f"{whole}.modules_to_save.mine.dense.bias": tensors[f"{whole}.dense.bias"] + 1
  }))  # fmt: skip
  with pytest.raises(UserError, match=r"modules_to_save\.mine\.dense\.bias' differs from .*output\.dense\.bias'"):
    peft.load(base, tmp_path)
