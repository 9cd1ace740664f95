"""Settings of the evaluator `sample` that are wrong are one line before the first update."""

from __future__ import annotations

import pytest

from peftjax import UserError
from peftjax.train.evaluators.sample import Sample, _check


def test_its_own_settings_pass():
  _check(Sample.settings)
  _check({**Sample.settings, "prompts": ("a dog", "a cat"), "guidance": 0, "seed": 2**32 - 1, "size": 64})


@pytest.mark.parametrize(
  ("changed", "said"),
  [
    ({"prompts": "a photo of dog"}, "prompts='a photo of dog': expected several texts"),
    ({"prior_prompts": ("a dog", 5)}, r"prior_prompts=\('a dog', 5\): expected several texts"),
    ({"seed": -1}, "seed=-1: expected a whole number from 0 to 4,294,967,295"),
    ({"seed": "x"}, "seed='x': expected a whole number"),
    ({"count": True}, "count=True: expected a positive whole number"),
    ({"steps": 0}, "steps=0: expected a positive whole number"),
    ({"guidance": "7"}, "guidance='7': expected a number from 0 to 1000"),
    ({"guidance": float("nan")}, "guidance=nan: expected a number"),
    ({"size": 3.5}, "size=3.5: expected a whole number of pixels"),
    ({"negative": None}, "negative=None: expected a text"),
  ],
)
def test_others_are_one_line(changed, said):
  with pytest.raises(UserError, match=f"evaluators.sample.{said}"):
    _check({**Sample.settings, **changed})
