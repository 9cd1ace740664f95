"""Checks for authors of methods: `check_method(MyMethod())` runs the columns of docs/methods.md on a method."""

from peftjax.testing.checking import check_method
from peftjax.testing.claims import COLUMNS
from peftjax.testing.columns import FalseClaim, Subject

__all__ = ["COLUMNS", "FalseClaim", "Subject", "check_method"]
