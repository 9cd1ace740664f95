"""LoRA files as diffusers' `load_lora_weights` reads them: one file for all components, kohya's form too.

    unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight       [r, in]
    text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_B.weight             [out, r]

Written files hold B times the scale, so that every reader, also one that knows no alpha, computes the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import safe_open

from peftjax import outputs
from peftjax.adapters.adapter import take
from peftjax.adapters.lora_form import factors, filled
from peftjax.composite import components
from peftjax.errors import UserError, nearest
from peftjax.files import parse_json
from peftjax.interop import peft
from peftjax.interop.ldm_names import ldm_name
from peftjax.kinds import FLAG, SETTINGS, mapping_of, number, shown, value_of, whole
from peftjax.methods.lora import LoRA
from peftjax.models.tensor_files import Checkpoint, write_tensors
from peftjax.sites import Site

if TYPE_CHECKING:
  from peftjax.model import Model
  from peftjax.models.unet_config import UNetConfig

KIND = "LoRA file"
NAME = "pytorch_lora_weights.safetensors"
_METADATA = "lora_adapter_metadata"
_TOWER = "text_model."  # what transformers called the bare text encoder's module before version 5, and files still do
# The component that a single model stands for, and what kohya's scripts call components.
_SINGLE = {"UNet2DConditionModel": "unet", "clip_text_model": "text_encoder"}
_KOHYA = {"unet": ("lora_unet",), "text_encoder": ("lora_te", "lora_te1"), "text_encoder_2": ("lora_te2",)}
# Endings of keys: of A and of B.
_ENDINGS = {
  f"{before}{pair[part]}.weight": ("down", "up")[part]
  for before, pair in {
    ".lora_": ("A", "B"),
    ".lora.": ("down", "up"),
    ".lora_linear_layer.": ("down", "up"),
    "_lora.": ("down", "up"),
  }.items()
  for part in (0, 1)
} | {".lora_down.weight": "down", ".lora_up.weight": "up", ".alpha": "alpha"}  # fmt: skip

_RANK = whole(1, 2**31 - 1)
# PEFT's fields that scales follow from: the method's field, and what it may be.
_FIELDS = {
  "r": ("rank", _RANK),
  "lora_alpha": ("alpha", number()),
  "use_rslora": ("rslora", FLAG),
  "rank_pattern": ("rank_pattern", mapping_of(_RANK)),
  "alpha_pattern": ("alpha_pattern", mapping_of(number())),
}
# Those with which PEFT computes more than the factors, and initialisations that change the base's weights.
_MORE = ("use_dora", "lora_bias", "use_qalora", "use_bdlora", "layer_replication", "alora_invocation_tokens",
         "arrow_config", "trainable_token_indices")  # fmt: skip
_CHANGING = ("pissa", "olora", "corda", "loftq")


class _Module(NamedTuple):
  """A module of a component: its site in the whole model, which of its layers, its name below the component, and that
  in latent-diffusion or ""."""

  component: str
  site: Site
  layer: int
  name: str
  older: str


def file_of(path: str | Path) -> Path | None:
  """The LoRA file that a path names: itself, or the one in a folder that is no adapter of PEFT's."""
  path = Path(path).expanduser()
  if path.is_dir():
    return path / NAME if (path / NAME).is_file() and not (path / peft.CONFIG).is_file() else None
  return path if path.suffix == ".safetensors" else None


# Writing ----------------------------------------------------------------------------------------------------------


def save(model: Model, folder: str | Path, overwrite: bool = False) -> None:
  """Writes the model's LoRA as `pytorch_lora_weights.safetensors` beside what is in a folder.

  Args:
    model: of several components, or a denoiser or text encoder alone.
    overwrite: replace a file that was not written here.

  Raises:
    UserError: there is no LoRA, or there is something else that the file has no place for; as `outputs.written`.
  """
  others = [one.method.name for one in model.bound if type(one.method) is not LoRA and one.method.leaf_names]
  if others:
    raise UserError(f"a LoRA file holds LoRA alone, and the model has {others[0]!r}; adapters.to_lora converts some")
  if not model.bound:
    raise UserError("the model has no LoRA to save; add a method first")
  peft.check_single(model)
  known = {(module.site.leaf_path, module.layer): module for module in _modules(model)}
  tensors: dict[str, np.ndarray] = {}
  for one in model.bound:
    for site, leaves in factors(one, take(model)).values():
      if "lora_b_bias" in leaves or site.kind not in ("linear", "conv"):
        raise UserError(f"a LoRA file holds factors of linear layers and convolutions without biases: {site.name}")
      for index, at in enumerate(np.ndindex(site.stack)):
        module = known[site.leaf_path, index]
        tower = _TOWER if module.component in _towers(model) else ""
        key = f"{module.component}.{tower}{module.name}"
        down, up = np.asarray(leaves["lora_a"][at], np.float32), np.asarray(leaves["lora_b"][at], np.float32)
        ones = (1,) * (down.ndim - 2)
        tensors[f"{key}.lora_A.weight"] = np.ascontiguousarray(np.moveaxis(down, (-1, -2), (0, 1)))
        tensors[f"{key}.lora_B.weight"] = np.ascontiguousarray(up.T).reshape(*up.T.shape, *ones)
  with outputs.written(folder, [NAME], KIND, overwrite=overwrite, base=model.folder) as temporary:
    write_tensors(temporary / NAME, tensors)


# Reading ----------------------------------------------------------------------------------------------------------


def load(model: Model, path: str | Path) -> Model:
  """The model with a file's LoRA: of diffusers, in PEFT's spelling or its own, or of kohya's scripts.

  Scales (network alphas, or the config in the file's metadata) are multiplied into B.

  Args:
    path: the file, or a folder with `pytorch_lora_weights.safetensors`.

  Raises:
    UserError: no such file, a tensor that belongs to no module of the model, half of a pair, another shape.
  """
  file = file_of(path)
  if file is None or not file.is_file():
    raise UserError(f"{path}: expected a *.safetensors file of LoRA, or a folder with {NAME}")
  if model.bound:
    raise UserError("the model has an adapter already; put another one on the base")
  try:
    modules = list(_modules(model))
    spelled = {key: place for place, module in enumerate(modules) for key in _spellings(module)}
    pairs = _pairs(file, modules, spelled)
    if any(_is_ragged(module.site, pairs, modules) for module in modules) and model.layer_stacks:
      model = model.unrolled()
      numbers = {(one.component, one.name): place for place, one in enumerate(_modules(model))}
      pairs = {numbers[modules[place].component, modules[place].name]: pair for place, pair in pairs.items()}
      modules = list(_modules(model))
    return filled(model, dict(_stacked(modules, pairs)))
  except UserError as error:
    raise UserError(f"{file.name}: {error}") from None


Pairs = Mapping[int, tuple[np.ndarray, np.ndarray]]
"""Number of a module -> A [*window, in, r] and B [r, out], B with the scale."""


def _pairs(file: Path, modules: list[_Module], spelled: Mapping[str, int]) -> Pairs:
  checkpoint = Checkpoint([file])
  found: dict[int, dict[str, np.ndarray]] = {}
  for key in checkpoint.keys():
    stem, part = next(((key.removesuffix(end), part) for end, part in _ENDINGS.items() if key.endswith(end)), ("", ""))
    if not part:
      raise UserError(f"{key!r} is no factor of LoRA; such files hold other methods")
    if stem not in spelled:
      raise UserError(f"{key!r} belongs to no module of the model; {nearest(stem, spelled, 1)}")
    if part in (parts := found.setdefault(spelled[stem], {})):
      raise UserError(f"{key!r} is there in another spelling, too; leave one out")
    parts[part] = checkpoint.read(key).astype(np.float32)
  if not found:
    raise UserError("no factors of LoRA")
  scales = _scales(file)
  pairs = {}
  for place, parts in found.items():
    module = modules[place]
    missing = [part for part in ("down", "up") if part not in parts]
    if missing:
      raise UserError(f"{module.name!r} has no {missing[0]!r} factor")
    down, up = _shaped(module, parts["down"], parts["up"])
    rank, scale = down.shape[-1], 1.0
    if "alpha" in parts:
      if parts["alpha"].size != 1 or not np.isfinite(parts["alpha"]).all():
        raise UserError(f"{module.name!r} has an alpha of {parts['alpha'].tolist()!r:.60}; expected one finite number")
      scale = float(parts["alpha"].reshape(())) / rank
    elif module.component in scales:
      told, scale = scales[module.component].settings(module.name)
      if told != rank:
        raise UserError(f"{module.name!r} has factors of rank {rank}, and the file's {_METADATA} says {told}")
    pairs[place] = down, up * np.float32(scale)
  return pairs


def _shaped(module: _Module, down: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Torch's factors [r, in, *window] and [out, r, 1, 1] as the site has them; a window of one place may be left out."""
  *window, source, target = module.site.shape
  rank = down.shape[0]
  wanted = (rank, source, *window)
  if not rank:
    raise UserError(f"{module.name!r} has factors of rank 0")
  alike = down.size == rank * source and np.prod(window, dtype=int) == 1
  if (down.shape != wanted and not (alike and down.ndim in (2, 4))) or up.reshape(len(up), -1).shape != (target, rank):
    raise UserError(f"{module.name!r} has factors {down.shape} and {up.shape}; the model's is {source} to {target}"
                    + (f" with a window {tuple(window)}" if window else ""))  # fmt: skip
  return np.moveaxis(down.reshape(wanted), (0, 1), (-1, -2)), up.reshape(target, rank).T


def _scales(file: Path) -> dict[str, LoRA]:
  """Component -> the LoRA whose scales PEFT's config in the file's metadata says."""
  with safe_open(file, "numpy") as opened:
    text = (opened.metadata() or {}).get(_METADATA)
  if not text:
    return {}
  by_component: dict[str, dict[str, Any]] = {}
  for key, value in value_of(file.name, _METADATA, parse_json(text, _METADATA), SETTINGS).items():
    component, _, name = key.partition(".")
    given = by_component.setdefault(component, {})
    if (name in _MORE and value) or (name == "init_lora_weights" and str(value).lower().startswith(_CHANGING)):
      raise UserError(f"{_METADATA}: {key}={shown(value)}: PEFT computes more with it than the factors say; LoRA alone "
                      "was expected")  # fmt: skip
    if name in _FIELDS and value is not None:  # null stands for the default
      field, kind = _FIELDS[name]
      given[field] = value_of(_METADATA, key, value, kind)
  return {component: LoRA(**given) for component, given in by_component.items()}


def _is_ragged(site: Site, pairs: Pairs, modules: list[_Module]) -> bool:
  """Whether a file has some of a stack's layers only, or other ranks for some."""
  ranks = {
    pairs[place][0].shape[-1] if place in pairs else 0
    for place, module in enumerate(modules)
    if module.site is site
  }  # fmt: skip
  return len(ranks) > 1


def _stacked(modules: list[_Module], pairs: Pairs) -> Iterator[tuple[str, tuple[Site, dict[str, Any]]]]:
  """The factors of every site that the file acts on, layers stacked."""
  layers: dict[tuple[str, ...], tuple[Site, list[tuple[np.ndarray, np.ndarray]]]] = {}
  for place, module in enumerate(modules):
    if place in pairs:
      layers.setdefault(module.site.leaf_path, (module.site, []))[1].append(pairs[place])
  for path, (site, found) in layers.items():
    leaves = {
      name: jnp.asarray(np.stack([pair[part] for pair in found]).reshape(*site.stack, *found[0][part].shape))
      for part, name in enumerate(("lora_a", "lora_b"))
    }
    yield ".".join(path), (site, leaves)


# Names ------------------------------------------------------------------------------------------------------------


def _modules(model: Model) -> Iterator[_Module]:
  """The modules that a file may hold factors of."""
  several = components(model)
  alone = next((_SINGLE[name] for name in model.family.model_types if name in _SINGLE), "")
  if not several and not alone:
    raise UserError(f"LoRA files are for Stable Diffusion's parts; expected one of {', '.join(_SINGLE)}")
  for site in model.sites:
    if site.kind in ("linear", "conv") and (not several or site.path[0] in several):
      for index, name in enumerate(site.names):
        component, below = name.split(".", 1) if several else (alone, name)
        below = below.removeprefix(_TOWER)
        older = _in_ldm(model.config[component] if several else model.config, below) if component == "unet" else ""
        yield _Module(component, site, index, below, older)


def _in_ldm(config: UNetConfig, name: str) -> str:
  """A denoiser's module in latent-diffusion; "" where its blocks differ in their layers."""
  layers = set(config.layers_per_block)
  side, _, rest = name.partition("_blocks.")
  types = {"down": config.down_block_types, "up": config.up_block_types}.get(side, ())
  attends = bool(types) and "CrossAttn" in types[int(rest.partition(".")[0])]
  return ldm_name(name, layers.pop(), attends) if len(layers) == 1 else ""


def _towers(model: Model) -> set[str]:
  """The components whose module files call text_model."""
  return {name for name in components(model) or _SINGLE.values() if name.startswith("text_encoder")}


def _spellings(module: _Module) -> Iterator[str]:
  """The keys of a module, without the ending."""
  component, name = module.component, module.name
  parent, _, last = name.removesuffix(".0").rpartition(".")
  older = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}.get(last, last)
  inner = [name, f"{parent}.{older}", f"{parent}.processor.{older}"]
  towers = ("", _TOWER) if component.startswith("text_encoder") else ("",)
  scripted = [f"{tower}{name}" for tower in towers] + ([module.older] if module.older else [])
  for tower in towers:
    yield from (f"{component}.{tower}{one}" for one in inner)
  for script in _KOHYA.get(component, ()):
    yield from (f"{script}_{one}".replace(".", "_") for one in scripted)
  if component == "unet":  # files from before there were several components
    yield from inner
