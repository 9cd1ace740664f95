"""A server on a free port of this machine, as `peftjax serve` runs it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from peftjax.serve.engine import Limits
from peftjax.serve.served import Served


@contextlib.contextmanager
def running(served: Served, limits: Limits, key: str = "") -> Iterator[tuple[str, int]]:
  """(host, port) of a server, which is asked to end after the block."""
  import uvicorn

  from peftjax.serve.app import app_of

  with served.engine(limits) as engine:
    app = app_of(served, engine, ("127.0.0.1",), key)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
      while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
      yield server.servers[0].sockets[0].getsockname()[:2]
    finally:
      server.should_exit = True
      thread.join()
