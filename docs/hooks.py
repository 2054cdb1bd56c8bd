"""What `mkdocs build` does beside its plugins: pages from outside docs/, links, formulas.

README, CONTRIBUTING, CHANGELOG and the pages of results/ are pages of the site as they stand. Links
are written as a code host follows them, from file to file of the repository, and rewritten here.
"""

from __future__ import annotations

import html
import os
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

# Where a file of the repository stands in the site, but for docs/ and results/.
ROOT_PAGES = {
    "README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md",
}  # fmt: skip

_LINK = re.compile(r"(\]\()(?!\w+:|#|/)([^)#\s]+)")
_FORMULA = re.compile(
    r'<(span|div) class="arithmatex">(?:\\\(|\\\[)(.*?)(?:\\\)|\\\])</\1>', re.DOTALL
)
_CODE = re.compile(r"(^```.*?^```|`[^`\n]+`|\$[^$\n]+\$)", re.DOTALL | re.MULTILINE)


def in_site(path: str) -> str:
    """The place in the site of a file of the repository."""
    return ROOT_PAGES.get(path, path.removeprefix("docs/"))


def in_repository(uri: str) -> str:
    """The file of the repository that a page of the site is."""
    pages = {page: path for path, page in ROOT_PAGES.items()}
    return pages.get(uri, uri if uri.startswith("results/") else f"docs/{uri}")


def on_config(config: Any) -> Any:
    """Pages import docs/tables.py, which imports what this checkout holds."""
    root = Path(config.config_file_path).parent
    sys.path[:0] = [os.fspath(root), config.docs_dir]
    return config


def on_files(files: Files, config: Any) -> Files:
    root = Path(config.config_file_path).parent
    shown = ("README.md", "*.png", "*.svg")
    results = (path for pattern in shown for path in (root / "results").rglob(pattern))
    shown_as_files = [root / path for path in ROOT_PAGES] + sorted((root / "examples").glob("*.py"))
    for path in (found.relative_to(root) for found in (*shown_as_files, *sorted(results))):
        uri = in_site(path.as_posix())
        files.append(File.generated(config, uri, abs_src_path=os.fspath(root / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links from file to file become links from page to page."""
    here = page.file.src_uri
    folder = posixpath.dirname(in_repository(here))

    def moved(match: re.Match[str]) -> str:
        target = in_site(posixpath.normpath(posixpath.join(folder, match[2])))
        return match[1] + posixpath.relpath(target, posixpath.dirname(here) or ".")

    parts = _CODE.split(markdown)
    parts[::2] = [_LINK.sub(moved, part) for part in parts[::2]]
    return "".join(parts)


def on_page_content(page_html: str, /, **_: Any) -> str:
    """LaTeX becomes MathML, which browsers draw themselves."""

    def drawn(match: re.Match[str]) -> str:
        formula, display = html.unescape(match[2]), "block" if match[1] == "div" else "inline"
        try:
            return convert(formula, display=display)
        except Exception as error:  # of many kinds, with no base of their own
            raise PluginError(f"no formula: {formula!r} ({type(error).__name__})") from error

    return _FORMULA.sub(drawn, page_html)
