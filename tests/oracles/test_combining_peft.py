"""Weighted combinations and conversion to LoRA against live PEFT, on bare linear layers of three shapes."""

from __future__ import annotations

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers

import peftjax
from peftjax import adapters, masks, methods
from peftjax.adapters import arithmetic, combining, converting, lora_form
from peftjax.errors import UserError
from tests.adapters import cases
from tests.oracles import test_llama
from tests.oracles.decoders import load_pair

SIZES = {"query": (20, 20), "up": (20, 28), "down": (28, 20)}
LAYERS, WEIGHTS = 2, (0.7, -1.3)
KEY = jax.random.key(5)
SETTINGS = {
  "a": {"targets": ("query", "up"), "rank": 3, "alpha": 7.0},
  "b": {"targets": ("query", "down"), "rank": 3, "alpha": 2.0},
  "wide": {"targets": ("query", "down"), "rank": 5, "alpha": 2.0},
}


class Layers(torch.nn.Module):
  """What the toy's linear layers are in torch."""

  def __init__(self):
    super().__init__()
    made = [{name: torch.nn.Linear(*sizes) for name, sizes in SIZES.items()} for _ in range(LAYERS)]
    self.layer = torch.nn.ModuleList(map(torch.nn.ModuleDict, made))


@functools.cache
def ours(name):
  return cases.with_lora(cases.toy(), len(name), **SETTINGS[name])


def theirs(*names):
  """PEFT's model with adapters of our values."""
  configs = {name: peft.LoraConfig(r=one["rank"], lora_alpha=one["alpha"], target_modules=list(one["targets"]))
             for name in names for one in [SETTINGS[name]]}  # fmt: skip
  model = peft.get_peft_model(Layers(), configs[names[0]], adapter_name=names[0])
  for name in names[1:]:
    model.add_adapter(name, configs[name])
  parameters = dict(model.named_parameters())
  with torch.no_grad():
    for name in names:
      flat = masks.flatten(ours(name).params)
      for path in ours(name).adapter_paths():
        _, module, leaf = path.split(".")
        for index in range(LAYERS):
          key = f"base_model.model.layer.{index}.{module}.lora_{leaf[-1].upper()}.{name}.weight"
          parameters[key].copy_(torch.tensor(np.asarray(flat[path][index]).T))
  return model


def their_deltas(model, name):
  """{path: [layers, in, out]} of an adapter."""
  found = {}
  for module in SIZES:
    layers = [one[module] for one in model.base_model.model.layer]
    if hasattr(layers[0], "get_delta_weight") and name in layers[0].lora_A:
      found[f"layer.{module}.kernel"] = np.stack([one.get_delta_weight(name).detach().numpy().T for one in layers])
  return found


def assert_equal(model, wanted):
  found = adapters.deltas(model)
  assert set(found) == set(wanted)
  for path, change in wanted.items():
    cases.close(found[path], change)


def their_masks(how, density):
  """The elements that our draws keep, in the order in which PEFT prunes."""
  sites = {site.path[-1]: site for name in ("a", "b") for site in ours(name).bound[0].sites}
  for layer in range(LAYERS):
    for module in SIZES:
      used = [name for name in ("a", "b") if module in SETTINGS[name]["targets"]]
      shapes = [SIZES[module]] if how.endswith("_svd") else [(SIZES[module][0], 3), (3, SIZES[module][1])]
      for index, shape in enumerate(shapes):
        key = KEY if how.endswith("_svd") else jax.random.fold_in(KEY, index)
        keys = combining.layer_keys(key, sites[module], len(used))[layer]
        yield from (np.asarray(arithmetic.kept(one, shape, density)).T for one in keys)


@pytest.mark.parametrize(
  ("how", "sign"),
  [(how, "total") for how in (*combining.ON_FACTORS, *combining.ON_WEIGHTS)]
  + [("ties", "frequency"), ("dare_ties", "frequency"), ("ties_svd", "frequency")],
)
def test_add_weighted_adapter(how, sign, monkeypatch):
  names = ("a", "wide") if how in ("cat", "svd") else ("a", "b")
  density = None if how in ("cat", "svd", "linear") else 0.45
  drawn = their_masks(how, density)

  def prune(tensor, density, rescale):
    return tensor * torch.tensor(next(drawn)) / density

  monkeypatch.setattr("peft.utils.merge_utils.random_pruning", prune)
  model = theirs(*names)
  model.base_model.add_weighted_adapter(
    list(names), list(WEIGHTS), "new", how, density=density, majority_sign_method=sign
  )
  combined = adapters.combine(
    [ours(name) for name in names], WEIGHTS, how, density=density, majority_sign=sign, key=KEY
  )
  assert_equal(combined, their_deltas(model, "new"))
  if how == "cat":
    assert lora_form.rank_of(combined.params["layer"]["query"]) == 8


def test_a_clamped_decomposition_is_cut_off_at_a_quantile_of_its_values():
  settings = {"how": "svd", "rank": 2}
  plain, cut = (adapters.combine([ours("a"), ours("b")], WEIGHTS, **settings, clamp=clamp) for clamp in (None, 0.8))
  for leaves, found in zip(plain.params["layer"].values(), cut.params["layer"].values()):
    for layer in range(LAYERS):
      values = np.concatenate([leaves[name][layer].ravel() for name in ("lora_b", "lora_a")])
      limit = torch.quantile(torch.tensor(values), 0.8).item()
      for name in ("lora_a", "lora_b"):
        cases.close(found[name][layer], np.clip(leaves[name][layer], -limit, limit))


@pytest.mark.parametrize("rank", [4, 0.8])
def test_conversion(rank):
  torch.manual_seed(0)
  model = peft.get_peft_model(Layers(), peft.LoHaConfig(r=2, target_modules=["query", "up"], init_weights=False))
  layers = {module: [one[module] for one in model.base_model.model.layer] for module in ("query", "up")}
  changes = {f"layer.{module}.kernel": jnp.asarray(np.stack([one.get_delta_weight("default").detach().numpy().T
             for one in each])) for module, each in layers.items()}  # fmt: skip
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    config, tensors = peft.convert_to_lora(model, rank)
  settings = {"rank": rank} if isinstance(rank, int) else {"energy": rank}
  found = converting.from_deltas(cases.toy(), changes, **settings)
  for path, change in adapters.deltas(found.model).items():
    for layer in range(LAYERS):
      module = f"layer.{layer}.{path.split('.')[1]}"
      a, b = (tensors[f"base_model.model.{module}.lora_{one}.weight"].detach().numpy() for one in "AB")
      cases.close(change[layer], (b @ a).T)
      wanted = np.linalg.norm(changes[path][layer] - (b @ a).T) / np.linalg.norm(changes[path][layer])
      np.testing.assert_allclose(found.errors[path][layer], wanted, rtol=1e-4, atol=1e-6)
      assert found.ranks[path][layer] == config.rank_pattern.get(module, rank)


def test_what_peft_refuses_is_refused():
  with pytest.raises(ValueError, match="same r"):
    theirs("a", "wide").base_model.add_weighted_adapter(["a", "wide"], [1.0, 1.0], "new", "linear")
  with pytest.raises(UserError, match="needs one rank"):
    adapters.combine([ours("a"), ours("wide")], how="linear")


def test_a_scaled_adapter_is_saved_as_it_acts(tmp_path):
  """PEFT's config has no factor: LoRA's is in B, any other method's is refused, and several at once have no file."""
  _, base = load_pair(test_llama.config_of("llama"), tmp_path / "base")
  ids = np.array([[7, 30, 11, 45, 8], [19, 5, 3, 4, 6]])

  def with_values(method):
    model = base.add(method, KEY)
    flat = masks.flatten(model.params)
    for number, path in enumerate(sorted(model.adapter_paths())):
      flat[path] = flat[path] + 0.2 * jax.random.normal(jax.random.key(number), flat[path].shape)
    return model.with_params(masks.unflatten(flat))

  targets = ("q_proj", "v_proj")
  plain = with_values(methods.LoRA(rank=3, alpha=5, targets=targets))
  for number, (model, factor) in enumerate([
    (plain, -0.7),
    (plain, 0.0),
    (with_values(methods.LoRA(rank=2, init="pissa", targets=targets)), 0.5),
  ]):  # fmt: skip
    scaled = adapters.scaled(model, factor)
    expected = np.asarray(scaled(input_ids=ids)["logits"])
    assert np.abs(expected - model(input_ids=ids)["logits"]).max() > 0.1
    scaled.save_adapter(tmp_path / str(number))
    loaded = peftjax.load(tmp_path / "base", adapter=tmp_path / str(number))
    np.testing.assert_allclose(loaded(input_ids=ids)["logits"], expected, atol=1e-5)
    torch_base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs_on_it = peft.PeftModel.from_pretrained(torch_base, tmp_path / str(number)).eval()
    with torch.no_grad():
      np.testing.assert_allclose(theirs_on_it(input_ids=torch.tensor(ids)).logits, expected, atol=1e-5)
  ia3 = adapters.scaled(with_values(methods.IA3()), 0.5)
  with pytest.raises(
    UserError, match=r"ia3 is scaled by 0\.5, which a PEFT adapter has no place for; adapters.to_lora"
  ):
    ia3.save_adapter(tmp_path / "ia3")
  both = adapters.Bank(base).add("x", plain).add("y", plain).use("x", "y")
  with pytest.raises(UserError, match="the model holds several adapters; save them one by one"):
    both.save_adapter(tmp_path / "both")
