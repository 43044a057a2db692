"""A snapshot as plain text, for scripts and pipes: ASCII but for names, no colour, nothing cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from llmpipe.top import summary, tables
from llmpipe.top.figures import clean
from llmpipe.top.source import Missing, Snapshot
from llmpipe.top.tables import Column, Group, Span


def _line(spans: Iterable[Span]) -> str:
    return "".join(span.text for span in spans).rstrip()


def _table(columns: Sequence[Column], groups: Sequence[Group]) -> Iterator[str]:
    placed = tables.layout(columns, groups, None)
    yield _line(tables.title_spans(placed))
    for group in groups:
        if group.spans:
            yield f"[{_line(group.spans)}]"
        for row in group.rows:
            yield _line(tables.row_spans(row, placed))


def lines(address: str, snapshot: Snapshot) -> Iterator[str]:
    """The lines of a snapshot.

    Args:
        address: that was asked.
        snapshot: what was answered.
    """
    status = snapshot.status
    yield f"{_line(summary.identity(status))}  {address}"
    yield _line(summary.load(status))
    yield _line(summary.latencies(status))
    yield ""
    yield "Backends"
    yield from _table(tables.BACKENDS, tables.backends(status))
    yield ""
    yield "Streams"
    if isinstance(snapshot.exchanges, Missing):
        yield f"unknown: {clean(snapshot.exchanges.reason)}"
    else:
        yield from _table(tables.EXCHANGES, tables.ordered(tables.exchanges(snapshot.exchanges), "age", reverse=True))
    yield ""
    yield "Last failures"
    failures = tables.failures(status)
    if failures is None:
        yield "unknown: this proxy does not list them"
    else:
        yield from _table(tables.FAILURES, failures)
