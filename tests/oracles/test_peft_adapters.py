"""Adapters go to Hugging Face PEFT and come back: equal logits, equal bytes, equal training."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file

import peftjax
from peftjax import masks
from peftjax.interop import peft as adapters
from peftjax.model import Model
from tests.oracles.peft_cases import CASES, TASKS, Case

SIZES = {"vocab_size": 47, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
LABELS = 5
INPUTS = {
  "input_ids": np.array([[5, 6, 7, 8, 9, 11], [3, 4, 9, 1, 1, 1]], np.int32),
  "attention_mask": np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]], np.int32),
}
cases = pytest.mark.parametrize("name", CASES)


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
  threads = torch.get_num_threads()
  torch.set_num_threads(1)
  jax.config.update("jax_disable_most_optimizations", True)  # models this small spend their time in the compiler
  transformers.utils.logging.disable_progress_bar()
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    yield
  torch.set_num_threads(threads)
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
  """Tiny random models without dropout."""
  folders = {}
  for family, extra in (("Bert", {}), ("Roberta", {"pad_token_id": 1})):
    for head in ("Sequence", "Token"):
      config = getattr(transformers, f"{family}Config")(
        **SIZES,
        **extra,
        num_labels=LABELS,
        max_position_embeddings=32,
        initializer_range=0.3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
      )
      torch.manual_seed(len(folders))
      model = getattr(transformers, f"{family}For{head}Classification")(config)
      name = f"{family.lower()}-{'seq' if head == 'Sequence' else 'token'}"
      folders[name] = tmp_path_factory.mktemp(name)
      model.save_pretrained(folders[name])
  for name in ("llama-causal", "llama-tied"):
    torch.manual_seed(len(folders))
    config = transformers.LlamaConfig(
      **{**SIZES, "num_attention_heads": 4},
      num_key_value_heads=2,
      max_position_embeddings=32,
      initializer_range=0.3,
      tie_word_embeddings=name == "llama-tied",
    )
    folders[name] = tmp_path_factory.mktemp(name)
    transformers.LlamaForCausalLM(config).save_pretrained(folders[name])
  return folders


def torch_base(bases: dict[str, Path], case: Case) -> Any:
  return getattr(transformers, TASKS[case.base.split("-")[1]][1]).from_pretrained(bases[case.base])


def torch_adapted(bases: dict[str, Path], case: Case) -> Any:
  """A PEFT model whose trainable parameters have random values."""
  task_type = TASKS[case.base.split("-")[1]][0]
  model = peft.get_peft_model(torch_base(bases, case), case.config(task_type=task_type))
  torch.manual_seed(7)
  for parameter in model.parameters():
    if parameter.requires_grad:
      parameter.data += 0.3 * torch.randn_like(parameter)
  return model.eval()


def torch_logits(model: Any) -> np.ndarray:
  with torch.no_grad():
    return of_tokens(model(**{name: torch.tensor(value) for name, value in INPUTS.items()}).logits).numpy()


def torch_loaded(bases: dict[str, Path], case: Case, folder: Path) -> Any:
  with warnings.catch_warnings():
    warnings.filterwarnings("error", message="Found missing adapter keys")
    return peft.PeftModel.from_pretrained(torch_base(bases, case), folder).eval()


def of_tokens(output: Any) -> Any:
  """Logits of the texts, or of all tokens: not of padding, nor of virtual tokens, whose logits PEFT returns as well."""
  if output.ndim == 2:
    return output
  return output[:, -INPUTS["input_ids"].shape[1] :][INPUTS["attention_mask"] == 1]


def logits(model: Model) -> np.ndarray:
  return np.asarray(of_tokens(model(**INPUTS)["logits"]))


def close(actual: np.ndarray, wanted: np.ndarray) -> None:
  np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
  return load_file(folder / adapters.WEIGHTS)


def config_of(folder: Path) -> dict[str, Any]:
  config = json.loads((folder / adapters.CONFIG).read_text())
  return {key: sorted(set(value)) if key.endswith("_modules") and isinstance(value, list) else value
          for key, value in config.items() if key not in ("base_model_name_or_path", "modules_to_save")}  # fmt: skip


def randomised(model: Model) -> Model:
  """The model with random values in everything that trains."""
  trainable, frozen = masks.partition(model.params, model.labels())
  flat = masks.flatten(trainable)
  keys = jax.random.split(jax.random.key(3), len(flat))
  flat = {path: leaf + 0.3 * jax.random.normal(key, leaf.shape) for key, (path, leaf) in zip(keys, flat.items())}
  return model.with_params(masks.combine(masks.unflatten(flat), frozen))


@cases
def test_a_peft_adapter_loads_and_saves_back_the_same_bytes(name: str, bases: dict[str, Path], tmp_path: Path) -> None:
  case = CASES[name]
  theirs = torch_adapted(bases, case)
  theirs.save_pretrained(tmp_path / "theirs")
  model = peftjax.load(bases[case.base], adapter=tmp_path / "theirs")
  close(logits(model), torch_logits(theirs))
  model.save_adapter(tmp_path / "ours")
  wanted, found = tensors_of(tmp_path / "theirs"), tensors_of(tmp_path / "ours")
  assert set(found) == {*wanted, *case.more}
  for key in wanted:
    assert found[key].dtype == wanted[key].dtype
    if case.same_bytes:
      assert found[key].tobytes() == wanted[key].tobytes(), key
    else:
      np.testing.assert_allclose(found[key], wanted[key], rtol=1e-5, err_msg=key)
  again = peftjax.load(bases[case.base], adapter=tmp_path / "ours")
  close(logits(again), torch_logits(theirs))
  if case.same_config:
    assert config_of(tmp_path / "ours") == config_of(tmp_path / "theirs")


@cases
def test_our_adapter_loads_in_peft(name: str, bases: dict[str, Path], tmp_path: Path) -> None:
  case = CASES[name]
  model = randomised(peftjax.load(bases[case.base]).add(case.method, jax.random.key(5)))
  model.save_adapter(tmp_path / "ours")
  theirs = torch_loaded(bases, case, tmp_path / "ours")
  wanted = logits(model)
  close(torch_logits(theirs), wanted)
  if case.merges:
    close(torch_logits(theirs.merge_and_unload()), logits(model.merge()))
    close(logits(model.merge()), wanted)


@pytest.mark.parametrize(
  ("base", "settings"),
  [
    ("bert-seq", {"init_lora_weights": "pissa", "use_rslora": True, "target_modules": ["query", "dense"]}),
    ("llama-causal", {"init_lora_weights": "olora", "rank_pattern": {"q_proj": 5}, "alpha_pattern": {"v_proj": 2}}),
  ],
)
def test_an_adapter_on_what_its_start_left_of_the_base(
  base: str, settings: dict[str, Any], bases: dict[str, Path], tmp_path: Path
) -> None:
  """PEFT keeps the factors alone, and takes the start from the base again where it loads them."""
  case = dataclasses.replace(CASES["lora"], base=base)
  kind = TASKS[base.split("-")[1]][0]
  config = peft.LoraConfig(
    **{"r": 3, "lora_alpha": 7, "target_modules": ["q_proj", "v_proj"], **settings}, task_type=kind
  )
  theirs = peft.get_peft_model(torch_base(bases, case), config).eval()
  torch.manual_seed(7)
  for name, parameter in theirs.named_parameters():
    if "lora_" in name:
      parameter.data += 0.3 * torch.randn_like(parameter)
  theirs.save_pretrained(tmp_path / "theirs")
  wanted = torch_logits(theirs)
  model = peftjax.load(bases[base], adapter=tmp_path / "theirs")
  close(logits(model), wanted)
  close(logits(model.merge()), wanted)
  model.save_adapter(tmp_path / "ours")  # as PEFT converts it: of twice the rank, for the base as it is
  assert config_of(tmp_path / "ours")["r"] == 6
  close(torch_logits(torch_loaded(bases, case, tmp_path / "ours")), wanted)


def test_a_pruned_adalora_loads_in_peft(bases: dict[str, Path], tmp_path: Path) -> None:
  case = CASES["adalora"]
  model = randomised(peftjax.load(bases[case.base]).add(case.method, jax.random.key(5)))
  flat = masks.flatten(model.params)
  (path,) = (path for path in flat if path.endswith("lora_e"))
  flat[path] = flat[path] * jnp.asarray([[1.0, 0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0]])
  model = model.with_params(masks.unflatten(flat))
  model.save_adapter(tmp_path / "ours")
  assert sum(value.shape[0] for key, value in tensors_of(tmp_path / "ours").items() if key.endswith("lora_A")) == 4
  close(torch_logits(torch_loaded(bases, case, tmp_path / "ours")), logits(model))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.trains])
def test_five_adamw_steps_give_the_same_losses(name: str, bases: dict[str, Path], tmp_path: Path) -> None:
  case = CASES[name]
  theirs = torch_adapted(bases, case)
  theirs.save_pretrained(tmp_path / "start")
  model = peftjax.load(bases[case.base], adapter=tmp_path / "start")
  parameters = [parameter for parameter in theirs.parameters() if parameter.requires_grad]
  trainable, frozen = masks.partition(model.params, model.labels())
  assert sum(parameter.numel() for parameter in parameters) == masks.count(trainable).parameters
  wanted = torch_losses(theirs, parameters)
  found, trained = our_losses(model, trainable, frozen)
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * wanted[0])
  assert wanted[0] - wanted[-1] > 1e-3
  theirs.save_pretrained(tmp_path / "end")
  trained.save_adapter(tmp_path / "ours")
  ours, end = tensors_of(tmp_path / "ours"), tensors_of(tmp_path / "end")
  for key, value in end.items():
    # Where a gradient is next to nothing Adam turns its rounding into a step; such elements are few.
    assert np.abs(ours[key] - value).mean() < 3e-5, key


def torch_losses(model: Any, parameters: list[Any]) -> list[float]:
  optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01)
  losses = []
  inputs = {name: torch.tensor(value) for name, value in INPUTS.items()}
  for _ in range(5):
    output = of_tokens(model(**inputs).logits)
    loss = torch.nn.functional.cross_entropy(output, torch.arange(len(output)) % LABELS)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
  return losses


def our_losses(model: Model, trainable: masks.Tree, frozen: masks.Tree) -> tuple[list[float], Model]:
  optimizer = optax.adamw(2e-3, weight_decay=0.01)

  def loss_of(tree: masks.Tree) -> jax.Array:
    output = of_tokens(model.forward(masks.combine(tree, frozen), INPUTS)["logits"])
    labels = jnp.arange(len(output)) % LABELS
    return optax.softmax_cross_entropy_with_integer_labels(output, labels).mean()

  @jax.jit
  def step(tree: masks.Tree, state: Any) -> tuple[masks.Tree, Any, jax.Array]:
    loss, gradients = jax.value_and_grad(loss_of)(tree)
    updates, state = optimizer.update(gradients, state, tree)
    return optax.apply_updates(tree, updates), state, loss

  state, losses = optimizer.init(trainable), []
  for _ in range(5):
    trainable, state, loss = step(trainable, state)
    losses.append(float(loss))
  return losses, model.with_params(masks.combine(trainable, frozen))
