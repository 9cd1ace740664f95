"""Methods at convolutions against PEFT's: outputs, gradients, merging, and adapter files both ways."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from flax import linen as nn
from safetensors.torch import save_file

from peftjax import adapters, masks, methods
from peftjax.errors import UserError
from peftjax.interop.formats import FORMATS
from peftjax.interop.leaves import write_adapter
from peftjax.loading import load
from peftjax.methods.base import Method
from peftjax.model import Model
from peftjax.models.family import Architecture, Family
from tests.methods import tiny

IN, OUT = 4, 6
SIZES = (9, 8, 5)  # of the input along its axes, channels apart


class Net(nn.Module):
  """Two convolutions, of which the first is acted on."""

  window: tuple[int, ...]
  options: tuple[tuple[str, Any], ...]

  @nn.compact
  def __call__(self, pixels: jax.Array) -> dict[str, jax.Array]:
    x = nn.Conv(OUT, self.window, name="conv", **dict(self.options))(pixels)
    return {"features": nn.Conv(3, (1,) * len(self.window), name="last")(jnp.tanh(x))}


class TorchNet(torch.nn.Module):
  def __init__(self, window: tuple[int, ...], options: dict[str, Any]):
    super().__init__()
    conv = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)[len(window) - 1]
    self.conv, self.last = conv(IN, OUT, window, **options), conv(OUT, 3, 1)

  def forward(self, pixels: Any) -> Any:
    return self.last(torch.tanh(self.conv(pixels)))


@dataclasses.dataclass(frozen=True)
class Case:
  """A convolution, as both sides name its settings."""

  window: tuple[int, ...]
  stride: tuple[int, ...] = ()
  padding: tuple[int, ...] = ()
  dilation: tuple[int, ...] = ()
  groups: int = 1
  bias: bool = True

  @property
  def theirs(self) -> dict[str, Any]:
    ones, zeros = (1,) * len(self.window), (0,) * len(self.window)
    return {"stride": self.stride or ones, "padding": self.padding or zeros, "dilation": self.dilation or ones,
            "groups": self.groups, "bias": self.bias}  # fmt: skip

  @property
  def ours(self) -> tuple[tuple[str, Any], ...]:
    given = self.theirs
    padding = tuple((size, size) for size in given["padding"])
    return (("strides", given["stride"]), ("padding", padding), ("kernel_dilation", given["dilation"]),
            ("feature_group_count", self.groups), ("use_bias", self.bias))  # fmt: skip

  @property
  def shape(self) -> tuple[int, ...]:
    return (2, *SIZES[: len(self.window)], IN)


CASES = {
  "line": Case((3,), (2,), (2,)),
  "dilated-line": Case((3,), (2,), (2,), (2,)),
  "plane": Case((3, 2), (1, 2), (1, 0)),
  "dilated-plane": Case((3, 2), (1, 2), (2, 1), (2, 1)),
  "square": Case((3, 3), (2, 2), (1, 1)),
  "no-bias": Case((3, 3), (2, 2), (1, 1), bias=False),
  "point": Case((1, 1)),
  "groups": Case((3, 2), (1, 2), (2, 1), (2, 1), groups=2),
  "room": Case((2, 1, 3), (1, 1, 2), (1, 0, 1)),
}
LORA = methods.LoRA(rank=4, alpha=6.0, targets=("conv",))
METHODS: dict[str, tuple[Method, tuple[str, ...]]] = {  # the cases; the first runs always, the others with -m slow
  "lora": (LORA, ("groups-undilated", "line", "plane", "point", "room")),
  "pissa": (dataclasses.replace(LORA, rank=2, init="pissa"), ("plane", "line", "room")),
  "dora": (methods.DoRA(rank=3, alpha=5.0, targets=("conv",)), ("plane", "line", "point", "room", "no-bias")),
  "ia3": (methods.IA3(targets=("conv",)), ("groups", "dilated-plane", "point", "room")),
  "ia3-input": (methods.IA3(targets=("conv",), feedforward=("conv",)), ("groups", "dilated-plane", "point", "room")),
  "loha": (
    methods.LoHa(rank=3, alpha=5.0, targets=("conv",)), ("groups", "dilated-line", "dilated-plane", "point", "no-bias"),
  ),
  "loha-tucker": (
    methods.LoHa(rank=3, targets=("conv",), use_effective_conv2d=True), ("dilated-plane", "dilated-line", "point"),
  ),
  "lokr": (
    methods.LoKr(rank=1, alpha=5.0, targets=("conv",), decompose_factor=2), ("groups", "dilated-plane", "point"),
  ),
  "lokr-whole": (methods.LoKr(rank=4, targets=("conv",)), ("dilated-line", "dilated-plane", "groups", "point")),
  "lokr-both": (
    methods.LoKr(rank=1, targets=("conv",), decompose_both=True, decompose_factor=4), ("dilated-line", "plane"),
  ),
  "lokr-tucker": (
    methods.LoKr(rank=1, targets=("conv",), use_effective_conv2d=True, init="lycoris"), ("dilated-plane", "plane"),
  ),
  "hira": (methods.HiRA(rank=3, targets=("conv",)), ("dilated-plane", "dilated-line", "point", "room")),
  "hra": (methods.HRA(rank=4, targets=("conv",)), ("square", "no-bias", "point")),
  "oft": (methods.OFT(oft_block_size=6, targets=("conv",)), ("square", "point")),
  "oft-shared": (methods.OFT(oft_block_size=4, block_share=True, targets=("conv",)), ("square", "point")),
  "boft": (methods.BOFT(boft_block_size=4, targets=("conv",)), ("square", "no-bias", "point")),
  "adalora": (methods.AdaLoRA(init_r=3, target_r=2, targets=("conv",)), ("dilated-plane", "square", "point")),
}  # fmt: skip
CASES["groups-undilated"] = dataclasses.replace(CASES["groups"], dilation=())  # PEFT's LoRA forgets the dilation
GRID = [
  pytest.param(name, case, marks=() if index == 0 else pytest.mark.slow, id=f"{name}-{case}")
  for name, (_, cases) in METHODS.items()
  for index, case in enumerate(cases)
]


def family(case: Case) -> Family:
  return Family(
    model_types=("mine",),
    parse=lambda hf_config: (),
    architectures={"Net": Architecture(lambda config, runtime: Net(case.window, case.ours), "filter")},
    stacks=lambda config: {},
    inputs=lambda config: {"pixels": jax.ShapeDtypeStruct(case.shape, jnp.float32)},
  )


def pair(case: Case, folder: Any) -> tuple[TorchNet, Model, Family]:
  """The two nets with the same weights."""
  torch.manual_seed(0)
  theirs = TorchNet(case.window, case.theirs)
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps({"model_type": "mine"}))
  save_file(theirs.state_dict(), folder / "model.safetensors")
  mine = family(case)
  return theirs, load(folder, family=mine), mine


def moved(model: Model) -> Model:
  own = {path: leaf for path, leaf in masks.flatten(model.params).items() if path in model.adapter_paths()}
  own = {path: leaf for path, leaf in own.items() if not path.endswith("_init")}
  return tiny.replaced(model, tiny.noise_on(own, scale=0.2))


def outputs_of(theirs: Any, pixels: np.ndarray) -> Any:
  return torch.movedim(theirs(torch.tensor(np.moveaxis(pixels, -1, 1))), 1, -1)


def close(found: Any, wanted: Any, what: str = "") -> None:
  wanted = np.asarray(wanted.detach() if isinstance(wanted, torch.Tensor) else wanted)
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * max(np.abs(wanted).max(), 1e-3), err_msg=what)


def _tucker(t1, w1a, w1b, t2, w2a, w2b, scale):
  """What PEFT computes, with torch's own gradient: its own of A takes the other product's core and B."""
  first, second = (torch.einsum("ijkl,jr,ip->prkl", t, b, a) for t, a, b in ((t1, w1a, w1b), (t2, w2a, w2b)))
  return first * second * scale


@pytest.mark.parametrize(("name", "case"), GRID)
def test_a_convolution_is_adapted_as_in_peft(name, case, tmp_path, monkeypatch):
  monkeypatch.setattr("peft.tuners.loha.layer.make_weight_cp", _tucker)
  method, case = METHODS[name][0], CASES[case]
  theirs, base, mine = pair(case, tmp_path / "base")
  pixels = np.random.default_rng(0).standard_normal(case.shape).astype(np.float32)
  model = base.add(method, jax.random.key(1))
  close(model(pixels=pixels)["features"], base(pixels=pixels)["features"])
  model = moved(model)
  found = model(pixels=pixels)["features"]
  assert np.abs(found - base(pixels=pixels)["features"]).max() > 1e-2
  model.save_adapter(tmp_path / "adapter")
  again = load(tmp_path / "base", tmp_path / "adapter", family=mine)
  if name != "pissa":  # which is written as a LoRA of twice the rank
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
  adapted = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter", is_trainable=True).eval()
  is_theirs = not (name.startswith("oft") and case.window != (1, 1))  # PEFT's OFT folds overlapping windows there
  if is_theirs:
    wanted = outputs_of(adapted, pixels)
    close(found, wanted)
    if name != "pissa":
      _check_gradients(model, adapted, wanted, pixels)
  if case.groups > 1 and name == "lora":
    with pytest.raises(UserError, match="mixes the groups"):
      model.merge()
    return
  close(model.merge()(pixels=pixels)["features"], found)
  close(found, outputs_of(adapted.merge_and_unload(), pixels))


def _check_gradients(model: Model, adapted: Any, wanted: Any, pixels: np.ndarray) -> None:
  weights = np.random.default_rng(1).standard_normal(wanted.shape).astype(np.float32)
  (wanted * torch.tensor(weights)).sum().backward()
  flat, rest = tiny.trainable(model), tiny.rest_of(model)

  def loss(leaves: Any) -> jax.Array:
    tree = masks.unflatten({**rest, **leaves})
    return jnp.sum(model.forward(tree, {"pixels": pixels})["features"] * weights)

  slopes = tiny.replaced(model, jax.jit(jax.grad(loss))(flat))
  form = next(form for form in FORMATS if form.method is type(model.methods[0]))
  found = write_adapter(slopes, model.bound[0], form)
  given = {key.replace(".default", ""): value.grad for key, value in adapted.named_parameters() if value.requires_grad}
  assert set(found) == {key.replace("lora_magnitude_vector.weight", "lora_magnitude_vector") for key in given}
  for key, value in given.items():
    close(found[key.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")], value, key)


@pytest.mark.parametrize("name", ["lora", "dora", "ia3", "loha", "lokr", "hira", "hra", "oft", "boft", "adalora"])
def test_counts_are_pefts(name, tmp_path):
  theirs, base, _ = pair(CASES["square"], tmp_path / "base")
  model = base.add(METHODS[name][0])
  model.save_adapter(tmp_path / "adapter")
  adapted = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter", is_trainable=True)
  assert tiny.adapter_count(model) == sum(value.numel() for value in adapted.parameters() if value.requires_grad)


@pytest.mark.parametrize("name", ["ia3", "ia3-input", "loha", "hira", "oft", "dora"])
def test_what_acts_at_a_convolution_is_scaled_mixed_and_taken_out(name, tmp_path):
  _, base, _ = pair(CASES["square"], tmp_path / "base")
  pixels = np.random.default_rng(0).standard_normal(CASES["square"].shape).astype(np.float32)
  models = [moved(base.add(METHODS[name][0], jax.random.key(seed))) for seed in (1, 2)]
  each = [adapters.take(model) for model in models]
  mixed = adapters.mixed(base, each)(pixels=pixels, adapter_ids=[1, -1])["features"]
  close(mixed[0], models[1](pixels=pixels)["features"][0])
  close(mixed[1], base(pixels=pixels)["features"][1])
  half = adapters.scaled(models[0], 0.5)
  close(half.merge()(pixels=pixels)["features"], half(pixels=pixels)["features"])
  close(adapters.put(base, each[0])(pixels=pixels)["features"], models[0](pixels=pixels)["features"])
  if name not in ("dora",):
    back = adapters.unmerge(models[0].merge(), each[0])
    close(back(pixels=pixels)["features"], base(pixels=pixels)["features"])


@pytest.mark.parametrize(
  ("method", "case", "message"),
  [
    (methods.VeRA(rank=3, targets=("conv",)), "square", "vera cannot act on 'conv', a convolution; "),
    (methods.FourierFT(targets=("conv",)), "square", "fourierft cannot act on 'conv', a convolution; "),
    (methods.IA3(targets=("conv",)), "line", "of 1 axis: it does at those of 2 or 3"),
    (methods.OFT(targets="con.*"), "room", "of 3 axes: it does at those of 2"),
    (methods.HiRA(targets=("conv",)), "groups", "a convolution of 2 groups"),
    (methods.DoRA(rank=3, targets=("conv",)), "groups", "a convolution of 2 groups"),
    (methods.LoRA(rank=3, targets=("conv",)), "groups", "must divide the rank 3"),
  ],
  ids=lambda part: getattr(part, "name", ""),
)
def test_what_cannot_act_there_says_so(method, case, message, tmp_path):
  _, base, _ = pair(CASES[case], tmp_path / "base")
  with pytest.raises(UserError, match=message):
    base.add(method)


def test_a_window_that_peft_takes_for_a_square_is_not_written(tmp_path):
  _, base, _ = pair(CASES["plane"], tmp_path / "base")
  with pytest.raises(UserError, match="3 x 2"):
    base.add(methods.HRA(rank=2, targets=("conv",))).save_adapter(tmp_path / "adapter")
