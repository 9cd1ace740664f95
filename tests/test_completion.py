"""What bash and zsh complete, at a terminal of their own."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import time

import pytest

from peftjax import cli

SHELLS = {
  "bash": ["bash", "--norc", "--noprofile", "-i"],
  "zsh": ["zsh", "-f", "-i"],
}
PATIENCE = 60.0  # seconds, on a machine under load
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]|[\r\x07]")


class Terminal:
  """A shell in a folder, with what it shows."""

  def __init__(self, argv, folder):
    self.process, self._to = pty.fork()
    if self.process == 0:  # the shell's own
      os.chdir(folder)
      os.execvpe(argv[0], argv, {"PATH": os.environ["PATH"], "TERM": "dumb", "PS1": "ready> ", "HOME": str(folder)})

  def types(self, keys, until):
    """Types keys and waits until the screen shows a text."""
    os.write(self._to, keys.encode())
    shown, end = "", time.monotonic() + PATIENCE
    while until not in (seen := _CONTROL.sub("", shown).replace(keys, "", 1)):
      if time.monotonic() > end:
        pytest.fail(f"{keys!r} shows {seen!r}, and not {until!r}")
      if select.select([self._to], [], [], 0.2)[0]:
        shown += os.read(self._to, 65536).decode(errors="replace")

  def close(self):
    os.close(self._to)
    os.kill(self.process, 9)
    os.waitpid(self.process, 0)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_verbs_fields_and_files(shell, tmp_path, capsys):
  if shutil.which(shell) is None:
    pytest.skip(f"no {shell} here; .ci/run installs it")
  assert cli.main(["completion", shell]) == 0
  (tmp_path / "completion").write_text(capsys.readouterr().out)
  (tmp_path / "reviews.csv").write_text("text,label\n")
  terminal = Terminal(SHELLS[shell], tmp_path)
  try:
    terminal.types("source ./completion; echo so''urced\n", "sourced")
    terminal.types("peftjax gen\t", "erate")
    terminal.types("\x15peftjax train --wor\t", "kdir=")
    terminal.types("\x15peftjax train --config.optim.learn\t", "ing_rate=")
    terminal.types("\x15peftjax train --config.data.name=csv:rev\t", "iews.csv")
    terminal.types("\x15peftjax list meth\t", "ods")
  finally:
    terminal.close()
