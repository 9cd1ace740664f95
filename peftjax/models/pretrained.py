"""Hugging Face model folders: config.json and *.safetensors, in and out.

Loading fills one leaf at a time, each layer into its place in the stack, so that the peak of host memory stays near the
size of the model. The set of keys and every shape must be what config.json implies.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import hashlib
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax import masks
from peftjax.buffers import is_buffer
from peftjax.errors import UserError, nearest
from peftjax.files import can_be_named, read_json
from peftjax.models.family import DIFFUSERS, MODEL, Family, checkpoint_axes, checkpoint_key, expanded
from peftjax.models.gguf import GGUFCheckpoint, file_in
from peftjax.models.parts import lay, read_parts, tensor_part
from peftjax.models.sinusoids import sinusoids
from peftjax.models.tensor_files import Checkpoint, Tensors, as_leaf, empty
from peftjax.quantize import is_quantized, like, relative_error

CONFIG = "config.json"
WEIGHTS = "model.safetensors"


def read_config(folder: str | Path) -> dict[str, Any]:
  """The config.json of a model folder.

  Raises:
    UserError: no such folder or file, or the file is no JSON object.
  """
  folder = Path(folder)
  if not folder.is_dir():
    siblings = [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
    close = nearest(folder.name, siblings)
    hint = close if close.startswith("did") else "expected a Hugging Face model folder, packaged:NAME or hub:OWNER/NAME"
    raise UserError(f"model.path: no folder {str(folder)!r}; {hint}")
  path = folder / CONFIG
  if not path.is_file():
    raise UserError(f"{folder} has no {CONFIG}; expected a Hugging Face model folder")
  return read_json(path)


def is_model_folder(folder: Path) -> bool:
  """Whether the folder has a model's config.json."""
  try:
    return "model_type" in read_json(folder / CONFIG)
  except (OSError, UserError):
    return False


def weight_files(folder: str | Path) -> list[Path]:
  """The safetensors files of a model folder, sharded or not, or its GGUF file.

  Raises:
    UserError: there are none, or several GGUF files, or the index names one that is missing.
  """
  folder = Path(folder)
  for name in (MODEL, DIFFUSERS):
    whole = folder / f"{name}.safetensors"
    if whole.is_file():  # before an index, as in transformers
      return [whole]
    index = folder / index_of(name)
    if index.is_file():
      return [folder / shard for shard in _shard_names(index)]
  files = sorted(folder.glob("*.safetensors"))
  if not files and any(folder.glob("*.gguf")):
    return [file_in(folder)]
  if not files:
    others = [path.name for path in folder.glob("*.bin")]
    hint = f"; {others[0]} is a pickle, which is never read: convert it to safetensors" if others else ""
    raise UserError(f"{folder} has no *.safetensors{hint}")
  return files


def index_of(name: str) -> str:
  """The file that lists the shards of `name`."""
  return f"{name}.safetensors.index.json"


def _shard_names(index: Path) -> list[str]:
  """Names of the files that an index lists, all of them in its folder; a file may be a link, its folder may not."""
  found = read_json(index).get("weight_map")
  if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found.values()):
    raise UserError(f"{index}: weight_map: expected an object of tensors and the files that hold them")
  root = index.parent.resolve()
  names = sorted(set(found.values()))
  for name in names:
    path = Path(name)
    if not can_be_named(name):
      raise UserError(f"{index} names {name!r:.80}, which no file can be called")
    if path.is_absolute() or ".." in path.parts or not (index.parent / path).parent.resolve().is_relative_to(root):
      raise UserError(f"{index} names {name!r}, which is not in its folder")
    if path.suffix != ".safetensors":
      raise UserError(f"{index} names {name!r}; expected a *.safetensors file")
    if not (index.parent / path).is_file():
      raise UserError(f"{index} names {name!r}, which is not there; the download is incomplete")
  return names


@functools.lru_cache(maxsize=16)
def _file_hash(path: Path, size: int, modified: int) -> str:
  del size, modified  # part of the key: a changed file is hashed again
  digest = hashlib.sha256()
  with path.open("rb") as file:
    while block := file.read(1 << 22):
      digest.update(block)
  return digest.hexdigest()


@functools.lru_cache(maxsize=16)
def _tensor_hashes(path: Path, size: int, modified: int) -> tuple[tuple[str, str], ...]:
  """Name, and dtype, shape and sha256 of the bytes, of each tensor of a safetensors file."""
  del size, modified
  checkpoint, found = Checkpoint([path]), []
  for key in checkpoint.keys():
    digest = hashlib.sha256()
    for _, block in checkpoint.blocks(key):
      digest.update(block.reshape(-1).view(np.uint8).data)
    found.append((key, f"{checkpoint.dtype(key)} {checkpoint.shape(key)} {digest.hexdigest()}"))
  return tuple(found)


def content_hash(folder: str | Path) -> str:
  """sha256 over a model folder's config.json and tensors, by which adapters refer to their base.

  How tensors are divided among files is not in it.
  """
  files = weight_files(folder)
  if files[0].suffix == ".gguf":
    return file_hash(folder)
  tensors = sorted(one for path in files for one in _tensor_hashes(path, *_state(path)))
  config = Path(folder) / CONFIG
  return hashlib.sha256(repr((_file_hash(config, *_state(config)), tensors)).encode()).hexdigest()


def file_hash(folder: str | Path) -> str:
  """sha256 over a model folder's config.json and weights as files, by which adapters referred to their base before."""
  digest = hashlib.sha256()
  for path in [Path(folder) / CONFIG, *weight_files(folder)]:
    digest.update(_file_hash(path, *_state(path)).encode())
  return digest.hexdigest()


def _state(path: Path) -> tuple[int, int]:
  stat = path.stat()
  return stat.st_size, stat.st_mtime_ns


# Loading ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Tie:
  """Word embeddings and the output layer that config.json ties to them: both one table, as leaf names.

  Attributes:
    table: name of the embeddings' leaf.
    output: name that the kernel of an output layer of its own would have.
  """

  table: str
  output: str


def is_tied(folder: str | Path, family: Family, shapes: masks.Tree, stacks: Mapping[str, int], tie: Tie) -> bool:
  """Whether the files hold one table, or two that are equal; what transformers goes by where config.json differs.

  Args:
    shapes: of a model, with or without an output layer of its own.
  """
  checkpoint = open_checkpoint(weight_files(folder))
  keys = set(checkpoint.keys())
  rename = _prefix_fix(family, keys, shapes, stacks)
  table, output = rename(checkpoint_key(family, tie.table)), checkpoint_key(family, tie.output)
  return not {table, output} <= keys or _are_equal(checkpoint, table, output)


def as_saved(folder: str | Path, family: Family) -> Family:
  """The family, with leaves that a model folder lacks, and may lack, among those that a new task needs.

  A BERT that was saved as a masked language model has no pooler, which a classifier reads: transformers draws one.
  """
  possible = {prefix for one in family.architectures.values() for prefix in one.may_lack}
  try:
    keys = open_checkpoint(weight_files(folder)).keys() if possible else ()
  except UserError:  # said where they are read
    return family
  endings = {prefix: checkpoint_key(family, f"{prefix}.kernel").partition(".")[2] for prefix in possible}
  lacking = {prefix for prefix, ending in endings.items() if not any(f".{key}".endswith(f".{ending}") for key in keys)}
  if not lacking:
    return family
  architectures = {
    name: dataclasses.replace(one, head=(*one.head, *(prefix for prefix in one.may_lack if prefix in lacking)))
    for name, one in family.architectures.items()
  }
  return dataclasses.replace(family, architectures=architectures)


def _are_equal(checkpoint: Tensors, key: str, other: str) -> bool:
  if checkpoint.shape(key) != checkpoint.shape(other):
    return False
  return all(np.array_equal(a, b) for (_, a), (_, b) in zip(checkpoint.blocks(key), checkpoint.blocks(other)))


def open_checkpoint(files: list[Path]) -> Tensors:
  """The tensors of a model's files."""
  return GGUFCheckpoint(files[0]) if files[0].suffix == ".gguf" else Checkpoint(files)


_kept: contextvars.ContextVar[dict[Any, Any] | None] = contextvars.ContextVar("kept", default=None)


@contextlib.contextmanager
def reading_once() -> Iterator[None]:
  """In the block, a leaf that was read from a folder is not read again: many runs over one base hold it once."""
  token = _kept.set({})
  try:
    yield
  finally:
    _kept.reset(token)


def load_params(
  folder: str | Path,
  family: Family,
  shapes: masks.Tree,
  stacks: Mapping[str, int],
  fresh: tuple[str, ...],
  seed: int = 0,
  place: Callable[[masks.Tree], masks.Tree] | None = None,
  tie: Tie | None = None,
  new_head: bool = False,
) -> tuple[masks.Tree, list[str], dict[str, float]]:
  """(parameters, names of leaves that were drawn, relative errors of quantised leaves) of a model folder.

  Args:
    shapes: the tree of shapes and dtypes to fill; where a leaf is quantised, each layer is as soon as it is read.
    stacks: dotted path of each stack -> layers.
    fresh: dotted prefixes of the leaves that may be missing: the task's head, which is then drawn with `seed`.
    place: the tree of shapes -> its shardings: each process reads the parts of its own devices. Leaves that are
      quantised while they are read, and those of GGUF files, are read whole and then laid.
    tie: a table that the files may hold under either of two names.
    new_head: draw all `fresh` leaves.

  Raises:
    UserError: a tensor is missing, is not known, or has another shape.
  """
  checkpoint = open_checkpoint(weight_files(folder))
  keys = set(checkpoint.keys())
  rename = _prefix_fix(family, keys, shapes, stacks)
  wanted = {name: rename(checkpoint_key(family, name)) for name in expanded(shapes, stacks)}
  _read_elsewhere(folder, family, checkpoint, wanted, tie)
  missing = {name for name, key in wanted.items() if key not in keys}
  heads = {name for name in wanted if any(name.startswith(prefix + ".") for prefix in fresh)}
  drawn = heads if new_head else missing & heads
  _check_head(folder, family, checkpoint, shapes, {name: wanted[name] for name in heads - drawn})
  if missing - drawn:
    first = sorted(missing - drawn)[0]
    hint = nearest(wanted[first], keys, 1)
    raise UserError(f"{folder} lacks {len(missing - drawn)} tensors, such as {wanted[first]!r}; {hint}")
  passed_over = (*family.unused, r"(.*\.)?num_batches_tracked")  # by which torch weighs means over all batches
  unknown = [
    key for key in keys - set(wanted.values()) if not any(re.fullmatch(pattern, key) for pattern in passed_over)
  ]
  if unknown:
    raise UserError(
      f"{folder} has {len(unknown)} tensors that its config.json does not imply, such as {min(unknown)!r}"
    )
  errors: dict[str, float] = {}

  def read(name: str, target: np.ndarray) -> None:
    if name in drawn:
      target[...] = np.asarray(draw(name, target.shape, target.dtype, jax.random.key(seed)))
    else:
      _read_into(target, name, wanted[name], family, checkpoint)

  def part(name: str, index: Any, shape: tuple[int, ...]) -> np.ndarray:
    if name in drawn:
      return np.asarray(draw(name, shape, jnp.float32, jax.random.key(seed)))[index]
    assert isinstance(checkpoint, Checkpoint)
    return tensor_part(checkpoint, wanted[name], family, name, index, shape)

  shardings = masks.flatten(place(shapes)) if place is not None else {}
  kept = _kept.get()
  leaves: dict[str, Any] = {}
  for path, leaf in masks.flatten(shapes).items():
    one = (str(folder), path, str(leaf), shardings.get(path))
    is_drawn = not drawn.isdisjoint(masks.layer_names(path, stacks))
    if kept is not None and one in kept and not is_drawn:
      leaves[path], error = kept[one]
      errors |= {path: error} if error is not None else {}
      continue
    if shardings and isinstance(checkpoint, Checkpoint) and not is_quantized(leaf):
      leaves[path] = read_parts(path, leaf, stacks, shardings[path], part)
    else:
      whole = _fill(path, leaf, stacks, read, errors)
      leaves[path] = jax.tree.map(lay, whole, shardings[path]) if shardings else whole
    if kept is not None:
      kept[one] = leaves[path], errors.get(path)
  return masks.unflatten(leaves), sorted(drawn), errors


def _check_head(
  folder: str | Path, family: Family, checkpoint: Tensors, shapes: masks.Tree, wanted: Mapping[str, str]
) -> None:
  """Raises a `UserError` if the checkpoint's head is of other labels."""
  flat = masks.flatten(shapes)
  for name, key in sorted(wanted.items()):
    found, implied = checkpoint.shape(key), flat[name].shape
    axes = checkpoint_axes(family, name, len(found))
    if (found if axes is None else tuple(found[axis] for axis in axes)) != implied:
      raise UserError(
        f"{folder}: the head's {key!r} is for {found[0]} labels, and {implied[-1]} are wanted; "
        "model.new_head=True draws a new head"
      )


def _read_elsewhere(
  folder: str | Path,
  family: Family,
  checkpoint: Tensors,
  wanted: dict[str, str],
  tie: Tie | None,
) -> None:
  """Where a leaf's key is not in the files, one of those that hold the same tensor; copies that differ are refused."""
  keys = set(checkpoint.keys())
  for name, key in list(wanted.items()):
    for one, others in family.copies.items():
      if key == one or key.endswith(f".{one}"):
        same = [other for other in (key.removesuffix(one) + rest for rest in others) if other in keys]
        wanted[name] = key if key in keys else (same or [key])[0]
        differing = [other for other in same if not _are_equal(checkpoint, wanted[name], other)]
        if differing:
          raise UserError(f"{folder}: {differing[0]!r} differs from {wanted[name]!r}; they are one table here")
  if tie is not None and wanted[tie.table] not in keys and (output := checkpoint_key(family, tie.output)) in keys:
    wanted[tie.table] = output


def kernels_of(
  folder: str | Path, family: Family, shapes: masks.Tree, stacks: Mapping[str, int]
) -> Callable[[Any], jax.Array]:
  """site -> its kernel as the folder has it, float32, layers stacked where the site is; read when asked for."""
  checkpoint = open_checkpoint(weight_files(folder))
  rename = _prefix_fix(family, set(checkpoint.keys()), shapes, stacks)

  def read(name: str, target: np.ndarray) -> None:
    _read_into(target, name, rename(checkpoint_key(family, name)), family, checkpoint)

  def kernel(site: Any) -> jax.Array:
    leaf = jax.ShapeDtypeStruct((*site.stack, *site.shape), jnp.float32)
    return jnp.asarray(_fill(".".join((*site.path, "kernel")), leaf, stacks, read, {}))

  return kernel


def _prefix_fix(family: Family, keys: set[str], shapes: masks.Tree, stacks: Mapping[str, int]) -> Callable[[str], str]:
  """How the tree's keys are spelled in this checkpoint: the bare model's prefix may be there or not."""
  prefixes = {architecture.prefix for architecture in family.architectures.values()} - {""}
  wanted = {checkpoint_key(family, name) for name in expanded(shapes, stacks)}
  best: Callable[[str], str] = lambda key: key  # noqa: E731
  most = len(wanted & keys)
  for prefix in sorted(prefixes):
    for candidate in (lambda key, p=prefix: f"{p}.{key}", lambda key, p=prefix: key.removeprefix(f"{p}.")):
      hits = len({candidate(key) for key in wanted} & keys)
      if hits > most:
        best, most = candidate, hits
  return best


def _fill(
  path: str,
  leaf: Any,
  stacks: Mapping[str, int],
  read: Callable[[str, np.ndarray], None],
  errors: dict[str, float],
) -> Any:
  stack = masks.stack_shape(path, stacks)
  names = masks.layer_names(path, stacks)
  if is_quantized(leaf):
    layers = []
    for name in names:
      target = empty(leaf.shape[len(stack) :], np.float32)
      read(name, target)
      kernel = as_leaf(target)
      layers.append(like(leaf, kernel))
      errors[path] = max(errors.get(path, 0.0), float(relative_error(kernel, layers[-1])))
    return jax.tree.map(lambda *arrays: jnp.stack(arrays).reshape(*stack, *arrays[0].shape), *layers)
  whole = empty(leaf.shape, leaf.dtype)
  for at, name in zip(np.ndindex(stack), names):
    read(name, whole[at] if leaf.ndim > len(stack) else whole[(*at, None)])
  return as_leaf(whole)


def _read_into(target: np.ndarray, name: str, key: str, family: Family, checkpoint: Tensors) -> None:
  """Fills a leaf, which is a view into the array of its stack, block by block."""
  shape = checkpoint.shape(key) or (1,)
  axes = checkpoint_axes(family, name, len(shape))
  found = shape if axes is None else tuple(shape[axis] for axis in axes)
  if found != target.shape:
    raise UserError(f"{key!r} has shape {found} as a leaf; config.json implies {target.shape}")
  stored = target if axes is None else target.transpose(np.argsort(axes))
  for rows, block in checkpoint.blocks(key):
    stored[rows] = block


def draw(name: str, shape: tuple[int, ...], dtype: Any, key: jax.Array, std: float = 0.02) -> jax.Array:
  """A fresh leaf, as Hugging Face initialises: N(0, std²), biases zero, normalisation scales one.

  What tells YOLOS's tokens apart is N(0, 1), of the size of the states that it is added to. Hugging Face begins at 0,
  where all detection tokens are one, and at 0.02 attention has found no place after thousands of updates.
  """
  kind = name.rpartition(".")[2]
  if kind == "sinusoids":
    return jnp.asarray(sinusoids(*shape), dtype)
  if kind in ("bias", "scale_offset") or (kind == "mean" and is_buffer(name)):
    return jnp.zeros(shape, dtype)
  if kind in ("detection_tokens", "mid_position_embeddings"):
    std = 1.0
  if kind == "scale" or is_buffer(name):
    return jnp.ones(shape, dtype)
  return (std * jax.random.normal(jax.random.fold_in(key, zlib.crc32(name.encode())), shape)).astype(dtype)


def draw_params(shapes: masks.Tree, stacks: Mapping[str, int], key: jax.Array, std: float = 0.02) -> masks.Tree:
  """A fresh tree; each layer's leaf depends on its own name alone, not on how layers are stored."""
  leaves = {}
  for path, leaf in masks.flatten(shapes).items():
    axes = len(masks.stack_shape(path, stacks))
    layers = [draw(name, leaf.shape[axes:], leaf.dtype, key, std) for name in masks.layer_names(path, stacks)]
    whole = jnp.stack(layers).reshape(leaf.shape) if axes else layers[0]
    leaves[path] = like(leaf, whole) if is_quantized(leaf) else whole
  return masks.unflatten(leaves)
