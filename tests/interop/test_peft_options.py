"""The page for those who come from PEFT has every option of every config that PEFT has for our methods."""

from __future__ import annotations

import dataclasses

import peft
import pytest

from experiments import peft_options
from peftjax.interop.formats import FORMATS
from peftjax.interop.formats.base import COMMON


def test_the_page_is_what_the_formats_say():
  assert peft_options.PAGE.read_text() == peft_options.page()


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: f"{form.peft_type}-{form.method.name}")
def test_every_option_of_pefts_config_is_on_the_page(form):
  config = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(form.peft_type)]
  theirs = {field.name for field in dataclasses.fields(config)} - {*COMMON, "runtime_config"}
  section = peft_options.page().partition(f"## {form.peft_type}: `{form.method.name}`\n")[2].partition("\n## ")[0]
  assert section and {key for key in theirs if f"| `{key}` |" not in section} == set()
  fields = {field.name for field in dataclasses.fields(form.method)}
  named = [peft_options.said(form, key) for key in peft_options.keys(form)]
  assert {text.strip("`").removeprefix("method.") for text in named if text.startswith("`method.")} <= fields
