"""Energy from a folder that looks like the kernel's, with a counter that starts again, and without any counter."""

from __future__ import annotations

import itertools

import pytest

from peftjax.compare.dimensions import energy as dimension
from peftjax.train import energy
from tests.compare.synthetic import measured, summary_of


def zone(folder, number, name, value, limit=1_000_000):
  place = folder / f"intel-rapl:{number}"
  place.mkdir(parents=True)
  (place / "name").write_text(f"{name}\n")
  (place / "energy_uj").write_text(f"{value}\n")
  (place / "max_energy_range_uj").write_text(f"{limit}\n")
  return place


def test_packages_and_memory_add_up_and_their_parts_do_not(tmp_path):
  zone(tmp_path, "0", "package-0", 5)
  zone(tmp_path, "0:0", "core", 5)
  zone(tmp_path, "0:1", "dram", 5)
  zone(tmp_path, "1", "psys", 5)
  (tmp_path / "intel-rapl").mkdir()  # the control type itself
  closed = zone(tmp_path, "2", "package-1", 5)
  (closed / "energy_uj").unlink()
  assert [one.name for one in energy.counters(tmp_path)] == ["intel-rapl:0", "intel-rapl:0:1"]
  assert energy.counters(tmp_path / "nowhere") == []


def test_a_counter_that_starts_again(tmp_path):
  zones = [zone(tmp_path, "0", "package-0", 0), zone(tmp_path, "1", "package-1", 0)]
  assert energy.between([100, 999_000], [600, 2_000], zones) == pytest.approx((500 + 3_000) / 1e6)


def test_joules_of_steps_over_several_starts(tmp_path):
  """Each step takes 0.7 J of a counter that starts again after every 1 J."""
  place = zone(tmp_path, "0", "package-0", 900_000)
  taken = [900_000]

  def step():
    taken[0] += 700_000
    (place / "energy_uj").write_text(str(taken[0] % 1_000_000))

  ticks = itertools.count()
  total, count, seconds = energy.joules_of(step, [place], seconds=9.0, clock=lambda: float(next(ticks)))
  assert count >= 9 and seconds >= 9
  assert total / count == pytest.approx(0.7)


def test_flops_stand_in_and_are_called_so(tmp_path):
  assert energy.per_step(lambda: None, 12, tmp_path) == {"unit": "flops", "value": 12}
  zone(tmp_path, "0", "package-0", 7)  # a counter that never moves tells nothing
  energy_of = energy.per_step(lambda: None, 12, tmp_path)
  assert energy_of == {"unit": "flops", "value": 12}
  assert energy.per_step(None, None, tmp_path) is None


def record(row, **found):
  return measured(row, dimension.NAME, **found)


def summary():
  return summary_of("full", "lora", flops={"full": 300, "lora": 200})


def test_the_report_never_calls_flops_energy():
  own = [record("full", unit="flops", value=310), record("lora", unit="flops", value=200)]
  section = dimension.section(dimension.summarize(own, summary()), own, summary())
  assert "not measured" in section.heading and section.columns[1] == "FLOPs a step"
  assert "not energy" in section.sentences[0] and "joules" not in " ".join(section.sentences).lower()
  assert section.plots[0].draw(True) is not None


def test_joules_only_where_every_row_has_them():
  joules = {"unit": "joules", "value": 3.0, "steps": 9, "watts": 40.0, "zones": ["package-0"]}
  own = [record("full", **joules), record("lora", **(joules | {"value": 1.5}))]
  found = dimension.summarize(own, summary())
  assert found["unit"] == "joules" and found["rows"][1]["ratio"] == 0.5
  section = dimension.section(found, own, summary())
  assert section.rows[1][:3] == ("lora/seed-0", "1.5 J", "0.50×") and "idle power" in section.sentences[0]
  mixed = dimension.summarize([own[0], record("lora", unit="flops", value=200)], summary())
  assert mixed["unit"] == "flops" and [one["value"] for one in mixed["rows"]] == [300, 200]
