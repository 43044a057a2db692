"""docs/architecture.md says of the engine what its source says: the table and the drawing of the parts, sizes, names."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path

import parts
import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("src/**/*.p*", "setup.py")
FURTHER = ("tests/**/*.*", "bench/**/*.*", "Makefile")


def words(*patterns: str) -> set[str]:
    """Every name in these files that stands outside of comments."""
    return {
        word
        for pattern in patterns
        for path in ROOT.glob(pattern)
        if path.is_file() and path.suffix in {"", ".c", ".h", ".pxi", ".py", ".pyi", ".pyx"}
        for word in re.findall(r"[A-Za-z_]\w*", re.sub(r"#(?!ifdef).*", "", path.read_text()))
    }


def test_the_parts_in_the_page_are_up_to_date() -> None:
    page = parts.PAGE.read_text()
    assert parts.between_marks(page, parts.made()) == page, f"run: {parts.COMMAND}"


@pytest.mark.parametrize("page", parts.SIZED, ids=lambda page: page.name)
def test_the_sizes_of_structs_are_up_to_date(page: Path) -> None:
    text = page.read_text()
    assert parts.SIZE_OF_A_STREAM.search(text)
    assert parts.with_sizes(text) == text, f"run: {parts.COMMAND}"


def test_every_function_and_every_state_is_found() -> None:
    engine = parts.Engine()
    functions = len(re.findall(r"^cdef .*\((?:[^()]|\n)*\) noexcept nogil:$", engine.code, re.MULTILINE))
    assert len(engine.home) == functions > 200
    states = re.findall(r"^    (STATE_[A-Z]+) = \d+$", engine.code, re.MULTILINE)
    assert [state for state, _, _ in engine.steps()] == [state for state in states if state != "STATE_ENDED"]
    drawn = parts.drawing(engine)
    for state, step, after in engine.steps():
        assert f"{state}: {step} ({engine.home[step]}) ──> {', '.join(after)}\n" in drawn
    assert parts.PATH <= {part.name for part in engine.parts} >= set(parts.EVERYWHERE)


def test_a_call_that_is_new_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    before, read = parts.drawing(parts.Engine()), parts.read_part

    def changed(name: str) -> parts.Part:
        part = read(name)
        return replace(part, code=part.code.replace("client_next(w, x)", "client_next(w, x); upstream_evict(w)"))

    assert "upstream_evict" not in before.partition("STATE_FLUSH: ")[2].partition("STATE_TUNNEL: ")[0]
    monkeypatch.setattr(parts, "read_part", changed)
    after = parts.drawing(parts.Engine())
    assert "  upstream  upstream_evict\n" in after.partition("STATE_FLUSH: ")[2].partition("STATE_TUNNEL: ")[0]


@pytest.mark.slow
def test_the_sizes_are_those_of_c(tmp_path: Path) -> None:
    generated, checked = tmp_path / "pipe.c", tmp_path / "sizes.c"
    cython = [sys.executable, "-m", "cython", "-3", "--module-name", "pipe", "_pipe.pyx", "-o", generated]
    subprocess.run(cython, check=True, cwd=ROOT / "src")
    asserts = [
        f'_Static_assert(sizeof(struct __pyx_t_4pipe_{name}) == {size}, "{name}");'
        for name, size in parts.sizes().items()
    ]
    assert len(asserts) > 20
    checked.write_text(f'#include "{generated}"\n' + "\n".join(asserts))
    compiler = [sysconfig.get_config_var("CC").split()[0], "-fsyntax-only", "-w", "-I", sysconfig.get_path("include")]
    subprocess.run([*compiler, checked], check=True)


@pytest.mark.parametrize(
    ("page", "sources"),
    [("docs/architecture.md", SOURCES), ("CONTRIBUTING.md", (*SOURCES, *FURTHER))],
    ids=["architecture", "contributing"],
)
def test_what_looks_like_code_is_in_the_code(page: str, sources: tuple[str, ...]) -> None:
    """Names with an underscore, structs, and paths: in backticks and in blocks of code."""
    text = (ROOT / page).read_text().partition(parts.BEGIN)
    blocks = re.split(r"^```.*\n", text[0] + text[2].partition(parts.END)[2], flags=re.MULTILINE)
    spans = blocks[1::2] + re.findall(r"`([^`\n]+)`", "".join(blocks[::2]))
    known = words(*sources)
    paths = {
        path for span in spans for path in re.findall(r"(?<![\w/.])(?:[\w.]+/)*\w+\.(?:pxi|pyx|pyi|py|h|md|c)\b", span)
    }
    names = {
        name
        for span in spans
        for name in re.findall(r"(?<![\w/.])[A-Za-z]\w*\b(?![\w/.]*\.(?:py|pxi))", span)
        if ("_" in name or re.fullmatch(r"[A-Z][a-z]\w+C", name)) and not name.startswith("test_")
    }
    assert len(names) > 10
    assert {name for name in names if name not in known} == set()
    folders = ("", "docs", "src/_pipe", "tests/probe")
    assert {path for path in paths if not any((ROOT / folder / path).exists() for folder in folders)} == set()
