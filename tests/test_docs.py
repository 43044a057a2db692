"""The pages: each is in the nav, links hold, nothing is fetched from elsewhere, and what can be counted is what the program says."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import metrics_page
import pytest
import yaml
from harness import Proxy, free_port

from llmpipe._pipe import DISCARDS, OUTCOMES, PHASES, REASONS, RETRIES
from llmpipe.bench.figures import quantity
from llmpipe.status import STATES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TROUBLESHOOTING = DOCS / "operations" / "troubleshooting.md"
LISTS = ("## Lines of the log", "## Outcomes", "## Reasons")
"""Of this page, what is no symptom."""
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


def log_calls() -> Iterator[tuple[str, bool, set[str]]]:
    """Of each call that writes a line of `llmpipe serve`: what it says, whether it may be a warning or an error, and the fields that the
    call itself names."""
    for path in sorted((ROOT / "src/llmpipe").glob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if path.name.startswith("mock") or not isinstance(call, ast.Call) or not call.args:
                continue
            writer = ast.unparse(call.func)
            if not re.search(r"\blog\.(info|warning|error|event)\b", writer) and writer not in ("warning", "event"):
                continue
            first = call.args[0]
            says = first if texts_in(first) or len(call.args) == 1 else call.args[1]
            level = ast.unparse(first) if says is not first else writer
            fields = {keyword.arg for keyword in call.keywords if keyword.arg} - {"at"}
            fields |= {
                ast.literal_eval(key) for arg in call.args if isinstance(arg, ast.Dict) for key in arg.keys if key
            }
            for text in texts_in(says):
                yield text, bool(re.search("(?i)warning|error|level", level)), fields


def texts_in(node: ast.expr) -> list[str]:
    """The texts that it may be: one, or one of two."""
    chosen = (node.body, node.orelse) if isinstance(node, ast.IfExp) else (node,)
    return [found.value for found in chosen if isinstance(found, ast.Constant) and isinstance(found.value, str)]


def test_every_line_of_the_log_is_explained() -> None:
    loud, _, quiet = section(TROUBLESHOOTING.read_text(), "## Lines of the log").partition("At the level `info`")
    known = {row[0].strip("`"): set(re.findall(r"`(\w+)`", row[1])) for row in rows(loud)}
    assert list(known) == sorted(known)
    calls = list(log_calls())
    # Two have a level that is worked out; this one is never a warning.
    assert {text for text, is_loud, _ in calls if is_loud} - {"backend back"} == set(known)
    assert [(text, fields) for text, _, fields in calls if text in known and not fields <= known[text]] == []
    others = [name for row in rows(quiet) for name in re.findall("`([^`]+)`", row[0])]
    assert sorted(others) == sorted({text for text, _, _ in calls} - set(known) - {"access"})


def test_every_symptom_has_a_check() -> None:
    """Something to type, and what it shows or what to do about it."""
    text = TROUBLESHOOTING.read_text()
    symptoms = [heading for heading in re.findall(r"(?m)^## .+$", text) if heading not in LISTS]
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


def test_the_page_of_metrics_has_each_as_it_is_shown() -> None:
    """Its name, its type, its labels and its meaning, of each that a proxy shows, and no other one."""
    page = metrics_page.PAGE.read_text()
    command = "PYTHONPATH=tests .venv/bin/python tests/metrics_page.py --write"
    assert metrics_page.filled(page) == page, f"run {command}"
    shown = {family.name for family in metrics_page.families(metrics_page.live())}
    assert {"llmpipe_spans", "llmpipe_hook_calls", "llmpipe_abort_calls", "llmpipe_itl_seconds"} <= shown


def test_the_page_of_metrics_has_each_value_of_a_label() -> None:
    live = metrics_page.values(metrics_page.live())
    listed: dict[tuple[str, str], list[str]] = {}
    for metric, label, value, _ in rows(section(metrics_page.PAGE.read_text(), "## Values of labels")):
        listed.setdefault((metric.strip("`"), label.strip("`")), []).append(value.strip("`"))
    assert listed[("llmpipe_discarded_bytes_total", "reason")] == list(DISCARDS)
    assert listed[("llmpipe_retries_total", "cause")] == list(RETRIES)
    assert listed[("llmpipe_pool_backends", "state")] == list(STATES)
    elsewhere = {
        ("llmpipe_exchanges_total", "outcome"),
        ("llmpipe_duration_seconds", "outcome"),
        ("llmpipe_streaming_errors_total", "reason"),
    }
    assert all(live[of] <= set(OUTCOMES) for of in elsewhere)
    assert live[("llmpipe_failures_total", "reason")] == set(REASONS[1:])
    assert {of: sorted(found) for of, found in listed.items()} == {
        of: sorted(found)
        for of, found in live.items()
        if of not in elsewhere and of != ("llmpipe_failures_total", "reason")
    }


def test_the_look_at_backends_names_what_there_is(tmp_path: Path) -> None:
    (filter_,) = re.findall(
        r"jq -c '(.pools.*)'", section(TROUBLESHOOTING.read_text(), "## The load goes to one backend")
    )
    (names,) = re.findall(r"\{(.*)\}", filter_)
    path = tmp_path / "llmpipe.toml"
    path.write_text(
        '[pools.p]\nhealth = { path = "/", interval = "100ms", fall = 1 }\n'
        f'[[pools.p.backends]]\nurl = "http://127.0.0.1:{free_port()}"\n'
        '[[pools.p.backends]]\nurl = "http://no-such-host.invalid:1"\n'
    )
    with Proxy(options=("--config", str(path))) as proxy:
        proxy.wait_log("backend unhealthy")
        shown = json.loads(proxy.admin("/status")[1])["pools"][0]["backends"]
    assert {row["state"] for row in shown} == {"down", "unresolved"}
    assert set(names.split(", ")) <= {key for row in shown for key in row}
    assert [row["why"] for row in shown if "why" in row] == [["health checks"]]


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
