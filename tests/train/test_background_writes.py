"""A save of which several writes fail: its error is raised once, the others are taken, and nothing is left to print."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time

import jax
import jax.numpy as jnp
import pytest
import tensorstore
from orbax.checkpoint._src import asyncio_utils
from orbax.checkpoint._src.serialization import jax_array_handlers

from peftjax.errors import UserError
from peftjax.train import background_writes, manifest
from peftjax.train.checkpoint import Base, Checkpoints
from peftjax.train.faults import faults_as_one_line
from peftjax.train.state import TrainState

FULL = "RESOURCE_EXHAUSTED: Error writing {} in OCDBT database"


async def as_task(seconds: float, name: str, ended: list[str]) -> None:
  await asyncio.sleep(seconds)
  ended.append(name)
  raise ValueError(FULL.format(name))


async def as_thread(seconds: float, name: str, ended: list[str]) -> None:
  """As Orbax writes its metadata."""

  def write() -> None:
    time.sleep(seconds)
    ended.append(name)
    raise OSError(28, "No space left on device")

  await asyncio.to_thread(write)


async def as_tensorstore(seconds: float, name: str, ended: list[str]) -> None:
  promise, write = tensorstore.Promise.new()

  def end() -> None:
    ended.append(name)
    promise.set_exception(ValueError(FULL.format(name)))

  threading.Timer(seconds, end).start()
  await write


WRITES = (as_task, as_thread, as_tensorstore)


@pytest.mark.parametrize("kind", WRITES)
def test_all_writes_have_ended_when_the_first_one_s_error_is_raised(tmp_path, printed, kind):
  ended: list[str] = []

  async def save() -> None:
    # each in a gathering of its own, as the pieces of an array are
    parts = [asyncio.gather(kind(0.02 * number, str(number), ended)) for number in range(1, 4)]
    await asyncio.gather(*(asyncio.ensure_future(wait(one)) for one in parts))

  async def wait(part):
    await part

  with Checkpoints(tmp_path), pytest.raises((ValueError, OSError), match="Error writing 1|No space left"):
    asyncio_utils.run_sync(save())
  assert sorted(ended) == ["1", "2", "3"]
  assert printed() == []


def test_a_write_that_never_ends_is_given_up(tmp_path, printed, monkeypatch):
  monkeypatch.setattr(background_writes, "SECONDS", 0.1)
  promise, write = tensorstore.Promise.new()

  async def wait() -> None:
    await write

  async def save() -> None:
    await asyncio.gather(as_task(0, "1", []), wait())

  with Checkpoints(tmp_path), pytest.raises(ValueError, match="Error writing 1"):
    asyncio_utils.run_sync(save())
  promise.set_result(1)
  assert printed() == []


def state() -> TrainState:
  leaves = {f"layer.{number}": jnp.full((8, 8), number, jnp.float32) for number in range(6)}
  return TrainState(jnp.asarray(1), leaves, {"mu": leaves}, jax.random.key_data(jax.random.key(0)), None)


@pytest.mark.parametrize("kind", WRITES)
def test_a_save_of_which_every_array_fails_is_one_line(tmp_path, printed, monkeypatch, kind):
  ended: list[str] = []

  numbers = itertools.count()

  async def write(*_, **__) -> None:
    number = next(numbers)
    await asyncio.gather(kind(0.01 * number, str(number), ended))

  monkeypatch.setattr(jax_array_handlers.serialization, "async_serialize_from_host", write)
  line = r"^saving: [nN]o space left.*; there is no checkpoint yet, and the same command"
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(state(), {}, Base("somewhere", "a" * 64))
    with pytest.raises(UserError, match=line), faults_as_one_line("saving", checkpoints.whole):
      checkpoints.wait()
  until = time.monotonic() + 300
  while len(ended) < 14 or any(one.name == "array_type_handler" for one in threading.enumerate()):
    assert time.monotonic() < until, ended  # six leaves; in a thread of their own their moments, the step and the key
    time.sleep(0.01)
  assert printed() == []


def test_an_orbax_that_has_it_elsewhere_is_left_as_it_is(monkeypatch):
  monkeypatch.setattr(background_writes, "asyncio_utils", None)
  background_writes.end_together()


@pytest.mark.parametrize("nth", [1, 2, 4])
def test_a_folder_that_cannot_be_made_is_told_at_once(tmp_path, printed, monkeypatch, nth):
  """The checkpoint's, or an item's; and not by a thread for which the arrays' own would wait for minutes."""
  real, calls = manifest.WithManifest.create, itertools.count(1)

  async def create(self):
    if next(calls) == nth:
      raise OSError(28, "No space left on device", str(self.get()))
    return await real(self)

  monkeypatch.setattr(manifest.WithManifest, "create", create)
  with (
    pytest.raises(UserError, match=r"^saving: No space left on device \(.*c/1.*tmp\); there is no checkpoint yet"),
    Checkpoints(tmp_path / "c") as checkpoints,
    faults_as_one_line("saving", checkpoints.whole),
  ):
    checkpoints.save(state(), {}, Base("somewhere", "a" * 64))
  assert printed() == []
