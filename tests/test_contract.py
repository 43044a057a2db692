"""docs/contract.md has every rule that is cited by its letter and number, and a test cites every rule that it has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SUFFIXES = {".c", ".h", ".md", ".py", ".pxi", ".pyi", ".pyx"}
SECTION = re.compile(r"^## ([A-Z])\. ", re.MULTILINE)
RULE = re.compile(r"^### ([A-Z][0-9])$", re.MULTILINE)
CITED = re.compile(r"\b[Rr]ules? ([A-Z][0-9]*(?:(?:, and |, | and | or )[A-Z][0-9]*)*)\b")
NAMED = re.compile(r"\bdef test_([a-z][0-9]+)_")
WRAPPED = re.compile(r"\s*\n\s*(?:#|//|\*)?\s*")


def rules() -> tuple[set[str], set[str]]:
    """(every letter and every letter with a number that may be cited, those that are a rule of their own)."""
    page = (ROOT / "docs" / "contract.md").read_text()
    letters, numbers = set(SECTION.findall(page)), set(RULE.findall(page))
    return letters | numbers, numbers | (letters - {number[0] for number in numbers})


def texts(*folders: str) -> Iterator[tuple[Path, str]]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in SUFFIXES and path != Path(__file__):
                yield path, path.read_text()


def cited(text: str) -> set[str]:
    unwrapped = WRAPPED.sub(" ", text)
    return {rule for found in CITED.findall(unwrapped) for rule in re.findall(r"[A-Z][0-9]*", found)}


def test_citations_are_found_in_every_form() -> None:
    assert cited("See rules A1, B22 and C3; the other rule D") == {"A1", "B22", "C3", "D"}
    assert cited("(rules G2,\n    # E and F1)") == {"G2", "E", "F1"}
    assert cited("Rules of RFC 9112, and a rule Anybody knows") == set()


def test_every_rule_that_is_cited_is_in_the_contract() -> None:
    known, _ = rules()
    unknown = {
        f"{path.relative_to(ROOT)}: {rule}"
        for path, text in texts("src", "tests", "docs", "bench")
        for rule in cited(text) | {name.upper() for name in NAMED.findall(text)}
        if rule not in known
    }
    assert unknown == set()


def test_every_rule_is_cited_by_a_test() -> None:
    _, wanted = rules()
    assert wanted
    found = {
        rule
        for path, text in texts("tests")
        if path.name.startswith("test_")
        for rule in cited(text) | {name.upper() for name in NAMED.findall(text)}
    }
    assert wanted - found == set()
