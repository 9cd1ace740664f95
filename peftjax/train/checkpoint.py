"""Checkpoints: the trainable leaves, the optimizer's state, the step, the key and the data's position. Nothing frozen.

    checkpoints/300/trainable     the trainable leaves under their dotted names
    checkpoints/300/training      "step", "rng" and the optimizer's leaves
    checkpoints/300/average       the moving average of the trainable leaves, of a run that has one
    checkpoints/300/meta          JSON: data position, base model's path and content hash, and for every array its
                                  shape, dtype and fingerprint; and a digest of all that
    checkpoints/300/manifest      SHA-256 of every file (`peftjax.train.manifest`)

Orbax writes them in the background and renames a finished one into place, so a killed save leaves no checkpoint. Files
must be the ones that were saved, byte by byte, and a restored array must have the fingerprint it was saved with.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import itertools
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from peftjax.errors import UserError, nearest
from peftjax.masks import Tree, flatten, unflatten
from peftjax.optim import LENGTHS
from peftjax.train import manifest
from peftjax.train.background_writes import end_together
from peftjax.train.faults import first_line, is_passing
from peftjax.train.fingerprint import fingerprints
from peftjax.train.state import TrainState

log = logging.getLogger(__name__)
_TRIES = 5
_AVERAGE = "ema:"  # before the names of the moving average's leaves


@dataclasses.dataclass(frozen=True)
class Base:
  """The frozen model that a checkpoint belongs to: where it was, and its content hash (`fingerprint.digest`)."""

  path: str
  hash: str


class _NewestAndBest:
  """Orbax's policy: the newest checkpoints stay, and `best` does."""

  def __init__(self, keep: int):
    self.keep, self.best = keep, 0

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
    """Which of the checkpoints, oldest first, stay."""
    del context
    return self.stay([one.step for one in checkpoints])

  def stay(self, steps: Sequence[int]) -> list[bool]:
    """Which of the checkpoints of these steps, ascending, stay."""
    oldest = len(steps) - self.keep
    return [place >= oldest or step == self.best for place, step in enumerate(steps)]


class Checkpoints:
  """The checkpoints of one run, newest last. Use as a context manager: leaving it waits for a save under way.

  Args:
    folder: the run's ``checkpoints``.
    keep: how many stay, of the newest.
    reads: nothing is written, cleaned up or set aside, so that the run itself may go on meanwhile.

  Raises:
    UserError: the folder cannot be made or read, or a checkpoint in it is a link.
  """

  def __init__(self, folder: Path, keep: int = 2, reads: bool = False):
    self.folder = folder.resolve()
    logging.getLogger("absl").addFilter(_not_of_orbax)
    end_together()
    self._staying = _NewestAndBest(keep)
    writes: dict[str, Any] = {"preservation_policy": self._staying, "cleanup_tmp_directories": True, "create": True}
    options = ocp.CheckpointManagerOptions(
      enable_background_delete=False,
      temporary_path_class=manifest.WithManifest,
      async_options=ocp.AsyncOptions(create_directories_asynchronously=False),  # and tells at once which cannot be
      **({"read_only": True, "create": False, "save_interval_steps": 0} if reads else writes),
    )
    try:
      for place in self.folder.iterdir() if self.folder.is_dir() else ():
        if place.is_symlink():
          raise UserError(f"{place} is a link; a checkpoint is read, and removed, only where it lies")
      self._manager = ocp.CheckpointManager(self.folder, options=options)
    except OSError as error:
      raise UserError(f"cannot use the folder {self.folder}: {error.strerror or error}") from None

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, *error: object) -> None:
    try:
      self._manager.close()
    except Exception as late:
      if error[0] is None:
        raise
      log.debug("a save that failed on the way out: %s", late)  # what ends the run has been said already

  def steps(self) -> list[int]:
    """The steps that have a finished checkpoint, ascending."""
    return sorted(self._manager.all_steps())

  def whole(self) -> list[int]:
    """The steps whose checkpoint is on the disk now, ascending; Orbax forgets one that is to go before it is gone."""
    places = self.folder.iterdir() if self.folder.is_dir() else ()
    return sorted(int(place.name) for place in places if place.name.isdigit() and place.is_dir())

  def keep_best(self, step: int) -> None:
    """From now on the checkpoint of this step stays, and no longer that of an earlier call; 0: none."""
    self._staying.best = step

  def save(self, state: TrainState, position: Any, base: Base) -> None:
    """Starts saving under the state's step; returns once the state may be donated again.

    Args:
      state: on devices.
      position: the data iterator's, made of what JSON holds.
      base: what the frozen leaves were loaded from.

    Raises:
      OSError: the folder of the checkpoints is gone, or none can be made in it.
    """
    if jax.process_index() == 0 and not self.folder.is_dir():  # Orbax would make it anew
      raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.folder))
    trainable, training, average = _as_items(state)
    arrays = trainable | training | average
    meta = {"position": position, "base": dataclasses.asdict(base), "arrays": _describe(arrays)}
    meta["manifest"] = True
    meta["digest"] = _digest(meta)
    items = {
      "trainable": ocp.args.StandardSave(trainable),
      "training": ocp.args.StandardSave(training),
      "meta": ocp.args.JsonSave(meta),
      **({"average": ocp.args.StandardSave(average)} if average else {}),
    }
    self._manager.save(int(state.step), args=ocp.args.Composite(**items))

  def wait(self) -> None:
    """Waits for a save under way; raises its error if it failed."""
    self._manager.wait_until_finished()

  def drop_after(self, step: int) -> None:
    """Deletes the checkpoints of later steps."""
    for later in self.steps():
      if later > step:
        self._manager.delete(later)

  def drop_rest(self) -> None:
    """Deletes what neither is among the newest nor the best: one that was the best until an evaluation after the last
    save goes with no save any more."""
    steps = self.steps()
    for step, stays in zip(steps, self._staying.stay(steps), strict=True):
      if not stays:
        self._manager.delete(step)

  def reached_preemption(self, step: int) -> bool:
    """Whether any process of the run was asked to end; all processes agree on it."""
    return self._manager.reached_preemption(step)

  def restore(self, like: TrainState, base: Base) -> tuple[TrainState, Any] | None:
    """(state, position) of the newest undamaged checkpoint, or None if there is no checkpoint.

    A damaged one is reported, set aside as ``N.damaged``, and passed over.

    Args:
      like: arrays or shapes with shardings, as the state is to lie.
      base: of this run; a checkpoint of another base is refused.

    Raises:
      UserError: another base, other leaves, shapes or dtypes; the machine cannot read now; all checkpoints are damaged.
    """
    steps, damaged = self.steps(), []
    for step in reversed(steps):
      try:
        found = self._restore(step, like, base)
      except UserError:
        raise
      except Exception as error:
        if is_passing(error):
          raise UserError(f"{self.folder / str(step)} cannot be read now: {first_line(error)}") from None
        log.warning("checkpoint %d is damaged and passed over: %s", step, first_line(error))
        damaged.append(step)
        continue
      for one in damaged:
        self._set_aside(one)
      return found
    if steps:
      raise UserError(f"{self.folder}: all checkpoints are damaged; start again in another folder")
    return None

  def _set_aside(self, step: int) -> None:
    """Renames a damaged checkpoint, so that nothing takes it for one and its step can be saved again."""
    place = self.folder / str(step)
    if jax.process_index() == 0:
      names = (f"{step}.damaged" + (f".{number}" if number else "") for number in itertools.count())
      target = next(target for name in names if not (target := self.folder / name).exists())
      try:
        place.rename(target)
      except OSError as error:
        raise UserError(f"{place} is damaged and cannot be set aside: {error.strerror}") from None
      log.warning("it lies in %s now, and may be removed", target)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices(f"checkpoint {step} set aside")
    self._manager.reload()

  def restore_trainable(self, like: Tree, base: Base, step: int = 0, averaged: bool = False) -> tuple[int, Tree]:
    """(step, trainable leaves) of a checkpoint.

    Args:
      like: arrays or shapes with shardings, as the leaves are to lie.
      step: whose; 0: the newest.
      averaged: the moving average of the leaves in their place, in their dtypes.

    Raises:
      UserError: no such checkpoint, another base, other leaves, or the checkpoint is damaged.
    """
    for _ in range(_TRIES):
      if not self.steps():
        raise UserError(f"{self.folder}: no checkpoint; train first")
      if step and step not in self.steps():
        raise UserError(f"{self.folder}: the checkpoint of step {step} is not there; {self.steps()} are")
      at = step or self.steps()[-1]
      try:
        return at, self._trainable(at, like, base, averaged)
      except UserError:
        if (self.folder / str(at)).is_dir():
          raise
        self._manager.reload()  # the run went on meanwhile, and keeps newer ones
    raise UserError(f"{self.folder}: its checkpoints change faster than they can be read; try again later")

  def _trainable(self, step: int, like: Tree, base: Base, averaged: bool) -> Tree:
    expected = flatten(like)
    item = "average" if averaged else "trainable"
    stored = _as_average(expected) if averaged else expected
    try:
      meta = self._meta(step, ("meta", item))
      _check_base(meta, base)
      recorded = {name: entry for name, entry in meta["arrays"].items() if _item_of(name) == item}
      _check_arrays(recorded, stored)
      found = self._arrays(step, item, stored, recorded)
      if averaged:
        found = {name: found[_AVERAGE + name].astype(leaf.dtype) for name, leaf in expected.items()}
    except UserError:
      raise
    except Exception as error:
      raise UserError(f"{self.folder / str(step)}: damaged: {first_line(error)}") from None
    return unflatten(found)

  def _restore(self, step: int, like: TrainState, base: Base) -> tuple[TrainState, Any]:
    trainable, training, average = _as_items(like)
    meta = self._meta(step)
    _check_base(meta, base)
    _check_arrays(meta["arrays"], trainable | training | average)
    found = self._arrays(step, "trainable", trainable, meta["arrays"])
    found |= self._arrays(step, "training", training, meta["arrays"])
    if average:
      found |= self._arrays(step, "average", average, meta["arrays"])
    return _from_items(found, like), meta["position"]

  def _meta(self, step: int, items: tuple[str, ...] = ()) -> dict[str, Any]:
    """The meta of a checkpoint whose files, or those of some items, are whole."""
    listed = manifest.verify(self.folder / str(step), items)
    found = dict(self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"])
    saved = found.pop("digest", None)  # checkpoints of the first version have none
    if saved is not None and saved != _digest(found):
      raise ValueError(f"meta has the digest {_digest(found)[:16]}, saved with {str(saved)[:16]}")
    if found.get("manifest") and not listed:  # earlier checkpoints have none
      raise ValueError("manifest is missing")
    return found

  def _arrays(self, step: int, item: str, like: Mapping[str, Any], recorded: Mapping[str, Any]) -> dict[str, Any]:
    args = ocp.args.StandardRestore(jax.tree.map(_abstract, dict(like)))
    found = self._manager.restore(step, args=ocp.args.Composite(**{item: args}))[item]
    for name, print_now in fingerprints(found).items():
      if print_now != recorded[name]["fingerprint"]:
        raise ValueError(f"{name} has the fingerprint {print_now}, saved with {recorded[name]['fingerprint']}")
    return found


def _as_items(state: TrainState) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
  """Three flat dicts of arrays: what trains, the rest, the average; leaves of the optimizer are named by their path in
  its state."""
  optimizer = {
    _name_in_optimizer(path): leaf
    for path, leaf in jax.tree_util.tree_flatten_with_path(state.opt_state)[0]
    if not _of_config(path)
  }
  average = {} if state.average is None else {_AVERAGE + name: leaf for name, leaf in flatten(state.average).items()}
  return flatten(state.trainable), {"step": state.step, "rng": state.rng} | optimizer, average


def _name_in_optimizer(path: Any) -> str:
  return "opt:" + jax.tree_util.keystr(path, simple=True, separator=".")


def _of_config(path: Any) -> bool:
  """Whether a leaf of the optimizer's state follows from the config, and is not saved."""
  return isinstance(path[-1], jax.tree_util.GetAttrKey) and path[-1].name in LENGTHS


def _item_of(name: str) -> str:
  """The item that an array of a checkpoint is in."""
  if name.startswith(_AVERAGE):
    return "average"
  return "training" if name in ("step", "rng") or name.startswith("opt:") else "trainable"


def _as_average(expected: Mapping[str, Any]) -> dict[str, Any]:
  """The shapes of the average of some leaves, laid as they are."""
  return {
    _AVERAGE + name: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=leaf.sharding)
    for name, leaf in expected.items()
  }


def _from_items(found: Mapping[str, Any], like: TrainState) -> TrainState:
  optimizer, structure = jax.tree_util.tree_flatten_with_path(like.opt_state)
  trainable = unflatten({name: found[name] for name in flatten(like.trainable)})
  average = None
  if like.average is not None:
    average = unflatten({name: found[_AVERAGE + name] for name in flatten(like.average)})
  leaves = [leaf if _of_config(path) else found[_name_in_optimizer(path)] for path, leaf in optimizer]
  opt_state = jax.tree.unflatten(structure, leaves)
  return TrainState(found["step"], trainable, opt_state, found["rng"], average)


def _digest(meta: Mapping[str, Any]) -> str:
  return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _describe(arrays: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  return {
    name: {"shape": list(arrays[name].shape), "dtype": str(arrays[name].dtype), "fingerprint": one}
    for name, one in fingerprints(dict(arrays)).items()
  }


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _check_base(meta: Mapping[str, Any], base: Base) -> None:
  saved = Base(**meta["base"])
  if saved.hash != base.hash:
    raise UserError(
      f"the checkpoint belongs to another base model: {saved.path} with hash {saved.hash[:12]}; "
      f"{base.path} has {base.hash[:12]}"
    )


def _check_arrays(recorded: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
  for name in sorted(set(recorded) ^ set(expected)):
    if name in recorded:
      raise UserError(f"the checkpoint holds {name!r}, which this run has not; {nearest(name, expected)}")
    raise UserError(f"the checkpoint lacks {name!r}, which this run has; {nearest(name, recorded)}")
  for name, leaf in expected.items():
    saved = recorded[name]
    if saved["shape"] != list(leaf.shape) or saved["dtype"] != str(leaf.dtype):
      raise UserError(
        f"the checkpoint's {name!r} is {saved['dtype']}{saved['shape']}; expected {leaf.dtype}{list(leaf.shape)}"
      )


def _not_of_orbax(record: logging.LogRecord) -> bool:
  """Whether a message is to be shown: Orbax's threads log an error's traceback before the error itself is raised, and
  it warns of every folder that is opened to be read."""
  return "/orbax/" not in record.pathname
