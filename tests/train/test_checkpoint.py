"""Saved and restored bit by bit; what does not fit or is damaged is refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from peftjax import masks
from peftjax.errors import UserError
from peftjax.train.checkpoint import Base, Checkpoints

BASE = Base("somewhere", "a" * 64)


def same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def trained(tiny, steps, **options):
  run = tiny(**options)
  step = jax.jit(run.step, donate_argnums=0)
  state, states = run.state, []
  for index in range(steps):
    state, _ = step(state, run.frozen, tiny.batch(seed=index))
    states.append(jax.tree.map(np.array, state))
  return run, state, states


def test_a_save_holds_the_state_of_its_moment(tiny, tmp_path):
  """Although the state's buffers are donated to the next steps while the save goes on."""
  run = tiny()
  step = jax.jit(run.step, donate_argnums=0)
  state, _ = step(run.state, run.frozen, tiny.batch())
  expected = jax.tree.map(np.array, state)
  with Checkpoints(tmp_path / "c") as checkpoints:
    checkpoints.save(state, {"next": 7, "nested": [1, "x"]}, BASE)
    for _ in range(20):
      state, _ = step(state, run.frozen, tiny.batch())
  with Checkpoints(tmp_path / "c") as checkpoints:
    found, position = checkpoints.restore(state, BASE)
  same(found, expected)
  assert position == {"next": 7, "nested": [1, "x"]}


def test_only_the_last_are_kept(tiny, tmp_path):
  run, _, states = trained(tiny, 4)
  with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
    for state in states:
      checkpoints.save(jax.tree.map(jnp.asarray, state), {}, BASE)
    checkpoints.wait()
    assert checkpoints.steps() == [3, 4]
  assert run.frozen
  names = {path.name for path in (tmp_path / "c").rglob("*")}
  assert not any("embedding" in name for name in names)


def test_exact_dtypes(tiny, tmp_path):
  run = tiny()
  half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), run.state.trainable)
  state = run.state._replace(trainable=half)
  with Checkpoints(tmp_path / "c") as checkpoints:
    checkpoints.save(state, {}, BASE)
    checkpoints.wait()
    same(checkpoints.restore(state, BASE)[0], state)
    with pytest.raises(UserError, match=r"is bfloat16.*expected float32"):
      checkpoints.restore(run.state, BASE)


def test_no_checkpoint(tiny, tmp_path):
  run = tiny()
  with Checkpoints(tmp_path / "c") as checkpoints:
    assert checkpoints.restore(run.state, BASE) is None
    with pytest.raises(UserError, match="no checkpoint"):
      checkpoints.restore_trainable(run.state.trainable, BASE)


def test_another_tree_or_base_is_refused(tiny, tmp_path):
  run, state, _ = trained(tiny, 1)
  bigger = masks.combine(state.trainable, {"classifier": {"scale": jnp.ones((3,))}})
  smaller = {"classifier": state.trainable["classifier"]}
  with Checkpoints(tmp_path / "c") as checkpoints:
    checkpoints.save(state, {}, BASE)
    checkpoints.wait()
    with pytest.raises(UserError, match=r"lacks 'classifier\.scale'"):
      checkpoints.restore(state._replace(trainable=bigger), BASE)
    with pytest.raises(UserError, match=r"holds 'encoder\.layer\.query\.lora_a', which this run has not"):
      checkpoints.restore(state._replace(trainable=smaller), BASE)
    with pytest.raises(UserError, match="another base model: somewhere"):
      checkpoints.restore(state, Base("elsewhere", "b" * 64))
    with pytest.raises(UserError, match="lacks"):
      checkpoints.restore_trainable(bigger, BASE)
    step, trainable = checkpoints.restore_trainable(state.trainable, BASE)
  assert step == 1
  same(trainable, state.trainable)
  assert run.frozen


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_checkpoint_is_passed_over(tiny, tmp_path, caplog, damage):
  _, _, states = trained(tiny, 2)
  folder = tmp_path / "c"
  with Checkpoints(folder) as checkpoints:
    for state in states:
      checkpoints.save(jax.tree.map(jnp.asarray, state), {"at": int(state.step)}, BASE)
  assert (folder / "2" / "manifest").is_file()
  data = max((folder / "2").rglob("d/*"), key=lambda path: path.stat().st_size)
  content = bytearray(data.read_bytes())
  if damage == "truncated":
    data.write_bytes(content[: len(content) // 2])
  elif damage == "flipped":
    content[len(content) // 2] ^= 0x10
    data.write_bytes(content)
  else:
    data.unlink()
  like = jax.tree.map(jnp.asarray, states[0])
  with Checkpoints(folder) as checkpoints:
    found, position = checkpoints.restore(like, BASE)
    assert checkpoints.steps() == [1]
  same(found, states[0])
  assert position == {"at": 1}
  assert "checkpoint 2 is damaged and passed over" in caplog.text


def test_a_checkpoint_without_a_manifest(tiny, tmp_path, caplog):
  """Of an earlier version it is restored by its fingerprints; where there was one, it is damaged."""
  import peftjax.train.checkpoint as module

  _, state, _ = trained(tiny, 1)
  trainable, training, _ = module._as_items(state)
  meta = {"position": {"at": 1}, "base": {"path": BASE.path, "hash": BASE.hash}}
  meta |= {"arrays": module._describe(trainable | training)}
  items = {"trainable": ocp.args.StandardSave(trainable), "training": ocp.args.StandardSave(training)}
  items["meta"] = ocp.args.JsonSave(meta | {"digest": module._digest(meta)})
  with ocp.CheckpointManager(tmp_path / "c") as manager:
    manager.save(1, args=ocp.args.Composite(**items))
  with Checkpoints(tmp_path / "c") as checkpoints:
    found, position = checkpoints.restore(state, BASE)
    same(found, state)
    assert position == {"at": 1}
    checkpoints.save(state._replace(step=state.step + 1), {"at": 2}, BASE)
    checkpoints.wait()
    (tmp_path / "c" / "2" / "manifest").unlink()
    assert checkpoints.restore(state, BASE)[1] == {"at": 1}
  assert "checkpoint 2 is damaged and passed over: ValueError: manifest is missing" in caplog.text


def test_a_wrong_value_is_found_by_its_fingerprint(tiny, tmp_path, monkeypatch):
  """Even where the storage's own checksums are right."""
  import peftjax.train.checkpoint as module

  _, state, _ = trained(tiny, 1)
  real = module.fingerprints
  wrong = lambda tree: {name: "0" * 16 if "lora_b" in name else one for name, one in real(tree).items()}  # noqa: E731
  monkeypatch.setattr(module, "fingerprints", wrong)
  with Checkpoints(tmp_path / "c") as checkpoints:
    checkpoints.save(state, {}, BASE)
  monkeypatch.setattr(module, "fingerprints", real)
  with Checkpoints(tmp_path / "c") as checkpoints, pytest.raises(UserError, match="all checkpoints are damaged"):
    checkpoints.restore(state, BASE)


@pytest.mark.parametrize(("keep", "best", "stay"), [(1, 1, [1, 3]), (1, 3, [3]), (2, 3, [2, 3]), (1, 0, [3])])
def test_what_is_no_longer_the_best_goes_without_another_save(tiny, tmp_path, keep, best, stay):
  run = tiny()
  with Checkpoints(tmp_path / "c", keep=keep) as checkpoints:
    checkpoints.keep_best(1)
    for step in (1, 2, 3):
      checkpoints.save(run.state._replace(step=jnp.asarray(step)), {}, BASE)
    checkpoints.wait()
    assert checkpoints.whole() == sorted({1, *range(4 - keep, 4)})
    checkpoints.keep_best(best)
    checkpoints.drop_rest()
    assert checkpoints.steps() == checkpoints.whole() == stay
