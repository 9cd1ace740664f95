"""Fingerprints see every bit and its place, the same on the host and on devices."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from peftjax.train import fingerprint

DTYPES = ["float32", "bfloat16", "int8", "int4", "bool", "uint32"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_fingerprints_see_every_bit_and_its_place(dtype):
  values = np.random.default_rng(0).integers(0, 2, size=(5, 7))

  def prints(values):
    return fingerprint.fingerprints({"a": {"b": jnp.asarray(values, dtype)}})["a.b"]

  assert prints(values) == prints(values.copy()) and len(prints(values)) == 16
  for place in [(0, 0), (4, 6), (2, 3)]:
    changed = values.copy()
    changed[place] = 1 - changed[place]
    assert prints(changed) != prints(values)
  assert prints(values.ravel()[::-1].reshape(5, 7)) != prints(values)


def test_fingerprints_tell_zeros_and_nans_apart():
  values = [jnp.float32(0.0), jnp.float32(-0.0), jnp.float32(np.nan)]
  prints = [fingerprint.fingerprints({"a": value})["a"] for value in values]
  assert len(set(prints)) == 3


def test_digest_sees_names_and_shapes():
  leaf = jnp.arange(6.0)
  digests = {
    fingerprint.digest(tree) for tree in ({"a": leaf}, {"b": leaf}, {"a": leaf.reshape(2, 3)}, {"a": leaf + 1})
  }
  assert len(digests) == 4 and all(len(one) == 64 for one in digests)


@pytest.mark.parametrize("dtype", DTYPES)
def test_host_and_device_agree(dtype, monkeypatch):
  values = np.random.default_rng(0).normal(size=(5, 7)) * 3
  leaf = {"a": jnp.asarray(values if dtype.startswith(("f", "b")) else abs(values).astype("i4"), dtype)}
  host = fingerprint.fingerprints(leaf)
  monkeypatch.setattr(fingerprint, "_HOST_ELEMENTS", 0)
  assert fingerprint.fingerprints(leaf) == host
