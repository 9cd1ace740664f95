"""The table of docs/your_own_model.md says what each method does at each kind of leaf."""

from __future__ import annotations

import pytest

from peftjax import methods
from peftjax.errors import UserError
from tests.wrap import kinds

PAGE = kinds.PAGE.read_text()
ROWS = kinds.rows_of(PAGE)


@pytest.mark.parametrize("name", kinds.NAMES)
def test_the_row_is_what_the_method_does(name):
  assert dict(zip(kinds.COLUMNS, ROWS[name])) == dict(zip(kinds.COLUMNS, kinds.row(name)))


def test_the_page_is_what_its_rows_give():
  assert list(ROWS) == list(kinds.NAMES)
  assert kinds.START + kinds.table(ROWS) + kinds.END in PAGE


def test_every_method_is_in_the_table_or_named_beside_it():
  """What is in neither is a union of other methods, or acts by layers."""
  rest = set(methods.METHODS) - set(kinds.NAMES) - set(kinds.NAMED_PLACES)
  assert rest == {"head", "hybrid", "last_k", "mam", "unipelt"}
  for name in kinds.NAMED_PLACES:
    assert f"`{name}`" in PAGE


def test_dropout_and_a_batch_of_several_adapters_have_no_place_where_a_weight_is_changed():
  model, _ = kinds.wrapped("table")
  with pytest.raises(UserError, match="rank_dropout has no place at leaf.table.*a table") as error:
    model.add(methods.LoHa(rank=2, targets=("leaf.*",), rank_dropout=0.1))
  assert "\n" not in str(error.value)
