"""Writing a model as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import jax.numpy as jnp

from peftjax.errors import UserError
from peftjax.models import writing
from peftjax.quantize_model import dequantize_leaves

if TYPE_CHECKING:
  from peftjax.model import Model


def save(model: Model, folder: str | Path, overwrite: bool = False) -> None:
  """See `Model.save`."""
  if model.adapter_paths():
    raise UserError("the model has separate adapter leaves; use model.merge().save() or model.save_adapter()")
  hf_config = {**model.hf_config, "architectures": [model.architecture]}
  tensors = writing.to_checkpoint(model.family, dequantize_leaves(model.params, jnp.float32), model.stacks)
  writing.save(folder, *model.family.saved(model.config, hf_config, tensors), model.folder, overwrite)
