"""`peftjax serve`: from flags to a server that runs until it is asked to end."""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import Any

from peftjax.errors import UserError
from peftjax.extras import require
from peftjax.kinds import whole_of_text
from peftjax.serve.engine import Limits
from peftjax.serve.served import loaded

KEY = "PEFTJAX_SERVE_KEY"  # the environment's, so that no list of processes shows it
_HERE = ("127.0.0.1", "localhost")


def limits_of(flags: Any) -> Limits:
  """The limits among the command line's flags.

  Raises:
    UserError: one is no number, or not in its range.
  """
  found: dict[str, Any] = {}
  for flag, field, least in (("batch", "rows", 1), ("waiting", "waiting", 1), ("max_tokens", "tokens", 1),
                             ("max_prompt", "prompt", 0), ("timeout", "seconds", 1)):  # fmt: skip
    if text := getattr(flags, flag):
      value = whole_of_text(text, least, 2**24)
      if value is None:
        raise UserError(f"peftjax serve --{flag}={text}: expected a whole number from {least} to {2**24:,}")
      found[field] = value
  return dataclasses.replace(Limits(), **found)


def run(flags: Any) -> int:
  """Serves until SIGINT or SIGTERM; requests under way are answered first.

  Raises:
    UserError: a flag, the model or an adapter is not what was expected; starlette or uvicorn is not installed.
  """
  for package in ("starlette", "uvicorn"):
    require("peftjax serve", package, "serve")
  limits = limits_of(flags)
  port = whole_of_text(flags.port or "8000", 0, 65535)
  if port is None:
    raise UserError(f"peftjax serve --port={flags.port}: expected a whole number from 0 to 65535")
  served = loaded(flags.model, flags.adapter, flags.name, flags.other_base)
  import uvicorn

  from peftjax.serve.app import app_of

  host = flags.host or "127.0.0.1"
  hosts = (*_HERE, host) if host in _HERE else ("*",)
  with served.engine(limits) as engine:
    app = app_of(served, engine, hosts, os.environ.get(KEY, ""))
    config = uvicorn.Config(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=10)
    print(f"{', '.join(served.names)} at http://{host}:{port}/ and http://{host}:{port}/v1", file=sys.stderr)
    uvicorn.Server(config).run()
  return 0
