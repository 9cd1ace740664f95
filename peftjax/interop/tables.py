"""Word embeddings and output layers in PEFT's files: what tying means there, copies of a tied table, new tokens.

PEFT wraps modules. Where the output layer is tied to the word embeddings, an adapter on one of the two modules, or a
copy in `modules_to_save`, leaves the other as it was; with `ensure_weight_tying` both are wrapped alike, and their
tensors are in the file twice.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from peftjax.errors import UserError
from peftjax.interop import targeting
from peftjax.interop.formats.base import Config, Format, Tensors
from peftjax.interop.leaves import module_key
from peftjax.models.pretrained import CONFIG, read_config
from peftjax.vocabulary import output_path, resized, table_path, tied_site, untied

if TYPE_CHECKING:
  from peftjax.model import Model

log = logging.getLogger(__name__)

TYING = "ensure_weight_tying"
ROWS = "trainable_token_indices"
_WEIGHTS = ("weight", "base_layer.weight", "modules_to_save.weight")
# Tensor of the output layer -> that of the embeddings which it is, transposed or not.
_COPIES = {
  "weight": ("weight", False),
  "base_layer.weight": ("base_layer.weight", False),
  "lora_A.weight": ("lora_embedding_B", True),
  "lora_B.weight": ("lora_embedding_A", True),
}


def table_module(model: Model) -> str:
  """PEFT's name of the word embeddings; "" where the model declares none."""
  path = table_path(model)
  return module_key(model, path.rpartition(".")[0]) if path else ""


def output_module(model: Model) -> str:
  """PEFT's name of the output layer, tied or not; "" where the model has none over the vocabulary."""
  return module_key(model, output_path(model).rpartition(".")[0]) if hasattr(model.module, "head_name") else ""


def is_vocabulary(model: Model, name: str) -> bool:
  """Whether a base leaf is the word embeddings' or the output layer's."""
  output = output_module(model)
  return name == table_path(model) or bool(output and module_key(model, name.rpartition(".")[0]) == output)


def prepared(model: Model, config: Config, form: Format) -> tuple[Model, Config]:
  """(the model with an output layer of its own where the adapter needs one, the config as it is for that model).

  Raises:
    UserError: the adapter is on a table that torch does not read.
  """
  table, output = table_module(model), output_module(model)
  entries = config.get("modules_to_save") or ()
  kinds = form.kinds or form.method.kinds
  check_rows_and_bias(model, config, form, tied_site(model) is not None)
  covers_ties = "unembedding" in form.method.kinds
  if table and not covers_ties and (targeting.is_saved(entries, table) or _is_on(config, table, kinds, "embedding")):
    check_read(model, table)
  if tied_site(model) is None:
    return model, ({**config, TYING: False} if TYING in config else config)
  if config.get(TYING):
    return model, _on_table(config, table, output)
  on_output = _is_on(config, output, kinds, "linear")
  return (
    untied(model) if on_output or targeting.is_saved(entries, output) or targeting.is_saved(entries, table) else model
  ), config


def check_rows_and_bias(model: Model, config: Config, form: Format, is_tied: bool) -> None:
  """Refuses what PEFT computes otherwise than it says of an output layer that is tied to the word embeddings.

  Args:
    config: an adapter_config.json.
    is_tied: whether the base's output layer is, before an adapter made it one of its own.

  Raises:
    UserError: rows of a table beside an adapter on it or on its output layer, or of one whose output layer has a bias;
      a tie that is ensured where the output layer has a bias.
  """
  table, output = table_module(model), output_module(model)
  if config.get(ROWS) and _is_on(config, table, form.kinds or form.method.kinds, "embedding"):
    raise UserError(f"{ROWS} beside an adapter on {table!r}, where PEFT has one of the two")
  if not output or not is_tied:
    return
  entries, kinds = config.get("modules_to_save") or (), form.kinds or form.method.kinds
  on_output = _is_on(config, output, kinds, "linear") or targeting.is_saved(entries, output)
  on_table = _is_on(config, table, kinds, "embedding") or targeting.is_saved(entries, table)
  is_rows = "unembedding" in form.method.kinds and (on_table or not config.get("target_modules"))
  has_bias = bool(getattr(model.module, "tied_bias", ""))
  if has_bias and (is_rows or config.get(ROWS)):
    raise UserError(f"rows of {table!r}: PEFT then leaves out the bias of {output!r}, which is tied to it")
  if has_bias and config.get(TYING) and (on_output or on_table):
    raise UserError(f"{TYING}: PEFT does not tie {output!r} to {table!r}, since it has a bias; leave it at false")
  if on_output and config.get(ROWS):
    raise UserError(f"{ROWS} beside an adapter on {output!r}: it is tied to {table!r}, and PEFT changes its rows too")


def is_tied_on_disk(model: Model) -> bool:
  """Whether the output layer is tied to the word embeddings in the model's folder, whatever a method made of it."""
  if tied_site(model) is not None or model.folder is None or not (model.folder / CONFIG).is_file():
    return tied_site(model) is not None
  return bool(getattr(model.family.parse(read_config(model.folder)), "tie_word_embeddings", False))


def _is_on(config: Mapping[str, Any], module: str, kinds: tuple[str, ...], kind: str) -> bool:
  return kind in kinds and targeting.is_targeted(config, module)


def check_read(model: Model, table: str) -> None:
  """Raises a `UserError` if torch reads copies of the table, which PEFT does not wrap with it: T5's `shared`."""
  copies = model.family.copies.get(f"{table}.weight")
  if copies:
    others = " and ".join(repr(one.removesuffix(".weight")) for one in copies)
    raise UserError(f"in PEFT an adapter on {table!r} does nothing: torch reads {others}, which are tied to it")


def _on_table(config: Config, table: str, output: str) -> Config:
  """The config with the embeddings in place of the output layer that is tied to them, as PEFT has it."""
  found = dict(config)
  for key in ("target_modules", "modules_to_save"):
    names = config.get(key)
    if not isinstance(names, str) and names and output in names:
      found[key] = list(dict.fromkeys(table if name == output else name for name in names))
  return found


def with_shared(model: Model, form: Format, tensors: Tensors) -> Tensors:
  """With a tied output layer's stored base under the embeddings' name too: in torch they are one tensor."""
  table, output = (f"{form.prefix}{name}." for name in (table_module(model), output_module(model)))
  base = tensors.get(f"{output}base_layer.weight")
  if tied_site(model) is None or base is None or any(f"{table}{leaf}" in tensors for leaf in _WEIGHTS):
    return tensors
  return {**tensors, f"{table}weight": base}


def with_vocabulary(model: Model, form: Format, tensors: Tensors, tokens: int = 0) -> Model:
  """The model with as many tokens as the adapter's tables, where it brings them all.

  Args:
    tokens: that a tokenizer in the adapter's folder knows; 0: there is none. As in PEFT's `AutoPeftModel` the model
      gets as many where it has fewer, and the new rows are the mean of the others.

  Raises:
    UserError: it brings one of the model's two tables alone.
  """
  table, output = table_module(model), output_module(model)
  found = {name: _rows(tensors, f"{form.prefix}{name}") for name in (table, output) if name}
  sizes = {rows for rows in found.values() if rows}
  if not sizes and table and tokens > model.hf_config.get("vocab_size", tokens):
    log.info("the adapter's tokenizer has %d tokens, and the base %d rows", tokens, model.hf_config["vocab_size"])
    return resized(model, tokens, mean=True)
  if not sizes or sizes == {model.hf_config.get("vocab_size")}:
    return model
  needed = [name for name in found if name == table or tied_site(model) is None]
  lacking = [name for name in needed if not found[name]]
  if len(sizes) > 1 or lacking:
    brought = ", ".join(f"{name!r} with {rows} rows" for name, rows in found.items() if rows)
    raise UserError(
      f"the adapter brings {brought}, and the model has {model.hf_config.get('vocab_size')} tokens; "
      "give the base that was resized, or save the adapter with save_embedding_layers=True"
    )
  return resized(model, sizes.pop())


def _rows(tensors: Tensors, module: str) -> int:
  return next((len(tensors[key]) for leaf in _WEIGHTS if (key := f"{module}.{leaf}") in tensors), 0)


def has_other_vocabulary(model: Model, base_config: Mapping[str, Any]) -> bool:
  """Whether the model's number of tokens is not the base's on disk, so that its tables go into the adapter."""
  return base_config.get("vocab_size") != model.hf_config.get("vocab_size")


# What PEFT has put into the name of a copy; of a module's inner modules with the adapter's name, any at all.
_INNER = (r"\.original_module\.", r"\.modules_to_save\.", r"\.modules_to_save\.[^.]+\.")


def without_copies(model: Model, form: Format, tensors: Tensors) -> Tensors:
  """Without second copies of a tensor: a tied output layer's, and what PEFT writes of each module to save beside it.

  Raises:
    UserError: a copy differs.
  """
  found = dict(tensors)
  if tied_site(model) is not None:
    table, output = table_module(model), output_module(model)
    for leaf, (other, is_transposed) in _COPIES.items():
      copy, original = f"{form.prefix}{output}.{leaf}", f"{form.prefix}{table}.{other}"
      if copy in found and original in found:
        value = found.pop(copy)
        if not np.array_equal(value.T if is_transposed else value, found[original]):
          raise UserError(f"{copy!r} differs from {original!r}, to which the output layer is tied")
  for copy, original in _bias_copies(model, form, found).items():
    if not np.array_equal(found.pop(copy), found[original]):
      raise UserError(f"{copy!r} differs from {original!r}, which is the same bias in torch")
  for key in tensors:
    plain = next((one for inner in _INNER if (one := re.sub(inner, ".", key)) != key and one in found), None)
    if plain is not None:
      value = found.pop(key)
      if ".modules_to_save." in key and not np.array_equal(value, found[plain]):
        raise UserError(f"{key!r} differs from {plain!r}, which PEFT stores with the same values")
  return found


def with_bias_copies(model: Model, form: Format, config: Config, tensors: Tensors) -> Tensors:
  """With the other name of an output layer's bias, where PEFT writes the module that has it too."""
  beside, inside = _bias_names(model, form)
  if not beside:
    return tensors
  if tied_site(model) is not None:
    return {**tensors, inside[0]: tensors[beside]} if beside in tensors else tensors
  owner = beside.removeprefix(form.prefix).rpartition(".")[0]
  whole = config.get("bias") == "all" or targeting.is_saved(config.get("modules_to_save") or (), owner)
  held = [tensors[key] for key in inside if key in tensors]
  return {**tensors, beside: held[0]} if whole and held else tensors


def _bias_copies(model: Model, form: Format, keys: Collection[str]) -> dict[str, str]:
  """{the other name of an output layer's bias: the one that it has here}, where both are among keys."""
  beside, inside = _bias_names(model, form)
  both = [(key, beside) for key in inside if key in keys and beside in keys]
  return dict(both) if tied_site(model) is not None else {other: key for key, other in both}


def _bias_names(model: Model, form: Format) -> tuple[str, tuple[str, ...]]:
  """(an output layer's bias by its name beside it, those in it) of torch's masked language models; else ("", ())."""
  path, output = getattr(model.module, "tied_bias", ""), output_module(model)
  if not path:
    return "", ()
  beside = f"{form.prefix}{module_key(model, path.rpartition('.')[0])}.bias"
  return beside, (f"{form.prefix}{output}.bias", f"{form.prefix}{output}.base_layer.bias")


def with_copies(model: Model, form: Format, tensors: Tensors) -> Tensors:
  """With the tensors of a tied output layer, as PEFT writes them where the tie is ensured."""
  table, output = table_module(model), output_module(model)
  found = dict(tensors)
  for leaf, (other, is_transposed) in _COPIES.items():
    original = f"{form.prefix}{table}.{other}"
    if original in tensors:
      value = tensors[original]
      found[f"{form.prefix}{output}.{leaf}"] = np.ascontiguousarray(value.T) if is_transposed else value
  return found
