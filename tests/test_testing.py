"""`check_method`: what a method claims in vain is found; every method of the package keeps its claims."""

from __future__ import annotations

import dataclasses

import pytest

from peftjax import UserError, testing
from peftjax.methods import LoRA, Prompt
from peftjax.testing import FalseClaim, claims, columns
from tests.methods import matrix


@dataclasses.dataclass(frozen=True, kw_only=True)
class Changed(LoRA):
  """A LoRA that one of its parts is changed of."""

  rank: int = 2


class Shifted(Changed):
  def after(self, leaves, x, y, site, call):
    return super().after(leaves, x, y, site, call) + 0.1


class Frozen(Changed):
  def mask(self, name, leaf):
    return "frozen" if name.endswith("lora_a") else super().mask(name, leaf)


class Greedy(Changed):
  def mask(self, name, leaf):
    return "adapter" if name.endswith("LayerNorm.bias") else super().mask(name, leaf)


class Stopped(Changed):
  def after(self, leaves, x, y, site, call):
    import jax

    return super().after({**leaves, "lora_a": jax.lax.stop_gradient(leaves["lora_a"])}, x, y, site, call)


class Careless(Changed):
  dropout: float = 0.0

  def after(self, leaves, x, y, site, call):
    return super().after(leaves, x, y * (1.0 - self.dropout), site, call)


class OfKey(Changed):
  """Its leaves depend on more than their own layer's name."""

  def create(self, key, site, base):
    leaves = super().create(key, site, base)
    return {**leaves, "lora_a": leaves["lora_a"] * len(site.path)}


def on(method):
  return columns.Subject(method, matrix.base())


FALSE = {
  "starts": (columns.starts_as_base, Shifted(), "fresh leaves change the base's outputs by"),
  "freezes": (columns.trains, Frozen(), "are in leaf_names, and the mask freezes them"),
  "frees": (columns.trains, Greedy(), "train and are not its leaves"),
  "stopped": (columns.trains, Stopped(), "no leaf 'lora_a' has a gradient"),
  "dropout": (claims.drops_out, Careless(), "dropout acts without a key"),
  "layout": (claims.stacked_as_unrolled, OfKey(), "depends on how layers are stored"),
}


@pytest.mark.parametrize("case", FALSE)
def test_a_false_claim_is_found(case):
  column, method, said = FALSE[case]
  with pytest.raises(FalseClaim, match=said):
    column(on(method))


def test_all_false_claims_are_told_at_once(capsys):
  some = [name for name in testing.COLUMNS if name not in ("starts as the base", "trains", "dropout")]
  with pytest.raises(FalseClaim, match=r"lora: starts as the base: .*; lora: trains: .*"):
    testing.check_method(type("Both", (Shifted, Frozen), {}), skip=some)
  table = capsys.readouterr().out.splitlines()
  assert [line.split("  ")[0] for line in table] == ["starts as the base", "trains", "dropout"]
  assert table[0].partition("  ")[2].strip().startswith("FALSE: fresh leaves")
  found = testing.check_method(Prompt(num_virtual_tokens=3), starts_differently="it reads more", skip=some, show=False)
  assert found == {"starts as the base": "no: it reads more", "trains": "`prompt_embeddings`", "dropout": "none"}


def test_what_check_method_is_given_is_checked():
  with pytest.raises(UserError, match="skip: no column 'merging'; did you mean 'merge'"):
    testing.check_method(LoRA, skip=("merging",))
  with pytest.raises(UserError, match="give the inputs of the base too"):
    testing.check_method(LoRA, matrix.base())


@pytest.mark.slow
@pytest.mark.parametrize("name", matrix.NAMES)
def test_every_method_keeps_its_claims(name):
  found = testing.check_method(
    matrix.make(name, matrix.SETTINGS.get(name, {})), starts_differently=matrix.START.get(name, ""), skip=("FLOPs",)
  )
  row = dict(zip(matrix.COLUMNS, matrix.rows_of(matrix.PAGE.read_text())[name]))
  for column in ("starts as the base", "trains", "merge", "sweep", "resume", "PEFT out", "PEFT in"):
    assert found[column] == row[column]
