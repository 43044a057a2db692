"""What mkdocs does beside mkdocs.yml: it takes in pages that stand outside of docs/, and puts pictures into the pages.

Links are written as they hold in the repository. Where that is another place than in the site, they are rewritten.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]

OUTSIDE = {
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "bench/results/bench.md": "results.md",
}
"""Pages of the repository that the site has too, and what they are called there."""

INSIDE = {name: path for path, name in OUTSIDE.items()}

_LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")
_PICTURE = re.compile(r'<img alt="([^"]*)" src="([^"]+\.svg)"\s*/?>')


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Takes in the pages that stand outside."""
    for path, name in OUTSIDE.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: object) -> str:
    """Rewrites links from or to a page that stands outside."""
    name = page.file.src_uri
    home = INSIDE.get(name, f"docs/{name}")

    def rewrite(link: re.Match[str]) -> str:
        target, anchor = link.group(1), link.group(2) or ""
        if ":" in target:
            return link.group()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(home), target))
        if path in OUTSIDE:
            there = OUTSIDE[path]
        elif path.startswith("docs/"):
            there = path.removeprefix("docs/")
        else:
            return link.group()
        return f"]({posixpath.relpath(there, posixpath.dirname(name) or '.')}{anchor})"

    return _LINK.sub(rewrite, markdown)


def on_page_content(html: str, *, page: Page, **_: object) -> str:
    """Puts pictures into the page itself, where they follow its light and dark colours."""

    def picture(image: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.dest_uri), image.group(2)))
        drawing = (ROOT / "docs" / path).read_text()
        return drawing.replace("<svg ", f'<svg role="img" aria-label="{image.group(1)}" ', 1)

    return _PICTURE.sub(picture, html)
