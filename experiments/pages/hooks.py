"""What MkDocs does not do by itself with the pages of docs/; mkdocs.yml names this file.

A notebook becomes a page, its outputs as they are stored in it. The verbs and the config's fields become pages. A link
to a file of the repository that is no page becomes the file's name.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

from experiments.pages import reference

_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<target>(?!\w+:|#)[^)\s#]+)[^)]*\)")


def on_files(files: Files, config: Any) -> Files:
  """Adds a page for each notebook with the pictures that its cells made, and the pages of the reference."""
  for name, made in reference.PAGES.items():
    files.append(File.generated(config, f"reference/{name}", content=made()))
  for notebook in [one for one in files if one.src_uri.endswith(".ipynb")]:
    files.remove(notebook)
    text, resources = MarkdownExporter().from_filename(str(notebook.abs_src_path))
    folder = PurePosixPath(notebook.src_uri).with_suffix("")
    for name, content in resources["outputs"].items():
      files.append(File.generated(config, str(folder / name), content=content))
      text = text.replace(f"]({name})", f"]({folder.name}/{name})")
    files.append(File.generated(config, f"{folder}.md", content=text))
  return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
  """Names files of the repository where a page links to them; pages and what lies beside them stay links."""
  repository = Path(config.config_file_path).parent
  here = posixpath.dirname(page.file.src_uri)

  def named(match: re.Match[str]) -> str:
    target = posixpath.normpath(posixpath.join("docs", here, match["target"]))
    if target.startswith("docs/") or not (repository / target).exists():
      return match[0]  # MkDocs follows it, or says that there is nothing
    return f"{match['text']} (`{target}`)" if match["text"].strip("`") != target else f"`{target}`"

  return _LINK.sub(named, markdown)
