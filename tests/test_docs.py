"""The pages: each is in the nav, links hold, nothing is fetched from elsewhere, and what can be counted is what the program says."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from harness import Proxy, free_port

from llmpipe._pipe import OUTCOMES, PHASES, REASONS
from llmpipe.bench.figures import quantity
from llmpipe.status import STATES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TROUBLESHOOTING = DOCS / "operations" / "troubleshooting.md"
CONFIGURATION: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text())

LOADING = {
    "script": "src",
    "link": "href",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
}
LOADING |= {"embed": "src", "object": "data", "image": "href", "use": "href"}
"""What a browser fetches when it shows a page, by tag. An `a` is followed by whoever clicks on it."""


def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def section(text: str, heading: str) -> str:
    """What stands below a heading, up to the next one of its level or above."""
    level = len(heading.partition(" ")[0])
    behind = re.split(rf"(?m)^{re.escape(heading)}$", text)
    assert len(behind) == 2, heading
    return re.split(rf"(?m)^#{{1,{level}}} ", behind[1])[0]


def rows(text: str) -> list[list[str]]:
    """The cells of the rows of the tables in a text, without heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    heads = {number - 1 for number, line in enumerate(lines) if re.fullmatch(r"[|\- ]+", line)}
    found = [line for number, line in enumerate(lines) if number not in heads and number - 1 not in heads]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in found]


def words(text: str) -> list[str]:
    """The first cells of the rows, which are words in code."""
    found = [row[0] for row in rows(text)]
    assert all(re.fullmatch(r"`[^`]+`", word) for word in found), found
    assert all(all(cell for cell in row) for row in rows(text))
    return [word.strip("`") for word in found]


def pages_of(nav: object) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    values = nav.values() if isinstance(nav, dict) else nav
    assert isinstance(values, list) or hasattr(values, "__iter__")
    return [page for value in values for page in pages_of(value)]


def test_every_page_is_in_the_nav_once() -> None:
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    records = {page for page in pages if re.match(r"adr/\d", page)}
    assert sorted(pages_of(CONFIGURATION["nav"])) == sorted(pages - records | set(hooks().OUTSIDE.values()))
    assert all((ROOT / path).is_file() for path in hooks().OUTSIDE)


def test_every_decision_is_in_the_list() -> None:
    titles = {path.name: path.read_text().splitlines()[0] for path in DOCS.glob("adr/0*.md")}
    listed = re.findall(r"(?m)^- \[(\d{4})\]\(([^)]+)\) (.+)$", (DOCS / "adr" / "README.md").read_text())
    assert [name for _, name, _ in listed] == sorted(titles)
    assert {name: f"# {number}: {title}" for number, name, title in listed} == titles


def test_every_reason_is_explained() -> None:
    assert words(section(TROUBLESHOOTING.read_text(), "## Reasons")) == list(REASONS[1:])


def test_every_outcome_is_explained() -> None:
    assert words(section(TROUBLESHOOTING.read_text(), "## Outcomes")) == list(OUTCOMES)


def test_every_phase_is_explained() -> None:
    assert sorted(words(section((DOCS / "concepts.md").read_text(), "## Exchange"))) == sorted(PHASES)


def test_every_state_is_explained() -> None:
    found = [row[0].strip("`") for row in rows(section((DOCS / "concepts.md").read_text(), "## Backend"))]
    assert found == list(STATES)


def test_every_example_is_listed() -> None:
    listed = re.findall(r"(?m)^\| \[([^]]+)\]\(\1\) \|", (DOCS / "examples" / "README.md").read_text())
    assert sorted(listed) == sorted(path.name for path in DOCS.glob("examples/*.toml"))


def test_every_symptom_has_a_check() -> None:
    """Something to type, and what it shows or what to do about it."""
    text = TROUBLESHOOTING.read_text()
    symptoms = [heading for heading in re.findall(r"(?m)^## .+$", text) if heading not in ("## Outcomes", "## Reasons")]
    assert len(symptoms) >= 12
    assert [heading for heading in symptoms if "```\n" not in section(text, heading)] == []


def test_every_metric_that_is_named_is_there() -> None:
    pages = [*DOCS.glob("operations/*.md"), DOCS / "concepts.md", DOCS / "coming-from.md", DOCS / "index.md"]
    named = {name for page in pages for name in re.findall(r"\bllmpipe_[a-z_]+[a-z]\b(?!_)", page.read_text())}
    assert len(named) >= 10
    with Proxy(f"http://127.0.0.1:{free_port()}") as proxy:
        text = proxy.admin("/metrics")[1]
    there = set(re.findall(r"(?m)^(?:# TYPE )?(llmpipe_[a-z_]+)", text))
    # One that has no sample yet has no buckets either.
    assert sorted(name for name in named if not {name, re.sub("_(bucket|sum|count)$", "", name)} & there) == []


@pytest.mark.parametrize(
    ("workload", "target", "figure"),
    [
        ("paced-1000x25", "llmpipe", "latency_p99"),
        ("paced-1000x25", "floor", "latency_p99"),
        ("disconnect-5000", "llmpipe", "close_p99"),
        ("disconnect-5000", "haproxy", "close_p99"),
    ],
)
def test_figures_in_the_text_of_the_comparison(workload: str, target: str, figure: str) -> None:
    """Those in its table are held by tests/test_benchmark.py."""
    results = json.loads((ROOT / "bench" / "results" / "bench.json").read_text())
    found = next(found for found in results["workloads"] if found["name"] == workload)
    median = next(found for found in found["targets"] if found["name"] == target)["figures"][figure]
    said = section((DOCS / "comparison.md").read_text(), "## Figures").partition("Where others are as good or better")[
        2
    ]
    assert quantity(median["median"], median["unit"]).replace("µ", "u") in said.replace("µ", "u")


class Fetched(HTMLParser):
    """What a browser would fetch from elsewhere to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._style = tag == "style"
        given = {name.rpartition(":")[2]: value or "" for name, value in attrs}
        target = given.get(LOADING.get(tag, ""), "")
        if outside(target):
            self.found.append(f"<{tag}> {target}")
        if outside_of_css(given.get("style", "")):
            self.found.append(f"<{tag} style>")
        # The theme fetches a library for diagrams, and facts about a repository that is named.
        if "mermaid" in given.get("class", "").split() or given.get("data-md-component") == "source":
            self.found.append(f"<{tag}> that the theme fetches for")

    def handle_data(self, data: str) -> None:
        if self._style and outside_of_css(data):
            self.found.append("<style>")


def outside(target: str) -> bool:
    return bool(re.match(r"(?i)\s*([a-z][a-z0-9+.-]*:)?//", target))


def outside_of_css(text: str) -> bool:
    named = re.findall(r"""(?i)(?:url\(\s*|@import\s+)["']?([^"')\s;]+)""", text)
    return any(outside(target) for target in named)


def fetched(html: str) -> list[str]:
    parser = Fetched()
    parser.feed(html)
    return parser.found


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://unpkg.com/x.js"></script>',
        '<link rel="stylesheet" href="//fonts.googleapis.com/css">',
        '<img src="http://example.com/badge.svg">',
        "<style>@import 'https://example.com/a.css';</style>",
        '<p style="background: url(https://example.com/a.png)">',
        '<pre class="mermaid">',
        '<svg><image xlink:href="https://example.com/a.png"/></svg>',
    ],
)
def test_what_is_fetched_is_found(html: str) -> None:
    assert fetched(html)
    assert not fetched('<a href="https://example.com">x</a><img src="a.svg"><script src="../b.js"></script>')


def copy_of_the_pages(folder: Path) -> Path:
    """What a build reads, to be broken."""
    shutil.copytree(DOCS, folder / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    for path in ("mkdocs.yml", *hooks().OUTSIDE):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, folder / path)
    return folder


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(folder / "mkdocs.yml")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(
        command, check=False, capture_output=True, text=True, env=environment, cwd=folder, timeout=300
    )


@pytest.mark.slow
def test_the_build_is_clean_and_fetches_nothing(tmp_path: Path) -> None:
    built = build(copy_of_the_pages(tmp_path))
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    site = tmp_path / "build" / "site"
    names = {str(path.relative_to(site)): path.read_text() for path in site.rglob("*.html")}
    for page in pages_of(CONFIGURATION["nav"]):
        assert page.replace("README.md", "index.md").replace(".md", ".html") in names
    assert {name: found for name, html in names.items() if (found := fetched(html))} == {}
    assert [str(path) for path in site.rglob("*.css") if outside_of_css(path.read_text())] == []
    assert names["concepts.html"].count('<svg role="img" aria-label="') == 3, "pictures are in the page"
    assert not list(site.rglob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "addition", "word"),
    [
        ("docs/concepts.md", "[x](no-such-page.md)", "no-such-page.md"),
        ("docs/concepts.md", "[x](http.md#no-such-anchor)", "no-such-anchor"),
        ("SECURITY.md", "[x](docs/no-such-page.md)", "no-such-page.md"),
        ("docs/adr/0001-edge-triggered-epoll.md", "[x](../../src/llmpipe)", "src/llmpipe"),
        ("docs/operations/no-such-nav.md", "# A page that no nav has", "no-such-nav.md"),
    ],
    ids=["page", "anchor", "page, from outside", "folder of the source", "not in the nav"],
)
def test_the_build_fails_for_what_leads_nowhere(tmp_path: Path, page: str, addition: str, word: str) -> None:
    folder = copy_of_the_pages(tmp_path)
    with (folder / page).open("a") as file:
        file.write(f"\n{addition}\n")
    built = build(folder)
    assert built.returncode != 0
    assert word in built.stderr.partition("WARNING")[2], built.stderr
