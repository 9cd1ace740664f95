"""The notebooks of docs/notebooks, run from top to bottom; their outputs are stored in them, to be read as they are.

python -m experiments.pages.notebooks [NAME ...]      runs them, or all, and stores what they print
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from peftjax.files import write_text

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
LIMIT = 1200  # seconds for a cell, on a machine under load
_NUMBER = re.compile(r"\d[\d.,]*(e[+-]?\d+)?( bytes| [KMG]iB)?")
_SPACE = re.compile(r"[\s│━╸╺]+")


def names() -> list[str]:
  """Of all notebooks."""
  return sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def read(name: str) -> NotebookNode:
  """A notebook as it is stored."""
  return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def run(name: str, folder: Path) -> NotebookNode:
  """A notebook with what its cells print now, run in `folder`; a cell that fails raises."""
  notebook = read(name)
  for cell in notebook.cells:
    cell.get("outputs", []).clear()
  NotebookClient(notebook, timeout=LIMIT, resources={"metadata": {"path": str(folder)}}).execute()
  for cell in notebook.cells:
    cell.metadata.pop("execution", None)  # when it ran
    if cell.cell_type == "code":
      cell.outputs = _joined(cell.outputs)
  return notebook


def _joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
  """The outputs with what was written to stdout, in how many pieces ever, as one; logs on stderr are left out."""
  printed = "".join(one.text for one in outputs if one.output_type == "stream" and one.name == "stdout")
  others = [one for one in outputs if one.output_type != "stream"]
  return ([nbformat.v4.new_output("stream", name="stdout", text=printed)] if printed else []) + others


def said(notebook: NotebookNode) -> list[str]:
  """What each code cell printed; numbers, which differ between machines, and widths of columns are left out."""
  texts = ("".join(one.text for one in cell.outputs if one.output_type == "stream") for cell in _code(notebook))
  return [_SPACE.sub(" ", _NUMBER.sub("#", text)).strip() for text in texts]


def _code(notebook: NotebookNode) -> list[NotebookNode]:
  return [cell for cell in notebook.cells if cell.cell_type == "code"]


if __name__ == "__main__":
  for chosen in sys.argv[1:] or names():
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as made:
      done = run(chosen, Path(made))
    write_text(FOLDER / f"{chosen}.ipynb", nbformat.writes(done) + "\n")
    print(f"{chosen}: {time.monotonic() - start:.1f} s")
