"""Rows of the word embeddings that train beside another method: the `trainable_token_indices` of PEFT's LoRA.

PEFT wraps the embeddings in a token adapter; here they are a method of their own, `TrainableTokens`, on the same model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from peftjax.errors import UserError
from peftjax.interop import tables, targeting
from peftjax.interop.formats.base import Config, Format, Tensor, Tensors
from peftjax.interop.formats.tokens import FORMATS, KEY
from peftjax.interop.leaves import module_names, write_adapter
from peftjax.kinds import list_of, value_of, whole
from peftjax.methods.bound import Bound
from peftjax.methods.trainable_tokens import TrainableTokens

if TYPE_CHECKING:
  from peftjax.model import Model

INDICES = "trainable_token_indices"
_INFIX = ".token_adapter."
_IDS = list_of(whole(0, 2**31 - 1), 2**20, "token ids")

FORM = dataclasses.replace(
  FORMATS[0],
  tensors=lambda method, site: {} if site.kind == "unembedding" else {"token_rows": Tensor(f"token_adapter.{KEY}")},
)
"""How the rows are stored beside another method's tensors."""


def taken(config: Config, tensors: Tensors) -> tuple[Tensors, Tensors]:
  """(the tensors of token adapters, the others), if the config has any."""
  if not config.get(INDICES):
    return {}, tensors
  rows = {key: value for key, value in tensors.items() if _INFIX in key}
  return rows, {key: value for key, value in tensors.items() if key not in rows}


def method_of(config: Mapping[str, Any], model: Model) -> TrainableTokens | None:
  """The method that `trainable_token_indices` describes; None where there are none.

  Raises:
    UserError: rows of a module that is not the word embeddings, nor an output layer that is tied to them.
  """
  indices = config.get(INDICES)
  if not indices:
    return None
  table, output = tables.table_module(model), tables.output_module(model)
  entries = indices if isinstance(indices, Mapping) else {table: indices}
  chosen = {name: value_of("adapter_config.json", INDICES, ids, _IDS) for name, ids in entries.items()}
  for name, ids in list(chosen.items()):
    is_table = bool(table) and targeting.is_saved([name], table)
    is_tied = tables.tied_site(model) is not None and targeting.is_saved([name], output)
    if not is_table and not is_tied:
      raise UserError(f"{INDICES}: {name!r} is neither the word embeddings, {table!r}, nor tied to them")
    if ids != next(iter(chosen.values())):
      raise UserError(f"{INDICES}: {name!r} has other tokens than the table that it is tied to")
  tree_name = next(name for name, key in module_names(model).items() if key == table)
  return TrainableTokens(token_indices=next(iter(chosen.values())), targets=(tree_name,))


def beside(bound: tuple[Bound, ...], form_of: Mapping[Any, Format]) -> tuple[Bound, Bound] | None:
  """(a method, the token rows beside it), where PEFT's config of the one can say the other."""
  rows = [one for one in bound if isinstance(one.method, TrainableTokens)]
  others = [one for one in bound if one.method.leaf_names and one not in rows]
  fits = len(rows) == 1 and len(others) == 1 and type(others[0].method) in form_of
  return (others[0], rows[0]) if fits and INDICES in form_of[type(others[0].method)].defaults else None


def written(model: Model, rows: Bound) -> tuple[Config, Tensors]:
  """(entries of the config, tensors) of token rows beside another method.

  Raises:
    UserError: they are not the word embeddings'.
  """
  table = tables.table_module(model)
  tensors = write_adapter(model, rows, FORM)
  if list(tensors) != [f"{FORM.prefix}{table}.token_adapter.{KEY}"]:
    raise UserError(f"PEFT's {INDICES} are rows of the word embeddings, {table!r}; merge and save the model")
  method: Any = rows.method
  return {INDICES: list(method.token_indices)}, tensors
