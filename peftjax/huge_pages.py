"""Huge pages for a program's large arrays, on Linux.

A compiled step on a CPU asks for its memory anew each time, gigabytes of it, and the kernel hands that out zeroed in
pages of 4 KiB, a fault each. The C library asks for pages of 2 MiB where its tunable `glibc.malloc.hugetlb=1` says so
(https://www.gnu.org/software/libc/manual/html_node/Memory-Allocation-Tunables.html), which it reads from the
environment while a program starts, never later. So the command line starts itself once more, as the same process.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

TUNABLES = "GLIBC_TUNABLES"
ASKED = "glibc.malloc.hugetlb"
# "[madvise]" where the kernel gives huge pages to those who ask, the usual setting; with "[always]" nobody need ask.
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def wanted() -> bool:
  """Whether starting again with the tunable would give this program huge pages."""
  if not sys.platform.startswith("linux") or ASKED in os.environ.get(TUNABLES, "") or sys.gettrace() is not None:
    return False  # a debugger would lose its program
  try:
    return "[madvise]" in SETTING.read_text()
  except OSError:
    return False


def start_again() -> None:
  """Replaces this process by the same command with huge pages, where that gives any; returns where it does not."""
  if not wanted():
    return
  others = os.environ.get(TUNABLES, "")
  os.environ[TUNABLES] = f"{others}:{ASKED}=1" if others else f"{ASKED}=1"
  sys.stdout.flush()
  sys.stderr.flush()
  try:
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
  except OSError:
    return  # no worse than before
