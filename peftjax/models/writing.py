"""Writing Hugging Face model folders: config.json, safetensors in shards, and the files beside them."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from peftjax import masks, outputs
from peftjax.models.family import MODEL, Family, checkpoint_axes, checkpoint_key, expanded
from peftjax.models.pretrained import CONFIG, index_of
from peftjax.models.tensor_files import write_tensors

MAX_SHARD_BYTES = 5 * 10**9
# What makes the model's inputs and outputs: tokenizers of all kinds, chat templates, processors, generation's settings.
_BESIDE = (
  "tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "tokenizer.model*",
  "spiece.model", "sentencepiece*.model", "*.spm", "bpe.codes", "dict.txt", "chat_template.*",
  "additional_chat_templates/*.jinja", "generation_config.json", "*processor_config.json",
)  # fmt: skip
_ADAPTER = "adapter_config.json"


def to_checkpoint(family: Family, params: masks.Tree, stacks: Mapping[str, int]) -> dict[str, np.ndarray]:
  """Tensors by Hugging Face's keys and layouts."""
  flat = masks.flatten(params)
  tensors = {}
  for name, (path, index) in expanded(params, stacks).items():
    leaf = flat[path] if index is None else flat[path][index]
    value = np.asarray(leaf)
    axes = checkpoint_axes(family, name, value.ndim)
    value = value if axes is None else value.transpose(np.argsort(axes))
    tensors[checkpoint_key(family, name)] = np.ascontiguousarray(value).reshape(value.shape)  # of a scalar too
  return tensors


def with_dtype(hf_config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
  """config.json with a dtype that holds every tensor exactly; transformers casts all of them to the one it states."""
  floats = {value.dtype for value in tensors.values() if jnp.issubdtype(value.dtype, jnp.floating)}
  if "model_type" not in hf_config or not floats:
    return hf_config
  widest = str(functools.reduce(jnp.promote_types, floats))
  return {**hf_config, "dtype": widest, **({"torch_dtype": widest} if "torch_dtype" in hf_config else {})}


def save(
  folder: str | Path,
  hf_config: Mapping[str, Any],
  tensors: Mapping[str, np.ndarray],
  source: Path | None = None,
  overwrite: bool = False,
  name: str = MODEL,
) -> None:
  """Writes a Hugging Face model beside what is in a folder.

  Args:
    source: the folder of the base, whose tokenizer's and processors' files are copied along.
    overwrite: replace files that were not written here.
    name: what the files of tensors are called.

  Raises:
    UserError: as `outputs.written`; the folder holds another model's tokenizer, processor or settings of generation,
      under a name that the source's folder has not, so that they would be read with this one.
  """
  shards = _shards(tensors)
  copies = files_beside(source) if source is not None else []
  files, index = _shard_names(name, len(shards)), index_of(name)
  names = [CONFIG, *files, *([index] if len(shards) > 1 else []), *copies]
  clashes = {_ADAPTER: "transformers would put that adapter on this model"}
  if source is not None and not overwrite:
    others = [one for one in files_beside(Path(folder)) if one not in names]
    reason = f"it would be read with this model, and {source} has none"
    clashes |= dict.fromkeys(outputs.of_other_origin(Path(folder), others), reason)
  if len(shards) > 1:
    clashes[f"{name}.safetensors"] = "it would be loaded in place of the index"
  with outputs.written(folder, names, "model", overwrite=overwrite, base=source, clashes=clashes) as temporary:
    (temporary / CONFIG).write_text(json.dumps(dict(hf_config), indent=2, sort_keys=True) + "\n")
    _save_shards(temporary, dict(zip(files, shards)), index)
    for one in copies:
      assert source is not None
      (temporary / one).parent.mkdir(exist_ok=True)
      shutil.copyfile(source / one, temporary / one)


def files_beside(folder: Path) -> list[str]:
  """Names of a model folder's files, beside config and weights, that the model needs to be used as it was."""
  found = {path for pattern in _BESIDE for path in folder.glob(pattern) if path.is_file()}
  return sorted(path.relative_to(folder).as_posix() for path in found)


def _shards(tensors: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
  shards: list[dict[str, np.ndarray]] = [{}]
  size = 0
  for key, value in tensors.items():
    if size and size + value.nbytes > MAX_SHARD_BYTES:
      shards.append({})
      size = 0
    shards[-1][key] = value
    size += value.nbytes
  return shards


def _shard_names(name: str, count: int) -> list[str]:
  shards = [f"{name}-{index:05d}-of-{count:05d}" for index in range(1, count + 1)]
  return [f"{shard}.safetensors" for shard in (shards if count > 1 else [name])]


def _save_shards(folder: Path, shards: Mapping[str, Mapping[str, np.ndarray]], index: str) -> None:
  for name, shard in shards.items():
    write_tensors(folder / name, shard)
  if len(shards) > 1:
    weight_map = {key: name for name, shard in shards.items() for key in shard}
    total = sum(value.nbytes for shard in shards.values() for value in shard.values())
    (folder / index).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2))
