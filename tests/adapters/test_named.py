"""Adapters by name: switching compiles nothing, and what is wrong is named."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import peftjax
from peftjax import adapters, methods
from peftjax.errors import UserError
from tests.adapters import cases
from tests.methods import tiny


def compilations(function):
  """How many programs XLA compiled while the function ran."""
  seen = []

  def listen(event, duration, **more):
    if event.endswith("backend_compile_duration"):
      seen.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    function()
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  return len(seen)


@pytest.fixture(scope="module")
def bank():
  made = adapters.Bank(cases.toy())
  for seed, name in enumerate(("a", "b", "c")):
    made = made.add(name, cases.with_lora(cases.toy(), seed, targets=cases.T, rank=5))
  return made


def test_switching_and_swapping_compile_nothing(bank):
  batch = cases.batch("lora")
  first = [np.asarray(bank.use(name)(**batch)["logits"]) for name in ("a", "b")]
  mixed, ids = bank.mixed("a", "b"), bank.ids(["a", "b", None, "a"], of=("a", "b"))
  together = np.asarray(mixed(**batch, adapter_ids=ids)["logits"])
  assert compilations(lambda: jax.jit(lambda x: x + len(first))(batch["x"])) > 0  # the count counts
  again = {}

  def switch():
    for name in ("b", "c", "a", "b"):
      again[name] = bank.use(name)(**batch)["logits"]
    again["mixed"] = mixed(**batch, adapter_ids=bank.ids([None, "a", "b", "b"], of=("a", "b")))["logits"]

  assert compilations(switch) == 0
  for name, wanted in zip(("a", "b"), first):
    np.testing.assert_array_equal(again[name], wanted)
  cases.close(together[0], first[0][0])
  cases.close(together[1], first[1][1])
  cases.close(again["mixed"][1], first[0][1])


def test_names_are_added_listed_replaced_and_deleted(bank):
  assert bank.names == ("a", "b", "c")
  assert bank.delete("b").names == ("a", "c") and bank.names == ("a", "b", "c")
  replaced = bank.update("b", bank.use("c"))
  assert replaced.names == bank.names and replaced.held["b"] == bank.held["c"]
  assert bank.use() is cases.toy()
  assert bank.add("d", methods.IA3(targets=("up",), feedforward=())).use("d").methods[0].name == "ia3"
  halved = bank.use("a", weights=(0.5,))
  assert halved.bound[0].scale == 0.5
  summed = bank.use("a", "b", weights=(0.5, 2.0))
  wanted = bank.combine("new", {"a": 0.5, "b": 2.0}, "cat").use("new")
  cases.close(summed(**cases.batch("lora"))["logits"], wanted(**cases.batch("lora"))["logits"])


def test_wrong_names_get_the_nearest(bank):
  for act, expected in (
    (lambda: bank.use("aa"), "no adapter named 'aa'"),
    (lambda: bank.delete("x"), "no adapter named 'x'"),
    (lambda: bank.update("x", bank.use("a")), "no adapter named 'x'"),
    (lambda: bank.ids(["a", "d"]), "no adapter named 'd'"),
    (lambda: bank.use("a", weights=(1.0, 2.0)), "2 weights for 1 adapters; expected one each"),
    (lambda: bank.use("a", weights=(float("nan"),)), "weight is nan; expected a finite number"),
    (lambda: bank.use("a", "b", weights=(1.0, float("inf"))), "weight is inf; expected a finite number"),
    (lambda: bank.add("a", bank.use("b")), "is there already"),
    (lambda: bank.add("d", cases.fresh("houlsby")), "another model"),
    (lambda: bank.use("a", "b", along="c"), "not among the adapters in use"),
    (lambda: adapters.Bank(bank.use("a")), "has an adapter already"),
  ):
    with pytest.raises(UserError, match=expected):
      act()


def test_an_adapter_folder_joins_a_bank(tmp_path):
  model = cases.with_lora(cases.encoder(), 3, targets=("query",), rank=3)
  model = tiny.replaced(model, {"classifier.bias": np.arange(5, dtype=np.float32)})
  model.save_adapter(tmp_path / "lora")
  bank = peftjax.adapters.Bank(cases.encoder()).add("loaded", tmp_path / "lora")
  for path, leaf in adapters.take(model).leaves.items():
    np.testing.assert_array_equal(bank.held["loaded"].leaves[path], leaf)
  np.testing.assert_array_equal(bank.use("loaded").params["classifier"]["bias"], np.arange(5))
  assert bank.use().params["classifier"]["bias"] is cases.encoder().params["classifier"]["bias"]
