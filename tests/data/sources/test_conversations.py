"""Conversations in files: what a chat template would not be given is refused, in one line with its place."""

from __future__ import annotations

import json

import pytest

from peftjax.data import open_data
from peftjax.errors import UserError

TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "a"}]}, TALK[1]]
CALL = [TALK[0], {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}]


def opened(tmp_path, *rows):
  path = tmp_path / "train.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return open_data(f"jsonl:{path}")


@pytest.mark.parametrize(
  ("row", "says"),
  [
    ({"messages": PARTS}, "column 'messages'.* expected a list of objects with role and content, both texts"),
    ({"messages": CALL}, "column 'messages'.* expected a list of objects with role and content, both texts"),
    ({"messages": TALK, "tools": [{"name": "f"}]}, "column 'tools': chat templates are not given tools here"),
    ({"messages": TALK, "documents": [{"text": "d"}]}, "column 'documents': chat templates are not given documents"),
  ],
  ids=["content of parts", "a call without content", "tools", "documents"],
)
@pytest.mark.parametrize("place", [0, 1])
def test_what_a_template_would_not_be_given_is_refused(row, says, place, tmp_path):
  rows = [{"messages": TALK}] * 2
  rows[place] = row
  with pytest.raises(UserError, match=rf"train\.jsonl:{place + 1}: {says}"):
    opened(tmp_path, *rows)


def test_columns_that_say_nothing_change_nothing(tmp_path):
  rows = [{"messages": TALK, "tools": None}, {"messages": TALK, "tools": []}]
  assert sum(opened(tmp_path, *rows).splits.values()) == 2
