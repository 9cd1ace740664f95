"""Models, adapters and data sets of a hub by name: ``hub:OWNER/NAME`` or ``hub:OWNER/NAME@REVISION``.

`huggingface_hub` downloads what is not in its cache yet, and keeps it there. Weights, tables and settings are taken,
never a program; see docs/security.md.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from peftjax.errors import NotHere, UserError
from peftjax.extras import require

PREFIX = "hub:"
NAMES = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
FILES = {
  "model": ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.gguf"),
  "dataset": ("*.parquet", "*.arrow", "*.jsonl", "*.csv", "*.tsv", "*.json"),
}


def local(path: str | os.PathLike[str]) -> str:
  """The folder that a path of a model or an adapter stands for: the snapshot of ``hub:...``, any other as it is."""
  text = os.fspath(path)
  return str(snapshot("model", text.removeprefix(PREFIX))) if text.startswith(PREFIX) else text


def snapshot(kind: str, spec: str) -> Path:
  """The folder of a repository's files at a revision, in the cache of `huggingface_hub`.

  Args:
    kind: "model" or "dataset".
    spec: OWNER/NAME, perhaps with @REVISION: a branch, a tag or a commit.

  Raises:
    UserError: no such repository or revision, or one that may not be read; `huggingface_hub` is not installed.
    NotHere: it is not in the cache, and the hub cannot be reached.
  """
  where = f"{PREFIX}{spec}"
  found = NAMES.fullmatch(spec)
  if found is None or ".." in spec:
    raise UserError(f"{where}: expected {PREFIX}OWNER/NAME, or {PREFIX}OWNER/NAME@REVISION")
  require(where, "huggingface_hub", "hub")
  import huggingface_hub as hub
  from huggingface_hub import errors

  endpoint = os.environ.get("HF_ENDPOINT")
  wanted: dict[str, Any] = {"repo_type": kind, "revision": found["revision"], "allow_patterns": list(FILES[kind])}
  print(f"{where}: of {endpoint or 'the hub'}, under the terms stated there", file=sys.stderr)
  try:
    return Path(hub.snapshot_download(found["name"], endpoint=endpoint, **wanted))
  except errors.GatedRepoError:
    raise UserError(f"{where}: its terms must be accepted on its page first, and `hf auth login` run here") from None
  except errors.RevisionNotFoundError:
    raise UserError(f"{where}: no revision {found['revision']!r} of this {kind}") from None
  except errors.RepositoryNotFoundError:
    raise UserError(f"{where}: no such {kind} on the hub, or a private one: `hf auth login` says who asks") from None
  except (errors.LocalEntryNotFoundError, OSError, errors.HfHubHTTPError) as error:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    raise NotHere(f"{where} is not in the cache, and cannot be had: {reason[:160]}") from None
