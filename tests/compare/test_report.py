"""The report says what the records say, needs nothing but itself, and no words in its plots cover each other."""

from __future__ import annotations

import dataclasses
import itertools
import re
from html.parser import HTMLParser

import pytest
from matplotlib.text import Text

from peftjax import config as config_lib
from peftjax.compare import analysis, claims, trials
from peftjax.compare.analysis import Question
from peftjax.compare.drawing.pareto import pareto
from peftjax.compare.drawing.svg import looks
from peftjax.compare.report import answer, page, sections, table
from peftjax.train import timing
from tests.compare import synthetic

MANY = synthetic.METHODS | {
  "lora_r32_all": (0.836, 1_327_104, 0.74, 1e-3),
  "lora_r32_qkv": (0.835, 1_300_000, 0.74, 1e-3),
  "pfeiffer": (0.818, 310_000, 0.69, 1e-3),
  "layernorm": (0.809, 9_984, 0.66, 1e-3),
  "last_k_2": (0.829, 3_549_696, 0.56, 1e-4),
}
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
  """Collects the text, the addresses and the ids, and checks that every tag is closed in order."""

  def __init__(self, text):
    super().__init__()
    self.text, self.addresses, self.ids, self.used, self.open = [], [], [], [], []
    self.feed(text)
    self.close()
    assert not self.open

  def handle_starttag(self, tag, attributes):
    if tag not in VOID:
      self.open.append(tag)
    self.note(attributes)

  def handle_startendtag(self, tag, attributes):
    self.note(attributes)

  def note(self, attributes):
    for name, value in attributes:
      if name == "id":
        self.ids.append(value)
      if name in ("src", "href", "xlink:href", "action"):
        self.addresses.append(value)
      self.used += re.findall(r"url\(#([^)]+)\)", value or "")

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if not self.open or self.open[-1] != "style":
      self.text.append(data)


def study(methods=synthetic.METHODS, seeds=4, **options):
  results = synthetic.results(methods, seeds, examples=900, **options)
  times = timing.timing_of(synthetic.seconds(methods), "full")
  return analysis.summarize(results, Question(), times), results


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  summary, results = study()
  failed = {"lora/seed-4": "FloatingPointError: <loss> is not finite"}
  summary = dataclasses.replace(summary, failed=failed)
  folder = tmp_path_factory.mktemp("study")
  config = trials.plain_config(config_lib.default())
  page.write(folder, config, summary, results, claims.judge(summary, results))
  return summary, results, (folder / "report.html").read_text(), (folder / "report.md").read_text()


def test_the_page_stands_alone(made):
  html = made[2]
  read = Page(html)
  assert read.addresses and all(address.startswith("#") for address in read.addresses)
  assert not re.search(r"https?:|//[a-z]|@import|<script|url\((?!#)", html)
  assert len(read.ids) == len(set(read.ids))
  assert {address[1:] for address in read.addresses} | set(read.used) <= set(read.ids)


def test_the_page_takes_its_colours_from_the_reader(made):
  html = made[2]
  assert "prefers-color-scheme: dark" in html and "@media print" in html and "width=device-width" in html
  drawings = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
  assert len(drawings) == 16
  for drawing in drawings:
    assert not re.search(r"#[0-9a-f]{6}\b", drawing), "a fixed colour would vanish in the dark"
    assert set(re.findall(r"var\((--[a-z0-9-]+)\)", drawing)) <= {*plots_variables(), "--font"}


def plots_variables():
  from peftjax.compare.drawing import svg

  return svg.VARIABLES.values()


def test_numbers_on_the_page_are_those_of_the_summary(made):
  summary, results, html, markdown = made
  text = " ".join(" ".join(Page(html).text).split())
  for row in summary.rows:
    for cell in table.cells(row, summary):
      assert cell in text and cell in markdown
  for record in results:
    assert record.run in text and record.config_hash in text
    assert record.run in markdown
  for sentence in answer.sentences(summary):
    assert sentence in text and sentence in markdown
  assert "FloatingPointError: <loss> is not finite" in text
  assert "peftjax compare" in text and '"learning_rate": 0.0' in text


def test_the_same_records_give_the_same_page(made):
  summary, results, html, _ = made
  again = page.html(trials.plain_config(config_lib.default()), summary, results, claims.judge(summary, results))
  assert again == html


def hidden_ticks(figure):
  """The labels that matplotlib makes for ticks beyond the ends of an axis, and never draws."""
  hidden = set()
  for axes in figure.axes:
    for axis in (axes.xaxis, axes.yaxis):
      low, high = sorted(axis.get_view_interval())
      for tick in axis.get_major_ticks():
        if not low <= tick.get_loc() <= high:
          hidden |= {tick.label1, tick.label2}
        hidden |= {label for label in (tick.label1, tick.label2) if not label.get_visible()}
  return hidden


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("methods", [synthetic.METHODS, MANY], ids=["seven", "twelve"])
def test_no_words_cover_each_other(methods, narrow):
  summary, results = study(methods, seeds=2)
  drawn = [
    pareto(summary, narrow),
    sections.forest(summary, narrow),
    sections.profiles(summary, narrow),
    sections.losses(summary, results, narrow),
    sections.memory(summary, narrow),
    sections.times(summary, narrow),
    sections.storage(summary, narrow),
  ]
  for figure in drawn:
    renderer = figure.canvas.get_renderer()
    figure.draw(renderer)
    words = set(figure.findobj(Text)) - hidden_ticks(figure)
    words = sorted((text for text in words if text.get_text().strip()), key=lambda text: text.get_text())
    boxes = [(text.get_text(), Text.get_window_extent(text, renderer)) for text in words]
    width, height = figure.get_size_inches() * 72
    for name, box in boxes:
      assert box.x0 > -1 and box.x1 < width + 1 and box.y0 > -1 and box.y1 < height + 1, name
    for (name, one), (other_name, other) in itertools.combinations(boxes, 2):
      apart = one.x1 <= other.x0 or other.x1 <= one.x0 or one.y1 <= other.y0 + 1.5 or other.y1 <= one.y0 + 1.5
      assert apart, (name, other_name)


def test_methods_keep_their_look_and_have_no_twin():
  summary, _ = study(MANY, seeds=1)
  assert len(set(looks(summary).values())) == len(MANY)


def with_difference(row, estimate, verdict):
  low, high = estimate - 0.01, estimate + 0.01
  less = dataclasses.replace(row.difference, estimate=estimate, low=low, high=high, verdict=verdict)
  return dataclasses.replace(row, difference=less)


@pytest.mark.parametrize(
  ("rows", "said"),
  [
    ([("lora", 0.03, "better"), ("ia3", 0.0, "matches")], "PEFT: lora beats full fine-tuning"),
    ([("lora", 0.0, "matches"), ("ia3", 0.001, "matches")], "PEFT: ia3 matches full fine-tuning"),
    ([("lora", -0.03, "worse"), ("ia3", -0.05, "worse")], "Full fine-tuning: every PEFT method is worse"),
    (
      [("lora", -0.03, "worse"), ("ia3", -0.01, "inconclusive")],
      "Not decided: this study cannot separate ia3 from full fine-tuning",
    ),
  ],
)
def test_headlines(rows, said):
  methods = {name: synthetic.METHODS[name] for name in ("full", "lora", "ia3")}  # ia3 is the smaller one
  summary, _ = study(methods, seeds=2)
  judged = [with_difference(summary.row(name), *said_of) for name, *said_of in rows]
  summary = dataclasses.replace(summary, baseline=None, rows=(summary.row("full"), *judged))
  assert answer.headline(summary) == said


def test_the_terminal_shows_the_table_and_what_failed(made, capsys):
  from rich.console import Console

  for width in (80, 160):
    table.show(made[0], Console(width=width, force_terminal=False))
    shown = capsys.readouterr().out
    assert "houlsby" in shown and "worse" in shown and "failed: lora/seed-4" in shown
    assert max(len(line.rstrip()) for line in shown.splitlines() if "failed" not in line) <= width


def test_the_latex_table_has_every_cell_and_no_bare_special_character(made):
  summary = made[0]
  text = table.latex(summary)
  rows = [line for line in text.splitlines() if line.endswith(r"\\")]
  assert len(rows) == 1 + len(summary.rows)
  assert all(line.count(" & ") == len(table.columns(summary)) - 1 for line in rows)
  assert (
    not re.search(r"(?<!\\)[%#_]", text.partition("\n")[2]) and "−" not in text and text.count("{") == text.count("}")
  )
  assert r"lora" in text and r"\begin{tabular}{lrrlrrrrrr}" in text


def test_a_profile_says_on_which_side_of_the_axis_a_run_counts():
  summary = analysis.summarize(synthetic.results(seeds=2, examples=300), Question())
  lower = dataclasses.replace(summary.metrics_spec["accuracy"], higher_is_better=False)
  for one, said in ((summary, "at least"), (dataclasses.replace(summary, metrics_spec={"accuracy": lower}), "at most")):
    (plot,) = sections.runs_section(one).plots
    assert f"is {said} what the axis says" in plot.caption
