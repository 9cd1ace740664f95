"""The settings of the token input, as fields of `config.input` and as the older ones of `config.data`."""

from __future__ import annotations

import pytest

from peftjax import config as config_lib
from peftjax import tasks
from peftjax.data.inputs.tokens import Tokens
from peftjax.data.sources import Header
from peftjax.errors import UserError

HEADER = Header("reviews", task="text_classification", label_names=("bad", "good"), fields=("text", "label"))


def tokens(*overrides):
  config = config_lib.load("", overrides)
  return Tokens(config, HEADER, tasks.from_config("text_classification", config.task, HEADER))


def test_a_setting_stands_in_either_section():
  by_input = tokens("input.max_length=24", "input.buckets=(8, 24)")
  by_data = tokens("data.max_length=24", "data.buckets=(8, 24)")
  assert by_input.buckets == by_data.buckets == (8, 24)
  assert by_input.length_setting == by_data.length_setting == "data.max_length=24"
  assert tokens("input.max_length=24", "data.max_length=24").data == tokens("data.max_length=24").data
  assert tokens().data.max_length == 128


@pytest.mark.parametrize(
  ("overrides", "message"),
  [
    (("input.max_length=24", "data.max_length=32"), r"input\.max_length=24 and data\.max_length=32: they are one"),
    (("input.max_length=0",), r"input\.max_length=0: expected a whole number from 1"),
    (("input.format='chatty'",), r"input\.format='chatty': did you mean 'chat'"),
    (("input.max_lenght=24",), r"input\.max_lenght: no such field of Tokens; did you mean 'max_length'"),
  ],
)
def test_mistakes(overrides, message):
  with pytest.raises(UserError, match=message):
    tokens(*overrides)
