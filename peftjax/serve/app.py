"""The server: OpenAI's routes over an engine, and a page to chat with two models side by side."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
from collections.abc import AsyncIterator, Mapping
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from peftjax.serve.engine import Engine, Full, Job, Piece
from peftjax.serve.protocol import Answering, ApiError, Asked, asked, unknown_model
from peftjax.serve.served import Served

MOST_BYTES = 2**20  # of a request's body
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"
_LATE = "the answer was not done in time; ask for fewer tokens, or again later"


def app_of(served: Served, engine: Engine, hosts: tuple[str, ...] = ("*",), key: str = "") -> Starlette:
  """The application.

  Args:
    engine: running.
    hosts: by which it may be called; a page of another site that resolves to this machine is refused.
    key: what every request must bring as "Authorization: Bearer KEY"; "" for none.
  """
  routes = _Routes(served, engine, key)
  return Starlette(
    routes=[
      Route("/", routes.page),
      Route("/health", routes.health),
      Route("/v1/models", routes.models),
      Route("/v1/models/{name:path}", routes.model),
      Route("/v1/completions", routes.completions, methods=["POST"]),
      Route("/v1/chat/completions", routes.chat, methods=["POST"]),
    ],
    middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))],
    exception_handlers={ApiError: _refused, 404: _no_route, 405: _no_route},
  )


async def _refused(request: Request, error: Exception) -> Response:
  del request
  assert isinstance(error, ApiError)
  return JSONResponse(error.body, error.status)


async def _no_route(request: Request, error: Exception) -> Response:
  status = getattr(error, "status_code", 404)
  return JSONResponse(ApiError(f"no {request.method} {request.url.path} here", status).body, status)


class _Routes:
  def __init__(self, served: Served, engine: Engine, key: str):
    self._served, self._engine, self._key = served, engine, key

  async def page(self, request: Request) -> Response:
    del request
    text = resources.files("peftjax.serve").joinpath("page.html").read_text(encoding="utf-8")
    return HTMLResponse(text, headers={"Content-Security-Policy": _POLICY})

  async def health(self, request: Request) -> Response:
    del request
    return JSONResponse({"status": "ok"})

  async def models(self, request: Request) -> Response:
    self._check(request)
    return JSONResponse({"object": "list", "data": [_model(name, self._served.names) for name in self._served.names]})

  async def model(self, request: Request) -> Response:
    self._check(request)
    name = request.path_params["name"]
    if name not in self._served.names:
      raise unknown_model(name, self._served.names)
    return JSONResponse(_model(name, self._served.names))

  async def completions(self, request: Request) -> Response:
    return await self._answer(request, is_chat=False)

  async def chat(self, request: Request) -> Response:
    return await self._answer(request, is_chat=True)

  def _check(self, request: Request) -> None:
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    if self._key and not hmac.compare_digest(given.encode(), self._key.encode()):
      raise ApiError("expected Authorization: Bearer KEY with the server's key", 401, code="invalid_api_key")

  async def _answer(self, request: Request, is_chat: bool) -> Response:
    self._check(request)
    wanted = asked(await _body(request), is_chat)
    pieces: asyncio.Queue[Piece] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def tell(piece: Piece) -> None:
      with contextlib.suppress(RuntimeError):  # the server has stopped
        loop.call_soon_threadsafe(pieces.put_nowait, piece)

    job = self._served.job(wanted, self._engine, tell)
    try:
      self._engine.submit(job)
    except Full:
      waiting = self._engine.limits.waiting
      raise ApiError(f"{waiting} requests wait already; try again later", 429, code="queue_full") from None
    if wanted.streams:
      return StreamingResponse(_events(wanted, job, pieces), media_type="text/event-stream")
    return await _whole(request, wanted, job, pieces)


def _model(name: str, names: tuple[str, ...]) -> dict[str, Any]:
  of = {} if name == names[0] else {"parent": names[0]}
  return {"id": name, "object": "model", "created": 0, "owned_by": "peftjax", **of}


async def _body(request: Request) -> Any:
  if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
    raise ApiError("expected Content-Type: application/json", 415)
  content = bytearray()
  async for part in request.stream():
    content += part
    if len(content) > MOST_BYTES:
      raise ApiError(f"a body of more than {MOST_BYTES:,} bytes", 413)
  try:
    return json.loads(bytes(content))
  except (ValueError, RecursionError) as error:
    raise ApiError(f"the body is no JSON: {str(error)[:100]}") from None


async def _whole(request: Request, wanted: Asked, job: Job, pieces: asyncio.Queue[Piece]) -> Response:
  """The answer at once; nobody writes on for a client that has gone."""
  text = ""
  gone = asyncio.create_task(_gone(request))
  try:
    while True:
      following = asyncio.create_task(pieces.get())
      await asyncio.wait({following, gone}, return_when=asyncio.FIRST_COMPLETED)
      if not following.done():
        following.cancel()
        return Response(status_code=499)
      piece = following.result()
      text += piece.text
      if error := _error(piece):
        raise error
      if piece.finish:
        return JSONResponse(Answering(wanted).whole(text, piece.finish, len(job.ids), piece.tokens))
  finally:
    gone.cancel()
    job.cancelled = True


async def _gone(request: Request) -> None:
  with contextlib.suppress(ClientDisconnect):
    while (await request.receive())["type"] != "http.disconnect":
      pass


async def _events(wanted: Asked, job: Job, pieces: asyncio.Queue[Piece]) -> AsyncIterator[str]:
  """The answer in parts, as server-sent events."""
  answering = Answering(wanted)
  try:
    if (first := answering.first()) is not None:
      yield _event(first)
    while True:
      piece = await pieces.get()
      if error := _error(piece):
        yield _event(error.body)
        return
      if piece.text or piece.finish:
        yield _event(answering.part(piece.text, piece.finish or None))
      if piece.finish:
        if wanted.counts:
          yield _event(answering.usage(len(job.ids), piece.tokens))
        yield "data: [DONE]\n\n"
        return
  finally:
    job.cancelled = True


def _error(piece: Piece) -> ApiError | None:
  if piece.finish == "timeout":
    return ApiError(_LATE, 504, code="timeout")
  if piece.finish == "failed":
    return ApiError(piece.text or "the model failed; the server's log says why", 500)
  return None


def _event(content: Mapping[str, Any]) -> str:
  return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
