"""Which leaves of a model are quantised, what may train beside them, and what the rounding costs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax

from peftjax import masks
from peftjax.errors import UserError, nearest
from peftjax.methods.base import Context
from peftjax.quantize import KINDS, block_of, dequantize, is_quantized, kind_of, quantize, relative_error
from peftjax.sites import Site

if TYPE_CHECKING:
  from peftjax.model import Model

OUTPUT_LAYERS = ("lm_head", "embed_out")


@dataclasses.dataclass(frozen=True)
class Quantization:
  """How a base is quantised.

  Attributes:
    kind: int8, int4 or nf4.
    block: inputs that share a scale; less where it does not divide their number.
    exclude: patterns of modules that stay as they are, besides the task's head and the output layer.
  """

  kind: str = "nf4"
  block: int = 64
  exclude: masks.Patterns = ()

  def __post_init__(self) -> None:
    if self.kind not in KINDS:
      raise UserError(f"model.quantize: unknown {self.kind!r}; {nearest(self.kind, KINDS)}")
    if self.block < 8:
      raise UserError(f"model.quantize_block={self.block}: expected at least 8, such as 64")


def as_quantization(given: Quantization | str | None) -> Quantization | None:
  """The settings that a kind's name stands for; None for none."""
  return Quantization(given) if isinstance(given, str) and given else given or None


def quantized(model: Model, how: Quantization | str = "nf4") -> Model:
  """See `Model.quantized`."""
  if model.bound:
    raise UserError("quantise the model before methods are added, or after model.merge()")
  how = as_quantization(how) or Quantization()
  params = quantize_leaves(model.params, how, quantized_paths(how, model.context) - model.quantized_paths())
  errors = {} if model.is_abstract else errors_of(model.params, params)
  return dataclasses.replace(model, params=params, quantization_errors={**model.quantization_errors, **errors})


def quantized_paths(how: Quantization, context: Context) -> set[str]:
  """Dotted tree paths of the kernels to quantise: those of linear modules outside the head and the output layer.

  Raises:
    UserError: `exclude` matches nothing or parts a stack of layers, or a kernel has no blocks.
  """
  sites = [site for site in context.sites if site.kind == "linear" and not context.in_head(site.names[0])]
  sites = [site for site in sites if site.folding is None and not site.names[0].endswith(OUTPUT_LAYERS)]
  if how.exclude:
    names = [name for site in context.sites if site.kind == "linear" for name in site.names]
    masks.match_table(how.exclude, names, "model.quantize_exclude")
  chosen = [site for site in sites if not _excluded(how, site)]
  if not chosen:
    raise UserError("model.quantize: there is no linear module to quantise outside the head and model.quantize_exclude")
  for site in chosen:
    try:
      block_of(site.shape[0], how.block)
    except UserError as error:
      raise UserError(f"model.quantize: {site.name}: {error}; list it in model.quantize_exclude") from None
  return {".".join((*site.path, "kernel")) for site in chosen}


def _excluded(how: Quantization, site: Site) -> bool:
  hits = {bool(how.exclude) and masks.matches(how.exclude, name) for name in site.names}
  if len(hits) > 1:
    raise UserError(
      f"model.quantize_exclude treats the layers of {site.name} differently; set model.scan_layers=False for that"
    )
  return hits.pop()


def quantize_leaves(params: masks.Tree, how: Quantization, paths: set[str]) -> masks.Tree:
  """The tree with the leaves at `paths` quantised; of shapes where they are shapes."""

  def one(leaf: Any) -> Any:
    return quantize(leaf, kind=how.kind, block=how.block)

  flat = masks.flatten(params)
  for path in paths:
    leaf = flat[path]
    flat[path] = jax.eval_shape(one, leaf) if isinstance(leaf, jax.ShapeDtypeStruct) else one(leaf)
  return masks.unflatten(flat)


def dequantize_leaves(params: masks.Tree, dtype: Any) -> masks.Tree:
  """The tree with quantised leaves as arrays of a dtype, and the others as they are."""
  flat = masks.flatten(params)
  return masks.unflatten({path: dequantize(leaf, dtype) if is_quantized(leaf) else leaf for path, leaf in flat.items()})


def errors_of(before: masks.Tree, after: masks.Tree) -> dict[str, float]:
  """Dotted path -> ‖W - W_q‖ / ‖W‖ of every leaf that is quantised in `after` and not in `before`."""
  floats, flat = masks.flatten(before), masks.flatten(after)
  found = {
    path: relative_error(floats[path], leaf)
    for path, leaf in flat.items()
    if is_quantized(leaf) and not is_quantized(floats[path])
  }
  return {path: float(error) for path, error in jax.device_get(found).items()}


def summary(errors: Mapping[str, float]) -> dict[str, Any]:
  """{"leaves", "mean_error", "largest_error", "largest_error_at"} of relative errors; {} if there are none."""
  if not errors:
    return {}
  worst = max(errors, key=lambda path: errors[path])
  return {
    "leaves": len(errors),
    "mean_error": math.fsum(errors.values()) / len(errors),
    "largest_error": errors[worst],
    "largest_error_at": worst,
  }


def check_frozen(params: masks.Tree, labels: masks.Tree, method: str) -> None:
  """Raises a `UserError` if a method trains a leaf that is quantised."""
  groups = masks.flatten(labels)
  for path, leaf in masks.flatten(params).items():
    if is_quantized(leaf) and groups[path] != masks.FROZEN:
      raise UserError(
        f"{method} trains {path!r}, which is stored as {kind_of(leaf)} and cannot train: take a method that leaves it "
        "frozen (lora, dora, ia3, houlsby, prefix, bitfit, ...), model.quantize='' or model.quantize_exclude"
      )
