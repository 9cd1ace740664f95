"""A headless Chromium, driven through the pipe of its DevTools protocol: nothing has to be installed but the browser.

https://chromedevtools.github.io/devtools-protocol/: messages are JSON objects that end in a zero byte, read by the
browser from its file descriptor 3 and written to 4.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
  *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
  *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)
_SECONDS = 300.0  # for one answer of the browser, beside other work


def path() -> str:
  """The browser's path; "" where there is none."""
  return next(filter(None, map(shutil.which, NAMES)), "")


@contextlib.contextmanager
def browser(profile: Path, width: int = 1200, height: int = 800) -> Iterator[Page]:
  """An empty page of a browser that ends with the block.

  Args:
    profile: a folder of its own, not there yet.
    width, height: of the window in CSS pixels.
  """
  there, ours = os.pipe()
  here, theirs = os.pipe()
  # numbers above those that the shell lays them on
  lent = [fcntl.fcntl(one, fcntl.F_DUPFD, 10) for one in (there, theirs)]
  os.close(there)
  os.close(theirs)
  script = f'exec "$0" "$@" 3<&{lent[0]} 4>&{lent[1]}'
  flags = (*_FLAGS, "--remote-debugging-pipe", f"--user-data-dir={profile}", f"--window-size={width},{height}")
  with profile.with_suffix(".log").open("wb") as log:
    process = subprocess.Popen(["bash", "-c", script, path(), *flags], pass_fds=lent, stdout=log, stderr=log)
  for one in lent:
    os.close(one)
  page = Page(here, ours)
  try:
    page.attach()
    yield page
    page.call("Browser.close")
    process.wait(_SECONDS)
  finally:
    process.kill()
    process.wait()
    page.close()


class Page:
  """One page.

  Attributes:
    complaints: what the browser's console said of it, and what its scripts raised.
  """

  def __init__(self, reads: int, writes: int):
    self._reads, self._writes, self._rest = reads, writes, b""
    self._number, self._session = 0, ""
    self.complaints: list[str] = []

  def attach(self) -> None:
    """Makes the page and listens to it."""
    target = self.call("Target.createTarget", url="about:blank")["targetId"]
    self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    for domain in ("Page", "Runtime", "Log"):
      self.call(f"{domain}.enable")

  def close(self) -> None:
    """Closes the pipe."""
    os.close(self._reads)
    os.close(self._writes)

  def call(self, method: str, **given: Any) -> dict[str, Any]:
    """What the browser answers to a command.

    Raises:
      RuntimeError: it refuses.
      TimeoutError: it says nothing.
    """
    self._number += 1
    number = self._number
    of = {"sessionId": self._session} if self._session and not method.startswith(("Target.", "Browser.")) else {}
    content = json.dumps({"id": number, "method": method, "params": given, **of}).encode() + b"\0"
    while content:
      content = content[os.write(self._writes, content) :]
    while True:
      said = self._next()
      if said.get("id") == number:
        if "error" in said:
          raise RuntimeError(f"{method}: {said['error']['message']}")
        result: dict[str, Any] = said["result"]
        return result
      if said.get("method") == "Runtime.exceptionThrown":
        self.complaints.append(str(said["params"]["exceptionDetails"]))
      elif said.get("method") == "Log.entryAdded":
        self.complaints.append(said["params"]["entry"]["text"])

  def _next(self) -> dict[str, Any]:
    until = time.monotonic() + _SECONDS
    while b"\0" not in self._rest:
      if not select.select([self._reads], [], [], max(until - time.monotonic(), 0))[0]:
        raise TimeoutError("the browser says nothing")
      part = os.read(self._reads, 2**16)
      if not part:
        raise RuntimeError("the browser has ended")
      self._rest += part
    one, _, self._rest = self._rest.partition(b"\0")
    said: dict[str, Any] = json.loads(one)
    return said

  def open(self, url: str) -> None:
    """Goes to an address and waits until it is loaded."""
    self.call("Page.navigate", url=url)
    self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

  def value(self, expression: str) -> Any:
    """What an expression of JavaScript gives, as JSON.

    Raises:
      RuntimeError: it raises.
    """
    said = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
    if "exceptionDetails" in said:
      raise RuntimeError(f"{expression}: {said['exceptionDetails']}")
    return said["result"].get("value")

  def wait(self, expression: str) -> None:
    """Waits until an expression holds.

    Raises:
      TimeoutError: it does not in time.
    """
    until = time.monotonic() + _SECONDS
    while not self.value(f"Boolean({expression})"):
      if time.monotonic() > until:
        raise TimeoutError(f"{expression}; the page says {self.value('document.body.innerText')}")
      time.sleep(0.05)

  def click(self, selector: str) -> None:
    """Presses the mouse's left button in the middle of an element."""
    box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
    x, y = self.value(f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({box})")
    for kind in ("mousePressed", "mouseReleased"):
      self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

  def write(self, selector: str, text: str) -> None:
    """Types into a field in place of what is there."""
    self.click(selector)
    self.value("document.activeElement.select()")
    self.call("Input.insertText", text=text)

  def type(self, text: str) -> None:
    """Presses the keys of lower-case letters where the focus is."""
    for letter in text:
      self.press(letter, ord(letter.upper()), letter)

  def press(self, key: str, code: int, text: str = "") -> None:
    """Presses and lets go a key.

    Args:
      key: by its name in the DOM; code: Windows' number of it; text: that it writes.
    """
    for kind in ("keyDown", "keyUp"):
      self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, text=text)

  def picture(self, path: Path) -> None:
    """Writes what is seen as PNG."""
    path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))
