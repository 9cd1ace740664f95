"""`peftjax serve`, asked over HTTP: what is answered is what transformers and peft say."""

from __future__ import annotations

import copy
import http.client
import importlib.util
import json
import shutil
import threading
import types

import numpy as np
import peft
import pytest
import transformers

from peftjax import cli
from peftjax.errors import UserError
from peftjax.serve import engine as engine_lib
from peftjax.serve.engine import Full, Limits, Piece
from peftjax.serve.protocol import ApiError, asked
from peftjax.serve.running import limits_of
from peftjax.serve.served import loaded, named
from tests.serve.server import running
from tests.serve.tiny_chat import POSITIONS, TinyChat

pytest.importorskip("uvicorn", reason="uvicorn is an extra")
pytest.importorskip("starlette", reason="starlette is an extra")

LIMITS = Limits(rows=8, waiting=16, tokens=200, seconds=1e6)
PROMPTS = ("the quick", "0 1 2 3 4", "grüße aus köln, ça va, the lazy dog jumps", "fox")


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
  return TinyChat(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def served(chat):
  return loaded(str(chat.folder), [f"{name}={folder}" for name, folder in chat.adapters.items()])


@pytest.fixture(scope="module")
def place(served):
  with running(served, LIMITS) as found:
    yield found


def call(place, path, body=None, method="", **headers):
  """(status, body) of a request; of JSON what it says."""
  connection = http.client.HTTPConnection(*place, timeout=900)
  content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
  given = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
  connection.request(method or ("POST" if body is not None else "GET"), path, content, given)
  answer = connection.getresponse()
  text = answer.read().decode()
  connection.close()
  return answer.status, json.loads(text) if answer.headers.get_content_type() == "application/json" else text


def test_what_is_there(place):
  status, found = call(place, "/v1/models")
  assert status == 200 and [one["id"] for one in found["data"]] == ["tiny-chat", "formal", "plain"]
  assert call(place, "/v1/models/formal")[1]["parent"] == "tiny-chat" and call(place, "/health")[0] == 200
  status, page = call(place, "/")
  assert status == 200 and page.startswith("<!doctype html>") and "http://" not in page and "https://" not in page


def test_each_model_in_one_batch_says_what_peft_has_it_say(place, chat):
  """Twelve requests at once: base and adapters mixed, prompts and answers of several lengths."""
  cases = [(prompt, name, 5 + 4 * number) for number, prompt in enumerate(PROMPTS) for name in ("", "formal", "plain")]
  found: dict[int, object] = {}

  def ask(number):
    prompt, name, most = cases[number]
    body = {"model": name or "tiny-chat", "prompt": prompt, "max_tokens": most, "temperature": 0}
    found[number] = call(place, "/v1/completions", body)

  threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(cases))]
  for one in threads:
    one.start()
  for one in threads:
    one.join()
  for number, (prompt, name, most) in enumerate(cases):
    status, answer = found[number]
    assert status == 200, answer
    (choice,) = answer["choices"]
    assert choice["text"] == chat.answer(prompt, name, most), (prompt, name)
    ids = chat.says(chat.tokenizer.encode(prompt), name, most)
    ended = ids[-1] == chat.tokenizer.eos_token_id
    assert choice["finish_reason"] == ("stop" if ended else "length")
    used = answer["usage"]
    assert (used["prompt_tokens"], used["completion_tokens"]) == (len(chat.tokenizer.encode(prompt)), len(ids))
  assert len({answer["choices"][0]["text"] for _, answer in list(found.values())[:3]}) == 3


def test_a_conversation_in_parts(place, chat):
  messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "the lazy fox?"}]
  body = {"model": "plain", "messages": messages, "temperature": 0, "max_tokens": 40, "stream": True,
          "stream_options": {"include_usage": True}}  # fmt: skip
  status, text = call(place, "/v1/chat/completions", body)
  events = [one.removeprefix("data: ") for one in text.split("\n\n") if one]
  assert status == 200 and events[-1] == "[DONE]"
  *parts, usage = [json.loads(one) for one in events[:-1]]
  assert {one["object"] for one in parts} == {"chat.completion.chunk"} and len({one["id"] for one in parts}) == 1
  deltas = [one["choices"][0]["delta"] for one in parts]
  assert deltas[0]["role"] == "assistant" and len(deltas) > 3
  wanted = chat.reply(messages, "plain", 40)
  assert "".join(one.get("content", "") for one in deltas) == wanted
  assert parts[-1]["choices"][0]["finish_reason"] in ("stop", "length") and not usage["choices"]
  whole = call(place, "/v1/chat/completions", {**body, "stream": False, "stream_options": None})[1]
  assert whole["choices"][0]["message"] == {"role": "assistant", "content": wanted}
  assert usage["usage"] == whole["usage"]
  stopped = wanted[len(wanted) // 2 :][:2]
  short = call(place, "/v1/chat/completions", {**body, "stream": False, "stream_options": None, "stop": stopped})[1]
  assert short["choices"][0]["message"]["content"] == wanted[: wanted.index(stopped)]
  assert short["choices"][0]["finish_reason"] == "stop"


def test_a_seed_decides_a_draw_whatever_else_is_in_the_batch(place):
  body = {"model": "formal", "prompt": "the", "max_tokens": 9, "temperature": 1.3, "top_p": 0.9, "seed": 7}
  alone = call(place, "/v1/completions", body)[1]["choices"][0]["text"]
  texts: dict[int, str] = {}

  def ask(seed):
    texts[seed] = call(place, "/v1/completions", {**body, "seed": seed})[1]["choices"][0]["text"]

  threads = [threading.Thread(target=ask, args=(seed,)) for seed in (5, 6, 7)]
  for one in threads:
    one.start()
  for one in threads:
    one.join()
  assert texts[7] == alone and len(set(texts.values())) == 3


BAD = {
  "no such model": ({"model": "formel", "prompt": "a"}, 404, "model", "no model 'formel'; did you mean 'formal'"),
  "no prompt": ({"model": "formal"}, 400, "prompt", "prompt: expected one text"),
  "two answers": ({"model": "formal", "prompt": "a", "n": 2}, 400, "n", "n is not computed here"),
  "too hot": ({"model": "formal", "prompt": "a", "temperature": 3}, 400, "temperature", "from 0 to 2"),
  "no number": ({"model": "formal", "prompt": "a", "max_tokens": "9"}, 400, "max_tokens", "a whole number"),
  "too many": ({"model": "formal", "prompt": "a", "max_tokens": 201}, 400, "max_tokens", "at most 200 here"),
  "too long": ({"model": "formal", "prompt": "0 " * POSITIONS}, 400, "prompt", "fit beside 1 of an answer"),
  "an array": ([], 400, None, "expected a JSON object"),
  "no JSON": (b'{"model": ', 400, None, "the body is no JSON"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(place, case):
  body, status, param, line = BAD[case]
  found, answer = call(place, "/v1/completions", body)
  assert (found, answer["error"]["param"]) == (status, param) and line in answer["error"]["message"]
  assert answer["error"]["type"] == "invalid_request_error" and "\n" not in answer["error"]["message"]


def test_what_is_refused_before_it_is_read(place, served):
  body = {"model": "formal", "prompt": "a"}
  assert call(place, "/v1/completions", body, Content_Type="text/plain")[0] == 415
  assert call(place, "/v1/completions", b" " * (2**20 + 1))[0] == 413
  assert call(place, "/v1/models", Host="elsewhere.example")[0] == 400
  assert call(place, "/v1/embeddings", body)[0] == 404 and call(place, "/v1/completions", method="DELETE")[0] == 405
  with running(served, LIMITS, key="secret") as other:
    status, answer = call(other, "/v1/models")
    assert status == 401 and answer["error"]["code"] == "invalid_api_key"
    assert call(other, "/v1/models", Authorization="Bearer secret")[0] == 200


def job_of(served, engine, told, most=64):
  body = {"model": "formal", "prompt": "the", "max_tokens": most, "temperature": 0}
  return served.job(asked(body, False), engine, told.append)


def test_limits_of_queue_and_time(served, monkeypatch):
  limits = Limits(rows=1, waiting=2, tokens=64)
  engine, told = served.engine(limits), list[Piece]()  # not begun: all wait
  for _ in range(2):
    engine.submit(job_of(served, engine, told))
  with pytest.raises(Full):
    engine.submit(job_of(served, engine, told))
  late = job_of(served, engine, told)
  flight = engine_lib._Flight(served.model, served.tokenizer, served.rules, [late], mixes=True)
  late.until = -1.0
  flight.advance()
  assert flight.done.all() and told[-1].finish == "timeout" and told[-1].tokens == 8
  body = {"model": "formal", "prompt": "the", "max_tokens": 16}
  with running(served, Limits(seconds=1e-9)) as place:  # it waits for longer than that
    status, answer = call(place, "/v1/completions", body)
    assert status == 504 and answer["error"]["code"] == "timeout"
    text = call(place, "/v1/chat/completions", {**body, "prompt": None, "messages": [{"role": "user", "content": "x"}],
                                                "stream": True})[1]  # fmt: skip
    assert json.loads(text.split("\n\n")[-2].removeprefix("data: "))["error"]["code"] == "timeout"

    def full(self, job):
      raise Full

    monkeypatch.setattr(engine_lib.Engine, "submit", full)
    status, answer = call(place, "/v1/completions", body)
    assert status == 429 and answer["error"]["type"] == "rate_limit_error" and "try again later" in str(answer)


def test_a_batch_that_fails_is_told_and_the_next_one_goes_on(place, chat, monkeypatch):
  plain, fails = engine_lib._Flight.advance, [True]

  def advance(self):
    if fails.pop() if fails else False:
      raise RuntimeError("out of memory\nat great length")
    plain(self)

  monkeypatch.setattr(engine_lib._Flight, "advance", advance)
  body = {"model": "formal", "prompt": "the", "max_tokens": 5, "temperature": 0}
  status, answer = call(place, "/v1/completions", body)
  assert status == 500 and answer["error"]["message"] == "the model failed; the server's log says why"
  assert call(place, "/v1/completions", body)[1]["choices"][0]["text"] == chat.answer("the", "formal", 5)


@pytest.mark.skipif(importlib.util.find_spec("openai") is None, reason="openai is not installed")
def test_the_official_client(place, chat):
  import openai

  with openai.OpenAI(base_url=f"http://{place[0]}:{place[1]}/v1", api_key="none", max_retries=0) as client:
    assert [one.id for one in client.models.list()] == ["tiny-chat", "formal", "plain"]
    messages = [{"role": "user", "content": "the quick"}]
    for name in ("tiny-chat", "formal"):
      wanted = chat.reply(messages, "" if name == "tiny-chat" else name, 9)
      whole = client.chat.completions.create(model=name, messages=messages, temperature=0, max_tokens=9)
      assert whole.choices[0].message.content == wanted and whole.usage.total_tokens > 9
      parts = client.chat.completions.create(model=name, messages=messages, temperature=0, max_tokens=9, stream=True)
      assert "".join(one.choices[0].delta.content or "" for one in parts) == wanted
    text = client.completions.create(model="plain", prompt="fox", temperature=0, max_tokens=7).choices[0].text
    assert text == chat.answer("fox", "plain", 7)
    with pytest.raises(openai.NotFoundError, match="did you mean 'plain'"):
      client.completions.create(model="plane", prompt="fox")


def test_fields_that_are_no_requests():
  body = {"model": "a", "messages": [{"role": "developer", "content": [{"type": "text", "text": "x"}]}], "user": "me"}
  assert asked(body, True).messages == ({"role": "system", "content": "x"},) and asked(body, True).temperature == 1.0
  with pytest.raises(ApiError, match=r"messages\[0\].role: expected one of"):
    asked({**body, "messages": [{"role": "robot", "content": "x"}]}, True)
  with pytest.raises(ApiError, match="stop: expected a text, or a list of at most 4"):
    asked({**body, "stop": ["a"] * 5}, True)
  assert named(["a=b/c", "d/e"]) == {"a": "b/c", "e": "d/e"}
  with pytest.raises(UserError, match="each of another name"):
    named(["x/a", "y/a"])
  flags = types.SimpleNamespace(batch="4", waiting="", max_tokens="", max_prompt="0", timeout="7")
  assert limits_of(flags) == Limits(rows=4, seconds=7)
  with pytest.raises(UserError, match="--batch=0: expected a whole number from 1"):
    limits_of(types.SimpleNamespace(**{**vars(flags), "batch": "0"}))


def test_draws_of_each_row_are_those_of_all():
  """The law of a row's draws: its own temperature and top_p; as likely as torch's after the same cut."""
  import jax.numpy as jnp
  import torch
  from transformers.generation.logits_process import TopPLogitsWarper

  from peftjax.models.sampling import Draws, choose_each

  logits = np.random.default_rng(0).normal(size=(1, 9)).astype(np.float32) * 2
  rows = 4000
  draws = Draws(jnp.full(rows, 0.8), jnp.full(rows, 0.7), jnp.arange(rows, dtype=jnp.uint32))
  tokens = np.asarray(choose_each(draws, jnp.tile(logits, (rows, 1)), jnp.int32(3)))
  cut = TopPLogitsWarper(0.7)(None, torch.from_numpy(logits) / 0.8)
  wanted = torch.softmax(cut, -1)[0].numpy()
  shares = np.bincount(tokens, minlength=9) / rows
  assert not shares[wanted == 0].any() and np.abs(shares - wanted).max() < 0.03
  greedy = choose_each(draws._replace(temperature=jnp.zeros(rows)), jnp.tile(logits, (rows, 1)), jnp.int32(0))
  assert (np.asarray(greedy) == logits.argmax()).all()


@pytest.mark.parametrize("resized", [False, True])
def test_an_adapter_with_tokens_of_its_own_is_refused_and_padding_is_none(chat, tmp_path, resized):
  """Its texts would be cut into other tokens than it was trained on, and rows that it brings would be left out."""
  tokenizer = copy.deepcopy(chat.tokenizer)
  tokenizer.add_special_tokens({"pad_token": "<pad>"})
  if resized:
    base = transformers.LlamaForCausalLM.from_pretrained(chat.folder)
    base.resize_token_embeddings(len(tokenizer))
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    peft.get_peft_model(base, lora).save_pretrained(tmp_path / "tuned")
  else:
    shutil.copytree(chat.adapters["plain"], tmp_path / "tuned")
  tokenizer.save_pretrained(tmp_path / "tuned")
  served = loaded(str(chat.folder), [str(tmp_path / "tuned")])
  assert served.names == ("tiny-chat", "tuned") and served.tokenizer.encode_bare(["fox"]) == [
    chat.tokenizer.encode("fox")
  ]
  tokenizer.add_tokens(["<tool>"])
  tokenizer.save_pretrained(tmp_path / "tuned")
  with pytest.raises(UserError, match="--adapter=tuned: it has tokens of its own, such as '<tool>', and all"):
    loaded(str(chat.folder), [str(tmp_path / "tuned")])
  if resized:
    for path in (tmp_path / "tuned").glob("tokenizer*"):
      path.unlink()
    with pytest.raises(UserError, match="such as '301 in place of 300'"):
      loaded(str(chat.folder), [str(tmp_path / "tuned")])


def test_flags_that_are_wrong(chat, capsys):
  assert cli.main(["serve", f"--model={chat.folder}", "--port=99999"]) == 2
  assert "expected a whole number from 0 to 65535" in capsys.readouterr().err
  assert cli.main(["serve", f"--model={chat.folder}", f"--adapter=tiny-chat={chat.adapters['plain']}"]) == 2
  assert "is the base's name" in capsys.readouterr().err
