"""The page to chat with two adapters side by side, used in a real browser."""

from __future__ import annotations

import threading
import time

import pytest

from peftjax.serve.engine import Engine, Job, Limits, Piece
from peftjax.serve.served import loaded
from tests.serve import chromium
from tests.serve.server import running
from tests.serve.tiny_chat import TinyChat

pytest.importorskip("uvicorn", reason="uvicorn is an extra")
pytest.importorskip("starlette", reason="starlette is an extra")
pytestmark = pytest.mark.skipif(not chromium.path(), reason=f"none of {', '.join(chromium.NAMES)} is installed")

LIMITS = Limits(rows=8, waiting=16, tokens=200, seconds=1e6)
TALKS = "[...document.querySelectorAll('.talk')]"
IDLE = "!document.querySelector('[name=send]').disabled"
SECONDS = 300.0  # for a part of an answer, beside other work


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
  return TinyChat(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def served(chat):
  return loaded(str(chat.folder), [f"{name}={folder}" for name, folder in chat.adapters.items()])


@pytest.fixture
def page(tmp_path):
  with chromium.browser(tmp_path / "profile") as found:
    yield found


def lines(page, kind):
  """The lines of a kind on each side."""
  return page.value(f"{TALKS}.map(talk => [...talk.querySelectorAll('.{kind}')].map(line => line.textContent))")


def choose(page, side, name):
  """Chooses a side's model as a keyboard does."""
  page.value(f"document.querySelectorAll('select')[{side}].focus()")
  page.type(name)
  page.wait(f"document.querySelectorAll('select')[{side}].value === '{name}'")


@pytest.fixture
def gates(monkeypatch):
  """Adapter -> the gate at which its newest answer waits after its first part."""
  found: dict[int, threading.Event] = {}
  submit = Engine.submit

  def gated(engine: Engine, job: Job) -> None:
    tell, gate, is_first = job.tell, threading.Event(), True

    def wait(piece: Piece) -> None:
      nonlocal is_first
      assert is_first or gate.wait(SECONDS)
      is_first = is_first and not piece.text
      tell(piece)

    job.tell, found[job.adapter] = wait, gate
    submit(engine, job)

  monkeypatch.setattr(Engine, "submit", gated)
  return found


def first_parts(page, gates, count):
  """What each side shows of its answer of this count while no more than the first part is told."""
  parts, until = ["", ""], time.monotonic() + SECONDS
  while not all(parts):
    assert time.monotonic() < until, parts
    for side, said in enumerate(lines(page, "assistant")):
      if len(said) == count and said[-1] and not parts[side]:
        parts[side] = said[-1]
        gates[side].set()
  return parts


def test_two_adapters_answer_side_by_side(page, served, chat, gates):
  with running(served, LIMITS) as (host, port):
    page.open(f"http://{host}:{port}/")
    page.wait("document.querySelector('select').value")
    assert page.value("[...document.querySelector('select').options].map(one => one.value)") == list(served.names)
    choose(page, 0, "formal")
    choose(page, 1, "plain")
    page.write("[name=tokens]", "40")
    talks: dict[str, list[dict[str, str]]] = {"formal": [], "plain": []}
    for count, text in enumerate(("the lazy fox?", "<b>0 1 2 &amp; 3</b>"), 1):
      page.write("textarea", text)
      page.press("Enter", 13, "\r")
      parts = first_parts(page, gates, count)
      page.wait(IDLE)
      for (name, messages), part, said in zip(talks.items(), parts, lines(page, "assistant"), strict=True):
        messages.append({"role": "user", "content": text})
        wanted = chat.reply(messages, name, 40)
        assert said[-1] == wanted and wanted.startswith(part) and len(part) < len(wanted)  # it came in parts
        messages.append({"role": "assistant", "content": wanted})
    for kind in ("user", "assistant"):
      wanted_lines = [[one["content"] for one in messages if one["role"] == kind] for messages in talks.values()]
      assert lines(page, kind) == wanted_lines
    assert lines(page, "assistant")[0] != lines(page, "assistant")[1] and lines(page, "error") == [[], []]
    page.click("[name=again]")
    assert lines(page, "user") == [[], []]
  assert page.complaints == []


def test_starting_again_ends_the_answers_under_way(page, served, chat):
  with running(served, LIMITS) as (host, port):
    page.open(f"http://{host}:{port}/")
    page.wait("document.querySelector('select').value")
    page.write("[name=tokens]", "150")
    page.write("textarea", "the quick")
    page.click("[name=send]")
    page.click("[name=again]")
    page.wait(IDLE)
    page.write("[name=tokens]", "9")
    page.write("textarea", "fox")
    page.click("[name=send]")
    page.wait(f"{TALKS}.every(talk => talk.querySelector('.assistant'))")
    page.wait(IDLE)
    messages = [{"role": "user", "content": "fox"}]
    assert lines(page, "assistant") == [[chat.reply(messages, name, 9)] for name in ("", "formal")]
    assert lines(page, "error") == [[], []]
  assert page.complaints == []


def test_what_the_page_says_is_wrong(page, served, chat):
  with running(served, LIMITS, key="secret") as (host, port):
    page.open(f"http://{host}:{port}/")
    page.wait("document.querySelector('.error')")
    assert lines(page, "error") == [["expected Authorization: Bearer KEY with the server's key"], []]
    page.write("[name=key]", "secret")
    page.write("[name=tokens]", "201")
    page.write("textarea", "fox")
    page.press("Enter", 13, "\r")
    page.wait(f"{TALKS}.every(talk => talk.querySelector('.error:last-child'))")
    page.wait(IDLE)
    assert [one[-1] for one in lines(page, "error")] == ["max_tokens=201: at most 200 here"] * 2
    page.write("[name=tokens]", "5")
    page.write("textarea", "fox")
    page.press("Enter", 13, "\r")
    page.wait(f"{TALKS}.every(talk => talk.querySelector('.assistant:last-child')?.textContent)")
    page.wait(IDLE)
    messages = [{"role": "user", "content": "fox"}]
    assert [one[-1] for one in lines(page, "assistant")] == [chat.reply(messages, name, 5) for name in ("", "formal")]
