"""The page of all methods says what they do."""

from __future__ import annotations

import pytest

from tests.methods import matrix

ROWS = matrix.rows_of(matrix.PAGE.read_text())


@pytest.mark.parametrize("name", matrix.NAMES)
def test_the_row_is_what_the_method_does(name):
  assert dict(zip(matrix.COLUMNS, ROWS[name])) == dict(zip(matrix.COLUMNS, matrix.row(name)))


def test_the_page_is_what_its_rows_give():
  assert matrix.page(ROWS) == matrix.PAGE.read_text() and list(ROWS) == matrix.NAMES
