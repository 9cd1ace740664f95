"""The guide: exact where it can be, ranges with sources elsewhere, and a reason for everything it leaves out."""

from __future__ import annotations

import dataclasses
import json
import shlex

import numpy as np
import pytest

from peftjax import cli
from peftjax import config as config_lib
from peftjax.compare import Summary, records
from peftjax.compare.dimensions.base import Group
from peftjax.compare.trials import trials_of
from peftjax.errors import UserError
from peftjax.guide import evidence, rules_of_thumb
from peftjax.guide.recommend import recommend
from tests.compare import synthetic
from tests.methods import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A config.json alone: a tiny encoder."""
  place = tmp_path_factory.mktemp("model")
  (place / "config.json").write_text(json.dumps({**tiny.config(), "architectures": ["BertForSequenceClassification"]}))
  return place


def config(folder, **wants):
  made = config_lib.default()
  made.model.path = str(folder)
  made.data.max_length = 8
  made.train.batch_size = 2
  made.guide.update({"compile": 0, "device_gib": 1.0, **wants})
  return made


def rows(result):
  return [one["row"] for one in result["ranked"]]


@pytest.fixture(scope="module")
def plain(folder):
  return recommend(config(folder))


def reasons(result):
  return {one["row"]: one["reason"] for one in result["rejected"]}


def test_sizes_are_those_of_the_shapes(plain):
  found = {one["row"]: one for one in plain["ranked"]}
  full = found["full"]
  assert full["adapter_bytes"] == 4 * full["trainable"] and full["held_bytes"] == 16 * full["trainable"]
  lora = found["lora"]
  assert (
    lora["held_bytes"] == 4 * (full["trainable"] + lora["trainable"] - tiny.HIDDEN * 5 - 5) + 12 * lora["trainable"]
  )


def test_published_ranges_carry_their_source_and_order_what_is_known(plain):
  found = {one["row"]: one for one in plain["ranked"]}
  lora = found["lora"]["accuracy"][0]
  assert lora["source"] == evidence.PUBLISHED and lora["runs"] == 5
  error = 1.96 * np.sqrt(2 * 0.4716 * 0.5284 / 1319)
  assert lora["high"] == pytest.approx(0.5133 - 0.4716 + error)
  assert lora["low"] == pytest.approx(0.4784 - 0.4716 - error)
  assert found["ia3"]["forgetting"][0]["high"] == pytest.approx(0.3141)
  known = [one for one in plain["ranked"] if one["accuracy"]]
  middles = [one["accuracy"][0]["low"] + one["accuracy"][0]["high"] for one in known]
  assert middles == sorted(middles, reverse=True)
  assert rows(plain).index("houlsby") > rows(plain).index("lora")  # of which nothing is known
  assert "no figure of its accuracy is at hand" in found["houlsby"]["notes"]
  assert "may be as good as the first" in found["dora"]["notes"]
  assert "may be as good as the first" not in found["layernorm"]["notes"]


def test_wishes_reject_with_a_reason(folder):
  result = recommend(config(folder, latency="same", mixed_batches=True, adapter_bytes=13000.0, retention=0.04))
  why = reasons(result)
  assert "cannot be merged" in why["prompt"] and "cannot mix tasks" not in why["full"]  # the first reason is told
  assert "its file is" in why["full"] and "at best it raised the loss" in why["gralora"]
  assert not set(rows(result)) & set(why)


def test_nothing_fits(folder, capsys):
  with pytest.raises(UserError, match="nothing fits: full: weights, gradients and optimizer alone are"):
    recommend(config(folder, device_gib=1e-6))
  flags = [f"--config.model.path={folder}", "--config.guide.device_gib=1e-6", "--config.guide.compile=0"]
  assert cli.main(["guide", *flags]) == 2
  assert capsys.readouterr().err.startswith("peftjax: nothing fits")


def test_the_best_is_compiled(folder):
  result = recommend(config(folder, compile=1))
  first = result["ranked"][0]
  assert first["fits"] and first["bytes_per_device"]["total"] >= first["bytes_per_device"]["arguments"] > 0
  assert result["ranked"][1]["fits"] is None


def test_own_studies_come_first(folder, tmp_path):
  trained = {"full": (0.80, 9000, 1.0, 1e-4), "prompt": (0.84, 40, 0.9, 1e-2), "lora": (0.78, 300, 0.7, 1e-3)}
  own = synthetic.results(trained, seeds=6, examples=800)
  path = records.write_results(own, tmp_path)
  result = recommend(config(folder, results=str(path)))
  assert rows(result)[0] == "prompt"
  first = result["ranked"][0]["accuracy"]
  assert [one["source"] for one in first] == [f"your study {path}", evidence.PUBLISHED]
  assert first[0]["low"] < 0.04 < first[0]["high"]
  assert not result["experiment"]["spread_is_assumed"] and result["experiment"]["seeds"] >= 3


def test_published_figures_do_not_overtake_an_own_study(folder, tmp_path):
  trained = {"full": (0.80, 9000, 1.0, 1e-4), "lora": (0.795, 300, 0.7, 1e-3), "ia3": (0.60, 40, 0.7, 1e-3)}
  path = records.write_results(synthetic.results(trained, seeds=6, examples=800), tmp_path)
  found = rows(recommend(config(folder, results=str(path))))
  assert set(found[:2]) == {"full", "lora"}
  assert 1 < found.index("dora") < found.index("ia3")  # which the study found worse


def measured(own):
  """The records with dimensions, as a study measures them."""
  ratio = {"estimate": 1.14, "low": 1.1, "high": 1.2}
  found = []
  for record in own:
    held = {}
    if record.seed == 0:
      prompt = record.row == "prompt"
      held["inference"] = {"ratio": {"unmerged": ratio, "merged": None if prompt else ratio}, "difference": None,
                           "flops": {"base": 10, "unmerged": 11, "merged": None if prompt else 10}, "rounds": 5,
                           "seconds": {"base": 1.0, "unmerged": 1.1, "merged": None}, "reason": "", "rows": 8,
                           "length": 16}  # fmt: skip
      held["energy"] = {"unit": "joules", "value": 2.5, "steps": 3, "watts": 40.0, "zones": []}
    matrix = [[0.9, None], [0.8, 0.7]]
    held["sequence"] = {"tasks": ["csv:a.csv", "csv:b.csv"], "metric": "accuracy", "keep": False, "matrix": matrix,
                        "examples": [9, 9], "average": 0.75, "backward": -0.1, "forgetting": 0.1}  # fmt: skip
    found.append(dataclasses.replace(record, dimensions=held))
  return found


def test_other_dimensions_of_own_studies_are_told_with_their_runs(folder, tmp_path):
  trained = {"full": (0.80, 9000, 1.0, 1e-4), "prompt": (0.84, 40, 0.9, 1e-2), "lora": (0.78, 300, 0.7, 1e-3)}
  path = records.write_results(measured(synthetic.results(trained, seeds=3, examples=200)), tmp_path)
  found = {one["row"]: one["notes"] for one in recommend(config(folder, results=str(path)))["ranked"]}
  told = " ".join(found["prompt"])
  assert "a forward pass took 1.14 of the base's beside it; it cannot be merged (your study's prompt/seed-0)" in told
  assert "a step took 2.5 J" in told and "later tasks changed earlier ones by −10.0 points" in told
  assert "prompt/seed-{0..2}" in told and "cannot be merged" not in " ".join(found["lora"])


def test_the_largest_size_of_an_own_study_counts(tmp_path):
  few = {"full": (0.60, 9000, 1.0, 1e-4), "lora": (0.80, 300, 0.7, 1e-3)}
  many = {"full": (0.80, 9000, 1.0, 1e-4), "lora": (0.70, 300, 0.7, 1e-3)}
  own = [
    dataclasses.replace(record, size=size, run=record.run.replace("/", f"/n={size}/"))
    for size, trained in ((32, few), (4000, many))
    for record in synthetic.results(trained, seeds=3, examples=400)
  ]
  found = evidence.own_study(records.write_results(own, tmp_path))
  assert found.accuracy["lora"].high < 0 and found.accuracy["lora"].runs == 3


def test_forgetting_of_an_own_study_comes_before_published_figures():
  groups = [
    Group(row="lora", estimate=0.02, low=0.01, high=0.03, runs=("lora/seed-0", "lora/seed-1")),
    Group(row="one", estimate=0.02, runs=("one/seed-0",)),
  ]
  found = evidence.forgetting_of(Summary(dimensions={"forgetting": {"groups": groups}}), "your study")
  assert found == {"lora": evidence.Range(0.01, 0.03, "your study", 2)}
  assert evidence.forgetting_of(Summary(), "your study") == {}


def test_budgets_count_steps_and_not_rows(folder):
  result = recommend(config(folder, examples=101))
  for one in result["ranked"]:
    assert one["training_flops"] == 51 * one["step_flops"]  # batches of two
  least = min(one["training_flops"] for one in result["ranked"])
  kept = recommend(config(folder, examples=101, budget_flops=float(least)))
  assert all(one["training_flops"] <= least for one in kept["ranked"])
  assert any("the budget is" in one["reason"] for one in kept["rejected"])


def test_devices_that_are_not_here_are_not_compiled_for(folder):
  result = recommend(config(folder, compile=1, devices=7))
  assert all(one["fits"] is None for one in result["ranked"])
  assert "guide.topology" in " ".join(result["ranked"][0]["notes"]) and result["device"]["count"] == 7


def test_rules_that_disagree_are_shown_as_such():
  applying = rules_of_thumb.applying(rules_of_thumb.Wants(domain="far", examples=300))
  assert {rule.favours for rule in applying} == {rules_of_thumb.FULL, rules_of_thumb.PEFT}
  pairs = rules_of_thumb.conflicts(applying)
  assert any("far from" in one.says and "far from" in other.says for one, other in pairs)
  assert not rules_of_thumb.conflicts(rules_of_thumb.applying(rules_of_thumb.Wants(tasks=3, examples=300)))


def studied(command):
  """The config and the trials of a command."""
  words = shlex.split(command)
  flags = [word.removeprefix("--config.") for word in words if word.startswith("--config.")]
  made = config_lib.load(next((one[9:] for one in words if one.startswith("--config=")), ""), flags)
  return made, trials_of(made)


def test_the_experiment_is_a_command_that_plans(plain):
  _, trials = studied(plain["experiment"]["command"])
  assert {trial.row for trial in trials} == set(plain["experiment"]["rows"])
  assert len(trials) == 2 * plain["experiment"]["seeds"]


def test_the_experiment_is_of_the_users_own_model_data_and_file(folder, tmp_path, capsys):
  file = tmp_path / "conf.py"
  file.write_text(
    "from peftjax.config import default\n\n\ndef get_config():\n  config = default()\n  config.train.batch_size = 2\n"
    '  config.compare.methods = {"lora": {"method": {"rank": 3}}, "full": {}}\n  return config\n'
  )
  flags = [f"--config={file}", f"--config.model.path={folder}", "--config.data.max_length=8"]
  asked = ["--config.guide.compile=0", "--config.guide.device_gib=1.0", "--config.method.name=hra"]
  assert cli.main(["guide", "--json", *flags, *asked, "--config.task.name=text_classification"]) == 0
  told = json.loads(capsys.readouterr().out)
  found, ranked = told["experiment"], told["ranked"]
  made, trials = studied(found["command"])
  assert made.train.batch_size == 2 and made.data.max_length == 8 and made.task.name == "text_classification"
  assert made.model.path == str(folder) and "guide." not in found["command"]
  # the file's own row of another rank stays as it is and is not studied; the guide's two have names of their own
  assert made.compare.methods.lora.method.rank == 3 and "lora" not in found["rows"]
  assert {trial.row: trial.config.method.to_dict() for trial in trials} == {
    row: next(one["method"] for one in ranked if one["row"] == row.removesuffix("-2")) for row in found["rows"]
  }
  assert found["says"].startswith(f"tells {found['rows'][0]} from {found['rows'][1]} by two points")


def test_the_method_that_was_asked_for_is_assessed(folder):
  asked = config(folder)
  asked.method.name = "hra"
  found = recommend(asked)
  assert {"name": "hra"} in [one["method"] for one in found["ranked"]]
  asked = config(folder)
  asked.method.update({"rank": 2})
  found = recommend(asked)
  assert [one["method"] for one in found["ranked"] if one["row"] == "lora"] == [{"name": "lora", "rank": 2}]


@pytest.mark.parametrize(
  ("wants", "message"),
  [
    ({"domain": "medium"}, "expected near or far"),
    ({"latency": "low"}, "expected same"),
    ({"examples": -1}, r"guide\.examples=-1"),
    ({"results": "nowhere.jsonl"}, "no file nowhere.jsonl"),
  ],
)
def test_mistakes(folder, wants, message):
  with pytest.raises(UserError, match=message):
    recommend(config(folder, **wants))


def test_an_adapter_is_no_base_to_choose_a_method_for(folder):
  with_adapter = config(folder)
  with_adapter.model.adapter = "somewhere"
  with pytest.raises(UserError, match="model.adapter='somewhere': peftjax guide says which method to train on a base"):
    recommend(with_adapter)


def test_the_table_is_shown(folder, capsys):
  flags = [f"--config.model.path={folder}", "--config.guide.compile=0", "--config.guide.domain=far"]
  assert cli.main(["guide", *flags]) == 0
  out = capsys.readouterr().out
  assert "in conflict" in out and "To settle it: peftjax compare" in out and evidence.PUBLISHED in out


def test_an_example_of_a_vision_transformer_is_its_patches(tmp_path):
  sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20}
  vit = {"model_type": "vit", "architectures": ["ViTForImageClassification"], "image_size": 24, "patch_size": 8}
  (tmp_path / "config.json").write_text(json.dumps(vit | sizes))
  found, told = (recommend(config(tmp_path, tokens=tokens))["ranked"] for tokens in (0, 3 * 3 + 1))
  assert {one["row"]: one["step_flops"] for one in found} == {one["row"]: one["step_flops"] for one in told}
