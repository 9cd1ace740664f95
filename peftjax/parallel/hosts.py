"""One run in several processes: how they find each other, and how all of them end when one is lost.

Where the coordinator is comes from, the first that says so: `config.hosts`; the variables PEFTJAX_COORDINATOR
("address:port"), PEFTJAX_PROCESSES and PEFTJAX_PROCESS; Slurm's variables, if there is more than one task; a TPU slice
of several hosts, which JAX asks its metadata server about. Otherwise the process is alone.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping

import jax
from ml_collections import ConfigDict

from peftjax.errors import UserError

PEER_LOST = 75  # the exit code: another process is gone; the same command, started on all of them, goes on
HEARTBEAT_SECONDS = 30  # silence after which a process counts as gone
_START_SECONDS = 300


def start(config: ConfigDict, environment: Mapping[str, str] = os.environ) -> bool:
  """Joins the processes of the run, once, before anything else uses a device. Returns whether there are several.

  Raises:
    UserError: the coordinator is named but not which process this is, or the others do not come.
  """
  found = explicit(config, environment)
  if found is None and not (_slurm(environment) or _tpu_slice(environment)):
    return False
  address, count, index = found or (None, None, None)
  try:
    jax.distributed.initialize(
      coordinator_address=address,
      num_processes=count,
      process_id=index,
      initialization_timeout=_START_SECONDS,
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )
  except Exception as error:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    raise UserError(f"the processes of the run did not find each other: {lines[0][:200]}") from None
  return jax.process_count() > 1


def is_first() -> bool:
  """Whether this is the process that writes and speaks for all."""
  return jax.process_index() == 0


def explicit(config: ConfigDict, environment: Mapping[str, str]) -> tuple[str, int, int] | None:
  """(address, processes, index) from the config, or else from the environment; None if neither names a coordinator.

  Raises:
    UserError: an address without the other two, or an index that does not fit.
  """
  hosts = config.get("hosts") or {}
  address = hosts.get("coordinator") or environment.get("PEFTJAX_COORDINATOR", "")
  if not address:
    return None
  in_config = bool(hosts.get("coordinator"))
  count = str(hosts["processes"] if in_config else environment.get("PEFTJAX_PROCESSES", ""))
  index = str(hosts["process"] if in_config else environment.get("PEFTJAX_PROCESS", ""))
  if in_config and index == "-1":
    index = environment.get("PEFTJAX_PROCESS", "")  # one config for all processes
  if not (count.isdigit() and index.isdigit() and int(index) < int(count)) or ":" not in address:
    raise UserError(
      f"the coordinator {address!r} with processes={count!r}, process={index!r}: expected ADDRESS:PORT, the number of "
      "processes, and this one's number from 0"
    )
  return address, int(count), int(index)


def _slurm(environment: Mapping[str, str]) -> bool:
  return "SLURM_JOB_ID" in environment and int(environment.get("SLURM_NTASKS", "1") or 1) > 1


def _tpu_slice(environment: Mapping[str, str]) -> bool:
  """Whether this is one of several hosts of a TPU slice; libtpu's and GKE's variables name the hosts."""
  return "," in environment.get("TPU_WORKER_HOSTNAMES", "") and environment.get("JAX_PLATFORMS", "tpu") != "cpu"


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
  """In a run of several processes, an error in the block ends this process at once, with one line and `PEER_LOST`.

  Whatever would wait for the others on the way out (a save's barrier, the coordinator's) waits for a process that may
  be gone. Mistakes of the user and requests to end are the same in all processes and pass through.
  """
  try:
    yield
  except (UserError, SystemExit, KeyboardInterrupt):
    raise
  except BaseException as error:
    if jax.process_count() == 1:
      raise
    lines = str(error).strip().splitlines() or [""]
    print(
      f"peftjax: process {jax.process_index()} of {jax.process_count()} cannot go on: {type(error).__name__}: "
      f"{lines[0][:200]}; if another one is gone, start all of them again: the same command goes on",
      file=sys.stderr,
      flush=True,
    )
    os._exit(PEER_LOST)
