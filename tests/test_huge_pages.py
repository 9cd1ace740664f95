"""Verbs that train run with huge pages where the kernel gives them to those who ask."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from peftjax import huge_pages

# Says what the verb would run with; the process is the one that was started.
VERB = """
import os, sys
from peftjax import cli
say = lambda parsed, overrides: print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), parsed.workdir) or 0
for verb in cli._RUN:
  cli._RUN[verb] = say
sys.exit(cli.main())
"""


def started(verb: str = "train", **environment: str) -> tuple[int, str]:
  """The process's number, and what its verb printed."""
  kept = {name: value for name, value in os.environ.items() if name != huge_pages.TUNABLES}
  with subprocess.Popen(
    [sys.executable, "-c", VERB, verb, "--workdir=a b"], stdout=subprocess.PIPE, text=True, env=kept | environment
  ) as process:
    return process.pid, process.communicate()[0].strip()


@pytest.mark.skipif(not huge_pages.SETTING.exists(), reason="not Linux")
@pytest.mark.parametrize("verb", ["train", "range", "compare"])
def test_the_command_starts_again_as_the_same_process_with_its_arguments(verb):
  number, printed = started(verb)
  asked = "glibc.malloc.hugetlb=1" if "[madvise]" in huge_pages.SETTING.read_text() else "None"
  assert printed == f"{number} {asked} a b"


@pytest.mark.parametrize("own", ["glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=2"])
def test_what_the_user_asked_for_stays(own):
  number, printed = started(GLIBC_TUNABLES=own)
  assert printed == f"{number} {own} a b"


def test_another_tunable_is_kept_beside(monkeypatch, tmp_path):
  setting = tmp_path / "enabled"
  setting.write_text("always [madvise] never\n")
  monkeypatch.setattr(huge_pages, "SETTING", setting)
  monkeypatch.setenv(huge_pages.TUNABLES, "glibc.malloc.check=1")
  called = []
  monkeypatch.setattr(os, "execv", lambda *call: called.append((os.environ[huge_pages.TUNABLES], *call)))
  huge_pages.start_again()
  assert called == [
    ("glibc.malloc.check=1:glibc.malloc.hugetlb=1", sys.executable, [sys.executable, *sys.orig_argv[1:]])
  ]


@pytest.mark.parametrize("text", ["[always] madvise never", "always madvise [never]"])
def test_it_does_not_start_again_for_nothing(text, monkeypatch, tmp_path):
  setting = tmp_path / "enabled"
  setting.write_text(text)
  monkeypatch.setattr(huge_pages, "SETTING", setting)
  monkeypatch.delenv(huge_pages.TUNABLES, raising=False)
  assert not huge_pages.wanted()
