"""Chat templates: what is learned of a conversation, where they come from, and such as go on without end."""

from __future__ import annotations

import json

import pytest

from peftjax.data.inputs.chat import ChatTemplate, load_chat_template
from peftjax.errors import UserError
from tests.fuzz.harness import REFUSED, outcome_of

PLAIN = (
  "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
  "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TURNS = [
  {"role": "user", "content": "a"},
  {"role": "assistant", "content": "b"},
  {"role": "user", "content": "c"},
  {"role": "assistant", "content": "d"},
]


def answers(source: str, messages=TURNS, **variables) -> list[str]:
  text, spans = ChatTemplate(source, variables).render_answers(messages)
  return [text[first:last] for first, last in spans]


def test_answers_and_what_ends_them():
  assert answers(PLAIN) == ["b</s>", "d</s>"]
  assert answers(PLAIN, TURNS[:3]) == ["b</s>"]


def test_marks_of_the_template_go_first():
  content = "{% generation %}{{ m.content }}!{% endgeneration %}"
  marked = f"{{% for m in messages %}}{{% if m.role == 'user' %}}{content}{{% endif %}}{{% endfor %}}"
  assert answers(marked) == ["a!", "c!"]
  outside = "{% if false %}{% generation %}{% endgeneration %}{% endif %}" + PLAIN
  with pytest.raises(UserError, match="needs a message of the role 'assistant'"):
    answers(outside)


@pytest.mark.parametrize(
  ("change", "expected"),
  [
    # Reasoning that only the last answer keeps is learned there.
    (("{{ m.content }}", "{% if loop.last and m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}"),
     ["b</s>", "<think></think>d</s>"]),
    # What only the last message ends with is learned there.
    (("</s>", "</s>{% if loop.last %}<end>{% endif %}"), ["b</s>", "d</s><end>"]),
    # A header that says more when it asks.
    (("%}<assistant>", "%}<assistant><think>"), ["b</s>", "d</s>"]),
    # A system line that moves to the last question.
    (("<{{ m.role }}>", "<{{ m.role }}>{% if m.role == 'user' and loop.index >= loop.length - 1 %}[sys]{% endif %}"),
     ["b</s>", "d</s>"]),
    # Answers that are cleaned or changed.
    (("{{ m.content }}", "{{ m.content | trim | upper }}{% if loop.last %}.{% endif %}"), ["B</s>", "D.</s>"]),
  ],
)  # fmt: skip
def test_templates_that_write_a_message_otherwise_when_another_follows(change, expected):
  assert answers(PLAIN.replace(*change)) == expected


def test_answers_that_the_text_leaves_out_are_not_learned_and_doubled_ones_refused():
  assert answers("{{ messages[-1].content }}") == ["d"]
  with pytest.raises(UserError, match="needs a message of the role 'assistant'"):
    answers("{{ messages[0].content }}")
  with pytest.raises(UserError, match="changes an answer, or writes it more than once"):
    answers("{% for m in messages %}{{ m.content }}{{ loop.last }}{{ m.content }}{% endfor %}")
  with pytest.raises(UserError, match="does not put messages one after the other"):
    answers("{% for m in messages|reverse %}<{{ m.role }}>{{ m.content }}{% endfor %}")


def test_templates_of_a_folder(tmp_path):
  def of(settings: dict) -> ChatTemplate:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    return load_chat_template(tmp_path)

  tokens = {"bos_token": {"content": "<s>", "__type": "AddedToken"}, "image_token": "<i>", "eos_token": None}
  assert of({"chat_template": "{{ bos_token }}{{ image_token }}{{ eos_token }}", **tokens}).render(TURNS) == "<s><i>"
  named = [{"name": "default", "template": "one"}, {"name": "rag", "template": "two"}]
  assert of({"chat_template": named}).source == "one"
  with pytest.raises(UserError, match="has chat templates called rag, and none called default"):
    of({"chat_template": named[1:]})
  for wrong in (5, [5], [{"name": 1}], [{"name": "default", "template": 5}], {"default": 5}):
    with pytest.raises(UserError, match="expected a template, or a list of name and template"):
      of({"chat_template": wrong})
  with pytest.raises(UserError, match="has no chat template"):
    of({})
  (tmp_path / "additional_chat_templates").mkdir()
  (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("three")
  with pytest.raises(UserError, match="called rag, and none called default"):
    of({"chat_template": "one"})
  (tmp_path / "chat_template.jinja").write_text("four")
  assert of({"chat_template": "one"}).source == "four"
  (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
  with pytest.raises(UserError, match="chat_template.jinja: not UTF-8"):
    of({})


WITHOUT_END = [
  "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
  "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
  "{% set n = namespace(a='x') %}{% for i in range(60) %}{% set n.a = n.a ~ n.a %}{% endfor %}",
  "{% set n = namespace(a=[1]) %}{% for i in range(60) %}{% set n.a = [n.a, n.a] %}{% endfor %}{{ n.a }}",
  "{% set n = namespace(a=1) %}{% for i in range(99999) %}{% set n.a = n.a + n.a %}{% endfor %}{{ n.a }}",
  "{% macro d(s) %}{{ s }}{{ s }}{% endmacro %}" + "{{ " + "d(" * 40 + "'x'" + ")" * 40 + " }}",
  "{% macro d(s) %}{{ d(s) }}{% endmacro %}{{ d('x') }}",
  "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
  "{{ 'a' * 999999999 }}",
  "{{ 10 ** 10 ** 8 }}",
  "{{ 'a' | center(999999999) }}",
  "{{ '%999999999d' % 1 }}",
  "{{ '{:>999999999}'.format(1) }}",
  "{{ range(99999) | list | join('a' * 9999) }}",
  "{{ ('a' * 99999).replace('a', 'b' * 9999) }}",
  "{{ range(99999) | list | tojson(indent=9999) }}",
  "{{ strftime_now('%999999999d') }}",
]
FAILING = [
  "{{ 1/0 }}", "{{ 1 + 'a' }}", "{{", "{% unknown %}", "{% include 'x' %}", "{{ ''.__class__.__mro__ }}",
  "{{ messages.append(1) }}", "{{ raise_exception('no') }}", "{{ nothing.at.all }}", "{% if x %}" * 3000,
  "{{ " + "(" * 3000 + ")" * 3000 + " }}", "{{ namespace(_x=1) }}", "{{ lipsum(5) }}", "x" * 300_000,
]  # fmt: skip


@pytest.mark.parametrize("source", WITHOUT_END + FAILING, ids=range(len(WITHOUT_END + FAILING)))
def test_a_template_without_end_or_with_a_mistake_stops_with_one_line(source):
  found = outcome_of(lambda: ChatTemplate(source).render(TURNS))
  assert found.kind == REFUSED, found
  assert "chat template" in found.detail


def test_long_conversations_are_within_the_bounds():
  long = [{"role": one["role"], "content": one["content"] * 50_000} for one in TURNS * 10]
  assert len(ChatTemplate(PLAIN).render(long)) > 2_000_000
