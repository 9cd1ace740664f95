"""Patterns that others wrote match as Python's `re` has it, in bounded time."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftjax import patterns
from peftjax.errors import UserError
from tests.fuzz.harness import OK, REFUSED, outcome_of

NAMES = ("model.layers.1.self_attn.q_proj", "model.layers.10.mlp.gate_proj", "lm_head", "encoder.layer.0.query", "a\n")
PUBLISHED = (
  r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp).*?(?:q_proj|k_proj|gate_proj).*?)",
  r"(?:.*?lm.*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|k_proj|gate_proj)))",
  r"^(?!.*mlp)(\w+\.)*(q_proj|query)$",
  r"model\.layers\.([02468]|1[02468])\..*(?<=self_attn\.)[qv]_proj|.*gate.*_.*",
  r"(?i:(?:[A-Z_]+\.?)*LM_head)",
  r"(?:a|b|.)*\s*$",
  r"((?:\w+|\.)+)\B.",
)


@pytest.mark.parametrize("pattern", PUBLISHED)
def test_published_kinds_of_patterns_match_as_re_has_it(pattern):
  for name in NAMES:
    assert patterns.full_match(pattern, name) == (re.fullmatch(pattern, name) is not None), name


LEAF = st.sampled_from(
  ["a", "b", ".", "[ab]", "[^a]", r"\w", r"\.", "^", "$", r"\b", r"\d", "[a-c.]", "(?=a)", "(?!b)"]
)
TREES = st.recursive(
  LEAF,
  lambda inner: st.one_of(
    st.lists(inner, min_size=2, max_size=3).map("".join),
    st.lists(inner, min_size=2, max_size=3).map("|".join).map("(?:{})".format),
    st.builds("(?:{}){}".format, inner, st.sampled_from(["*", "+", "?", "*?", "{2}", "{1,3}", "{0,2}?"])),
    st.builds("(?:{})(?<=a)".format, inner),
  ),
  max_leaves=8,
)


@settings(max_examples=400, deadline=None, database=None, derandomize=True)
@given(TREES, st.text(alphabet="abc.\n", max_size=6))
def test_sets_of_places_say_what_re_says(pattern, text):
  sets = patterns._Sets(pattern, patterns.parser.parse(pattern))
  assert sets.full_match(text) == (re.fullmatch(pattern, text) is not None)


@pytest.mark.parametrize(
  ("pattern", "kind"),
  [
    ("(([a-z_.0-9])+)+!", OK),
    ("(a|a)*(a|a)*(a|a)*b", OK),
    ("(?:(?:a{1000}){1000}){1000}", OK),
    ("(?:.*?){30}x", OK),
    ("(" * 90 + "a*" + ")*" * 90, REFUSED),
    ("(" * 5000 + ")" * 5000, REFUSED),
    ("(a*)*(b*)*\\1", REFUSED),
    ("(", REFUSED),
    ("a{99999999999999999999}", REFUSED),
  ],
  ids=range(9),
)
def test_patterns_without_end_are_bounded(pattern, kind):
  """On a text with which Python's own matcher does not end."""
  assert outcome_of(lambda: patterns.full_match(pattern, "a" * 60), seconds=1.0).kind == kind


def test_what_is_refused_is_said_in_one_line():
  with pytest.raises(UserError, match=r"the pattern '\(' is no regular expression: missing \)"):
    patterns.full_match("(", "a")
