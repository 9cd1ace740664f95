"""Inference overhead, switching and mixed batches, on a toy that compiles in a moment."""

from __future__ import annotations

from peftjax import methods
from peftjax.compare.dimensions import inference, switching
from peftjax.train import serving
from tests.adapters import cases
from tests.compare.synthetic import measured, summary_of
from tests.methods import tiny


def inputs():
  return cases.batch("lora")


def lora(seed, **changes):
  return cases.with_lora(cases.toy(), seed, targets=cases.T, rank=5, **changes)


def test_lora_costs_more_beside_the_base_and_nothing_merged():
  found = serving.overhead(lora(0), inputs(), rounds=3)
  flops = found["flops"]
  assert flops["unmerged"] > flops["base"] == flops["merged"]
  assert found["ratio"]["merged"]["estimate"] > 0 and found["reason"] == ""
  assert 0 < found["difference"] < 1e-5  # rounding alone
  assert found["seconds"]["base"] > 0


def test_what_cannot_merge_says_so():
  model = tiny.added(methods.Prompt(num_virtual_tokens=2))
  found = serving.overhead(model, tiny.batch(size=2, length=7), rounds=1)
  assert found["flops"]["merged"] is None and found["ratio"]["merged"] is None and found["difference"] is None
  assert "cannot be merged" in found["reason"] and found["flops"]["unmerged"] > found["flops"]["base"]
  assert (found["rows"], found["length"]) == (2, 7)


def test_switching_compiles_nothing_and_a_mixed_batch_equals_each_alone():
  found = serving.switch(lora(0), lora(1), inputs(), switches=4)
  assert found["compilations"] == 0 and found["equal"] and found["mixed_difference"] < 1e-5
  assert 0 < found["switch_seconds"] < found["switched_seconds"]


def test_a_mixed_batch_that_is_refused_says_why():
  base = cases.toy()
  one, other = (base.add(methods.Full()) for _ in range(2))
  found = serving.switch(one, other, inputs(), switches=2)
  assert found["equal"] is None and "shares nothing" in found["reason"] and found["compilations"] == 0


def test_compilations_are_counted():
  import jax

  with serving.compilations() as seen:
    jax.jit(lambda x: x * len("counted"))(inputs()["x"])
  assert seen


def summary():
  return summary_of("full", "lora", "prompt")


def test_inference_section():
  ratio = {"estimate": 1.2, "low": 1.1, "high": 1.3}
  shared = {"rounds": 5, "rows": 8, "length": 16}
  merged = {"flops": {"base": 100, "unmerged": 120, "merged": 100}, "difference": 2e-7, "reason": "", **shared,
            "ratio": {"unmerged": ratio, "merged": ratio},
            "seconds": {"base": 0.01, "unmerged": 0.012, "merged": 0.01}}  # fmt: skip
  apart = {**merged, "flops": {"base": 100, "unmerged": 150, "merged": None}, "reason": "prompt cannot be merged",
           "ratio": {"unmerged": ratio, "merged": None}, "seconds": {"base": 0.01, "unmerged": 0.01, "merged": None},
           "difference": None}  # fmt: skip
  own = [measured("lora", "inference", **merged), measured("prompt", "inference", **apart)]
  section = inference.section(inference.summarize(own, summary()), own, summary())
  assert "prompt cannot be merged." in section.sentences
  assert section.rows[0][4:] == ("1.20×", "1.00×", "2.0e-07")
  assert section.rows[1][3] == section.rows[1][5] == "–"
  for plot in section.plots:
    assert plot.draw(True) is not None and plot.draw(False) is not None


def test_switching_section():
  held = {"switch_seconds": 1e-4, "switched_seconds": 0.011, "forward_seconds": 0.01, "compilations": 0,
          "mixed_difference": 3e-7, "equal": True, "reason": "", "second": "lora/seed-1"}  # fmt: skip
  refused = {**held, "mixed_difference": None, "equal": None, "reason": "full trains every leaf of the base"}
  own = [measured("full", "switching", **refused), measured("lora", "switching", **held)]
  section = switching.section(switching.summarize(own, summary()), own, summary())
  assert "0 programs were compiled" in section.sentences[0]
  assert section.sentences[1].endswith("each gives alone: lora.") and section.sentences[2].startswith("full trains")
  assert [row[-1] for row in section.rows] == ["refused", "3.0e-07"]
  assert section.plots[0].draw(False) is not None
