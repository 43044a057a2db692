"""The lines at the head of the page: what the proxy is, whether it is ready, and figures of all of it together."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from llmpipe.top import figures
from llmpipe.top.figures import clean, number
from llmpipe.top.source import Json, Missing
from llmpipe.top.tables import Mood, Span, as_list, as_object

LINES = 4
"""Lines of the head in a terminal."""


def uptime(status: Json, now: datetime | None = None) -> str:
    """How long the process has run, "-" where that is unknown. The clocks of two machines may differ: never less than 0."""
    started = figures.parse_time(status.get("started"))
    if started is None:
        return figures.UNKNOWN
    return figures.age(((now or datetime.now(timezone.utc)) - started).total_seconds())


def readiness(status: Json) -> list[Span]:
    """Whether it is ready, or why not, and whether the last reload failed."""
    if status.get("ready") is True:
        spans = [Span("ready", "good")]
    elif "ready" in status:
        spans = [Span(f"not ready: {clean(status.get('reason'))}", "bad")]
    else:
        spans = [Span(figures.UNKNOWN)]
    faults = status.get("reload_faults")
    if isinstance(faults, list) and faults:
        spans += [Span("  "), Span(f"reload failed: {clean(faults[0])}", "bad")]
    return spans


def waiting(status: Json) -> float | None:
    """Requests that wait in queues, None where no pool says."""
    known = [number(as_object(pool.get("queue")).get("waiting")) for pool in as_list(status.get("pools"))]
    found = [value for value in known if value is not None]
    return sum(found) if found else None


def identity(status: Json, now: datetime | None = None) -> list[Span]:
    """Version, uptime, readiness."""
    return [
        Span(f"llmpipe {clean(status.get('version'))}", "strong"),
        Span(f"  up {uptime(status, now)}  "),
        *readiness(status),
    ]


def load(status: Json) -> list[Span]:
    """Clients, streams, waiting, and rates."""
    rates = as_object(status.get("rates"))
    errors = number(rates.get("errors"))
    queued = waiting(status)
    return _pairs(
        ("clients", figures.count(status.get("clients")), ""),
        ("streams", figures.count(status.get("streams")), ""),
        ("waiting", figures.count(queued), "odd" if queued else ""),
        ("exchanges/s", figures.rate(rates.get("exchanges")), ""),
        ("tokens/s", figures.rate(rates.get("tokens")), ""),
        ("errors/s", figures.rate(errors), "bad" if (errors or 0) >= 0.005 else ""),
    )


def latencies(status: Json) -> list[Span]:
    """TTFT and ITL of the last minute."""
    spans: list[Span] = []
    for title, name in (("TTFT", "ttft"), ("ITL", "itl")):
        found = as_object(status.get(name))
        spans += [Span(f"{'   ' if spans else ''}{title} ", "quiet")]
        spans += _pairs(*((key, figures.duration(found.get(key)), "") for key in ("p50", "p90", "p99")))
    return spans


def _pairs(*pairs: tuple[str, str, Mood]) -> list[Span]:
    spans: list[Span] = []
    for title, value, mood in pairs:
        spans += [Span(f"{'  ' if spans else ''}{title} ", "quiet"), Span(value, mood or "strong")]
    return spans


def sparklines(history: Json | Missing, width: int) -> list[Span]:
    """Streams, tokens/s and TTFT p99 of the last minutes, the newest on the right; or why there are none."""
    if isinstance(history, Missing):
        return [Span(f"no history: {clean(history.reason)}", "quiet")]
    samples = as_list(history.get("samples"))
    titles = (("streams", "streams"), ("tokens/s", "tokens"), ("TTFT p99", "ttft_p99"))
    room = (width - sum(len(title) + 1 for title, _ in titles) - 2 * (len(titles) - 1)) // len(titles)
    spans: list[Span] = []
    for title, name in titles:
        values: list[Any] = [sample.get(name) for sample in samples]
        spans += [Span(f"{'  ' if spans else ''}{title} ", "quiet"), Span(figures.sparkline(values, max(room, 1)))]
    return spans
