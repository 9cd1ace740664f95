"""The reparametrisations against Hugging Face PEFT at random values: counts, logits, and losses over AdamW steps."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import pytest
import torch

import peftjax
from peftjax import masks, methods
from peftjax.methods import Site, torch_random
from peftjax.model import Model
from peftjax.stacks import stack, unstack
from tests.oracles import tiny

CLASS = "BertForSequenceClassification"
TARGETS = ("query", "intermediate.dense", "output.dense")  # 24 -> 24, 24 -> 40, 40 -> 24
STEPS = 5
RATE = 3e-3
EPSILON = 1e-5  # elements whose gradient is rounding noise must not move by a whole learning rate
LABELS = np.array([1, 4, 0])


@dataclasses.dataclass(frozen=True)
class Case:
  """A PEFT config class with settings, ours, and where our leaves are in its state.

  Attributes:
    leaves: leaf -> what follows the module's name in the key; a capital T in front: transposed.
    shared: the same for leaves that all sites share.
    noise: deviation of the random values added to what trains.
  """

  config: str
  theirs: dict[str, Any]
  name: str
  ours: dict[str, Any]
  leaves: Mapping[str, str]
  shared: Mapping[str, str] = dataclasses.field(default_factory=dict)
  noise: float = 0.3


LORA = {"lora_a": "T lora_A.default.weight", "lora_b": "T lora_B.default.weight"}
DORA = {**LORA, "lora_magnitude": "lora_magnitude_vector.default.weight"}
SVD = {"lora_a": "T lora_A.default", "lora_b": "T lora_B.default", "lora_e": "lora_E.default"}
HADAMARD = {f"hada_{name}": f"T hada_{name}.default" for name in ("w1_a", "w1_b", "w2_a", "w2_b")}
KRONECKER = {f"lokr_{name}": f"T lokr_{name}.default" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")}
OFT = {"oft_r": "oft_R.default.weight"}
BOFT = {"boft_r": "boft_R.default", "boft_s": "boft_s.default"}
MISS = {"miss_block": "miss_block.default"}
VERA = {name: f"{name}.default" for name in ("vera_lambda_b", "vera_lambda_d")}
FOURIER = {"fourierft_spectrum": "fourierft_spectrum.default"}
BANK = {"vblora_logits_a": "vblora_logits_A.default", "vblora_logits_b": "vblora_logits_B.default"}
RANDOM = {name: f"{name}.default" for name in ("randlora_lambda", "randlora_gamma")}
ROAD = {"road_theta": "road_theta.default", "road_alpha": "road_alpha.default"}
GRANULAR = {"gralora_a": "gralora_A.default", "gralora_b": "gralora_B.default"}
DELORA = {"delora_a": "T delora_A.default", "delora_b": "T delora_B.default", "delora_lambda": "delora_lambda.default"}

CASES = {
  "lora": Case("Lora", {"r": 3, "lora_alpha": 5}, "lora", {"rank": 3, "alpha": 5.0}, LORA),
  "dora": Case(
    "Lora", {"r": 3, "lora_alpha": 5, "use_dora": True}, "dora", {"rank": 3, "alpha": 5.0}, DORA
  ),
  "dora rs": Case(
    "Lora", {"r": 3, "use_dora": True, "use_rslora": True}, "dora", {"rank": 3, "rslora": True}, DORA
  ),
  "adalora": Case(
    "AdaLora",
    {"init_r": 3, "target_r": 2, "total_step": STEPS, "tinit": 1, "tfinal": 1},
    "adalora",
    {"init_r": 3, "target_r": 2, "tinit": 1, "tfinal": 1},
    SVD,
  ),
  "vera": Case("Vera", {"r": 5, "projection_prng_key": 3}, "vera", {"rank": 5, "projection_prng_key": 3}, VERA),
  "fourierft": Case(
    "FourierFT", {"n_frequency": 7, "scaling": 90.0}, "fourierft", {"n_frequency": 7, "scaling": 90.0}, FOURIER
  ),
  "fourierft pattern": Case(
    "FourierFT",
    {"n_frequency": 7, "n_frequency_pattern": {"query": 5}},
    "fourierft",
    {"n_frequency": 7, "n_frequency_pattern": {"query": 5}},
    FOURIER,
  ),
  "vblora": Case(
    "VBLoRA",
    {"r": 3, "num_vectors": 7, "vector_length": 8, "topk": 2},
    "vblora",
    {"rank": 3, "num_vectors": 7, "vector_length": 8, "topk": 2},
    BANK,
    {"vblora_vector_bank": "vblora_vector_bank.default"},
  ),
  "loha": Case("LoHa", {"r": 2, "alpha": 3}, "loha", {"rank": 2, "alpha": 3.0}, HADAMARD),
  "loha dense": Case("LoHa", {"r": 5}, "loha", {"rank": 5}, HADAMARD),
  "lokr": Case("LoKr", {"r": 2, "alpha": 3}, "lokr", {"rank": 2, "alpha": 3.0}, KRONECKER),
  "lokr both": Case(
    "LoKr",
    {"r": 1, "decompose_both": True, "decompose_factor": 7},
    "lokr",
    {"rank": 1, "decompose_both": True, "decompose_factor": 7},
    KRONECKER,
  ),
  "lokr patterns": Case(
    "LoKr",
    {"r": 2, "rank_pattern": {"query": 1}, "alpha_pattern": {"intermediate.dense": 3}},
    "lokr",
    {"rank": 2, "rank_pattern": {"query": 1}, "alpha_pattern": {"intermediate.dense": 3.0}},
    KRONECKER,
  ),
  "oft": Case("OFT", {"oft_block_size": 4}, "oft", {"oft_block_size": 4}, OFT),
  "oft odd": Case(
    "OFT",
    {"oft_block_size": 5, "num_cayley_neumann_terms": 4},
    "oft",
    {"oft_block_size": 5, "num_cayley_neumann_terms": 4},
    OFT,
  ),
  "oft exact": Case(
    "OFT",
    {"r": 4, "oft_block_size": 0, "use_cayley_neumann": False, "block_share": True},
    "oft",
    {"rank": 4, "use_cayley_neumann": False, "block_share": True},
    OFT,
  ),
  "oft constrained": Case("OFT", {"oft_block_size": 4, "coft": True, "eps": 0.3}, "oft",
                          {"oft_block_size": 4, "coft": True, "eps": 0.3}, OFT),
  "boft": Case("BOFT", {"boft_block_size": 4}, "boft", {"boft_block_size": 4}, BOFT),
  "boft blocks": Case(
    "BOFT",
    {"boft_block_size": 0, "boft_block_num": 8},
    "boft",
    {"boft_block_num": 8},
    BOFT,
  ),
  "miss": Case("Miss", {"r": 7}, "miss", {"rank": 7}, MISS),
  "miss mini": Case(
    "Miss", {"r": 7, "mini_r": 4, "init_weights": "mini"}, "miss", {"rank": 7, "mini_r": 4, "init": "mini"}, MISS
  ),
  "miss bat": Case("Miss", {"r": 4, "init_weights": "bat"}, "miss", {"rank": 4, "init": "bat"}, MISS),
  "hra": Case("HRA", {"r": 4}, "hra", {"rank": 4}, {"hra_u": "hra_u.default"}),
  "hra gs": Case("HRA", {"r": 3, "apply_GS": True}, "hra", {"rank": 3, "apply_gs": True}, {"hra_u": "hra_u.default"}),
  "randlora": Case("RandLora", {"r": 5, "randlora_alpha": 7}, "randlora", {"rank": 5, "alpha": 7.0}, RANDOM),
  "randlora sparse": Case(
    "RandLora",
    {"r": 5, "randlora_alpha": 7, "sparse": True, "projection_prng_key": 2},
    "randlora",
    {"rank": 5, "alpha": 7.0, "sparse": True, "projection_prng_key": 2},
    RANDOM,
  ),
  "shira": Case(
    "Shira", {"r": 3, "random_seed": 5}, "shira", {"rank": 3, "random_seed": 5},
    {"shira_weight": "shira_weight.default"},
  ),
  "c3a": Case("C3A", {"block_size": 8}, "c3a", {"block_size": 8}, {"c3a_kernel": "c3a_kernel.default"}),
  "hira": Case("Hira", {"r": 3}, "hira", {"rank": 3}, {"hira_a": "T hira_A.default", "hira_b": "T hira_B.default"}),
  "gralora": Case(
    "Gralora",
    {"r": 4, "alpha": 6, "gralora_k": 2},
    "gralora",
    {"rank": 4, "alpha": 6.0, "gralora_k": 2},
    GRANULAR,
  ),
  "gralora hybrid": Case(
    "Gralora",
    {"r": 8, "alpha": 6, "gralora_k": 4, "hybrid_r": 3},
    "gralora",
    {"rank": 8, "alpha": 6.0, "gralora_k": 4, "hybrid_r": 3},
    {
      **GRANULAR,
      "gralora_a_general": "T gralora_A_general.default.weight",
      "gralora_b_general": "T gralora_B_general.default.weight",
    },
  ),
  "road": Case("Road", {"group_size": 4}, "road", {"group_size": 4}, ROAD),
  "road 2": Case("Road", {"group_size": 4, "variant": "road_2"}, "road", {"group_size": 4, "variant": "road_2"}, ROAD),
  "road 4": Case("Road", {"group_size": 4, "variant": "road_4"}, "road", {"group_size": 4, "variant": "road_4"}, ROAD),
  "delora": Case("Delora", {"r": 3}, "delora", {"rank": 3}, DELORA),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _small_models_spend_their_time_in_the_compiler() -> Iterator[None]:
  threads = torch.get_num_threads()
  torch.set_num_threads(1)
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  torch.set_num_threads(threads)
  jax.config.update("jax_disable_most_optimizations", False)


@functools.cache
def base() -> tuple[Any, Model]:
  torch_model, folder = tiny.model(CLASS, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
  return torch_model, peftjax.load(folder)


def adapted(case: Case) -> Any:
  """A PEFT model with random values in what trains."""
  _, folder = tiny.model(CLASS, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
  model = type(base()[0]).from_pretrained(folder)
  config = getattr(peft, f"{case.config}Config")(task_type="SEQ_CLS", target_modules=list(TARGETS), **case.theirs)
  torch.manual_seed(3)
  model = peft.get_peft_model(model, config)
  for name, parameter in model.named_parameters():
    if parameter.requires_grad and "classifier" not in name:
      parameter.data += case.noise * torch.randn_like(parameter)
  return model


def copied(model: Model, case: Case, state: Mapping[str, Any]) -> Model:
  """Our model with the values of PEFT's state, leaf by leaf and layer by layer."""
  flat = masks.flatten(unstack(model.params, model.stacks))
  for path in list(flat):
    module, _, leaf = path.rpartition(".")
    if leaf in case.leaves or (module == model.methods[0].name and leaf in case.shared):
      where = case.leaves.get(leaf) or case.shared[leaf]
      key = where.removeprefix("T ")
      value = state[f"base_model.model.{module}.{key}" if leaf in case.leaves else f"base_model.{key}"].numpy()
      value = value.T if where != key else value.reshape(flat[path].shape)
      assert value.shape == flat[path].shape, path
      flat[path] = jnp.asarray(value)
  return model.with_params(stack(masks.unflatten(flat), model.stacks))


def torch_run(model: Any, case: Case, batch: dict[str, np.ndarray]) -> tuple[np.ndarray, list[float]]:
  """(logits before, losses over the steps)."""
  model.train()  # dropout is zero everywhere; AdaLoRA's regulariser asks for labels in the call
  inputs = {name: torch.tensor(value) for name, value in batch.items()} | {"labels": torch.tensor(LABELS)}
  optimizer = torch.optim.AdamW(
    [p for p in model.parameters() if p.requires_grad], lr=RATE, eps=EPSILON, weight_decay=0.01
  )
  logits, losses = None, []
  for index in range(STEPS):
    out = model(**inputs)
    logits = out.logits.detach().numpy() if logits is None else logits
    losses.append(float(out.loss.detach()))
    optimizer.zero_grad()
    out.loss.backward()
    optimizer.step()
    if case.name == "adalora":
      model.base_model.update_and_allocate(index)
  return logits, losses


def our_run(model: Model, batch: dict[str, np.ndarray]) -> tuple[np.ndarray, list[float]]:
  trainable, frozen = masks.partition(model.params, model.labels())
  optimizer = model.transformed(optax.adamw(RATE, eps=EPSILON, weight_decay=0.01), STEPS)

  def loss(trainable: masks.Tree, frozen: masks.Tree) -> tuple[jax.Array, jax.Array]:
    params = masks.combine(trainable, frozen)
    logits = model.forward(params, batch)["logits"]
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()
    return nll + model.penalty(params), logits

  @jax.jit
  def step(trainable: masks.Tree, frozen: masks.Tree, state: Any) -> Any:
    (value, logits), grads = jax.value_and_grad(loss, has_aux=True)(trainable, frozen)
    updates, state = optimizer.update(grads, state, trainable)
    return optax.apply_updates(trainable, updates), state, value, logits

  state, first, losses = optimizer.init(trainable), None, []
  for _ in range(STEPS):
    trainable, state, value, logits = step(trainable, frozen, state)
    first = np.asarray(logits) if first is None else first
    losses.append(float(value))
  return first, losses


def convolved(x: Any, w: Any) -> Any:
  """What PEFT's BlockCircularConvolution computes, differentiated by torch: its own gradient by x is another's."""
  blocks = x.reshape(*x.shape[:-1], *w.shape[1:])
  product = torch.einsum("...nb,mnb->...mb", torch.fft.ifft(blocks), torch.fft.fft(w))
  return torch.fft.fft(product).real.flatten(-2)


@pytest.mark.parametrize("name", sorted(CASES))
def test_counts_logits_and_training_equal_pefts(name: str, monkeypatch: pytest.MonkeyPatch):
  monkeypatch.setattr("peft.tuners.c3a.layer.BlockCircularConvolution.apply", convolved)
  case, batch = CASES[name], tiny.inputs(CLASS)
  theirs = adapted(case)
  tiny.torch_outputs(theirs, batch)  # constrained OFT overwrites its parameters in the forward pass
  fresh = base()[1].add(methods.build({"name": case.name, "targets": TARGETS, **case.ours}))
  ours = copied(fresh, case, theirs.state_dict())
  trainable, _ = masks.partition(ours.params, ours.labels())
  assert masks.count(trainable).parameters == theirs.get_nb_trainable_parameters()[0]
  wanted, their_losses = torch_run(theirs, case, batch)
  found, our_losses = our_run(ours, batch)
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())
  np.testing.assert_allclose(our_losses, their_losses, rtol=3e-5, atol=1e-5)


@pytest.mark.parametrize("seed", [0, 777, 2**32 + 5])
def test_torchs_generator_is_reproduced_bitwise(seed: int):
  def fresh() -> Any:
    return torch.Generator().manual_seed(seed)

  theirs, ours = fresh(), torch_random.generator(seed)
  for shape in ((5, 7), (733,)):
    wanted = torch.empty(shape).uniform_(-0.3, 0.21, generator=theirs).numpy()
    np.testing.assert_array_equal(torch_random.uniform(ours, shape, -0.3, 0.21), wanted)
  wanted = torch.empty(2311, dtype=torch.bfloat16).uniform_(-0.3, 0.3, generator=theirs).float().numpy()
  found = torch_random.uniform_bfloat16(ours, (2311,), -0.3, 0.3).astype(np.float32)
  np.testing.assert_array_equal(found, wanted)
  wanted = torch.randperm(1001, generator=fresh())[:999].numpy()
  np.testing.assert_array_equal(torch_random.permutation(torch_random.generator(seed), 1001, 999), wanted)


def test_butterfly_factors_are_the_papers_permuted_blocks():
  site = Site(("x",), "__call__", "linear", ("x",), (), (24, 5))
  method = methods.BOFT(boft_block_size=4, boft_n_butterfly_factor=2)
  rng = np.random.default_rng(0)
  raw = rng.standard_normal((2, 6, 4, 4)).astype(np.float32)
  layer = peft.tuners.boft.layer.BOFTLayer.__new__(peft.tuners.boft.layer.BOFTLayer)
  rotation = torch.eye(24)
  for index in range(2):
    order = layer.block_butterfly_perm(24, 6 // 2**index, 2, 1)
    permutation = layer.perm2mat(order)
    blocks = torch.block_diag(*layer.cayley_batch(torch.tensor(raw[index])))
    rotation = permutation @ blocks @ permutation.T @ rotation
  kernel = rng.standard_normal((24, 5)).astype(np.float32)
  scale = rng.standard_normal(5).astype(np.float32)
  delta = method.delta({"boft_r": jnp.asarray(raw), "boft_s": scale}, {"kernel": kernel}, site, {})["kernel"]
  np.testing.assert_allclose(kernel + delta, rotation.numpy() @ kernel * scale, rtol=1e-5, atol=1e-5)
