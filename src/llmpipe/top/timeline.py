"""One exchange, or one backend, in lines: what it is, and for an exchange what happened when."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmpipe.top import figures
from llmpipe.top.figures import clean, number
from llmpipe.top.source import Json, Missing
from llmpipe.top.tables import MOODS, Mood, Span, as_list, as_object, request_id

MARKS = {
    "head": "the head of the request was here",
    "queued": "left the queue",
    "connected": "connected to {backend}",
    "answered": "the head of the answer came",
    "first": "first content forwarded",
    "last": "last content forwarded",
    "end": "ended: {outcome}",
}
"""What the times of an exchange mean."""

BAR = 24

_FACTS = (
    ("began", "at"),
    ("client", "client"),
    ("request", ""),
    ("pool", "pool"),
    ("model", "model"),
    ("backend", "backend"),
    ("phase", "phase"),
    ("status", "status"),
    ("outcome", "outcome"),
    ("reason", "reason"),
    ("error", "error"),
    ("attempts", "attempts"),
    ("traceparent", "traceparent"),
)
_SHOWN = {name for _, name in _FACTS} | {
    *("request_id", "method", "path", "tokens", "events", "bytes_up", "bytes_down", "duration", "times", "failed"),
    "close_ms",
}

Line = list[Span]


def _fact(title: str, value: str, mood: Mood = "") -> Line:
    return [Span(f"{title:<12}", "quiet"), Span(value, mood)]


def _amounts(exchange: Json) -> Iterator[Line]:
    tokens = as_object(exchange.get("tokens"))
    known = ", ".join(f"{figures.count(tokens[name])} {name}" for name in tokens if number(tokens[name]) is not None)
    yield _fact("tokens", known or figures.UNKNOWN)
    yield _fact("pieces", figures.count(exchange.get("events")))
    yield _fact(
        "bytes", f"{figures.size(exchange.get('bytes_up'))} up, {figures.size(exchange.get('bytes_down'))} down"
    )
    closed = number(exchange.get("close_ms"))
    if closed is not None:
        yield _fact("closed", f"{figures.duration(closed / 1000)} after the client had left")
    for name, value in exchange.items():  # what a newer proxy says too
        if name not in _SHOWN:
            yield _fact(clean(name), clean(value))


def _moments(exchange: Json) -> list[tuple[float, str, Mood]]:
    backend, outcome = clean(exchange.get("backend")), clean(exchange.get("outcome"))
    moments: list[tuple[float, str, Mood]] = [(0.0, "first byte of the request", "")]
    times = as_object(exchange.get("times"))
    for name in (*MARKS, *(name for name in times if name not in MARKS)):
        at = number(times.get(name))
        if at is not None:
            mood: Mood = "" if name != "end" or outcome == "ok" else "bad"
            # Not str.format: a name is somebody else's text.
            text = MARKS.get(name, clean(name)).replace("{backend}", backend).replace("{outcome}", outcome)
            moments.append((at, text, mood))
    for attempt in as_list(exchange.get("failed")):
        at = number(attempt.get("at"))
        text = f"{clean(attempt.get('backend'))} failed: {clean(attempt.get('reason'))}"
        moments.append((0.0 if at is None else at, text, "bad"))
    age = number(exchange.get("duration"))
    if age is not None and exchange.get("outcome") is None:
        moments.append((age, f"now, phase {clean(exchange.get('phase'))}", "strong"))
    return sorted(moments, key=lambda moment: moment[0])  # stable: what comes at the same time stays in order


def _timeline(exchange: Json) -> Iterator[Line]:
    moments = _moments(exchange)
    whole = max(moments[-1][0], 1e-9)
    before = 0.0
    for at, text, mood in moments:
        bar = figures.pad(" " * round(before / whole * (BAR - 1)) + _stroke(before, at, whole), BAR)
        after = f"+{figures.duration(at - before)}" if at else ""
        yield [Span(f"{figures.duration(at):>7} {after:>8}  "), Span(f"{bar} ", "good"), Span(text, mood)]
        before = at


def _stroke(before: float, at: float, whole: float) -> str:
    first, last = round(before / whole * (BAR - 1)), round(at / whole * (BAR - 1))
    return "─" * (last - first) + "●"


def exchange(element: Json) -> list[Line]:
    """What /exchanges says of one exchange, with a time line."""
    lines: list[Line] = [[Span(f"exchange {clean(request_id(element))}", "strong")], []]
    for title, name in _FACTS:
        value: Any = element.get(name) if name else f"{clean(element.get('method'))} {clean(element.get('path'))}"
        if value is None and name not in ("model", "backend", "pool"):
            continue
        bad = (name == "outcome" and value != "ok") or name in ("reason", "error")
        lines.append(_fact(title, clean(value), "bad" if bad else ""))
    lines += _amounts(element)
    lines += [[], [Span(f"{'after':>7} {'':>8}  time line", "quiet")]]
    lines += _timeline(element)
    return lines


def found(identity: str, answered: Json | Missing) -> list[Line]:
    """What /exchanges?id= says: every exchange that has the id, live ones first, or why there is none."""
    if isinstance(answered, Missing):
        return [[Span(f"nothing is known of {clean(identity)}: {clean(answered.reason)}", "bad")]]
    elements = [*as_list(answered.get("live")), *as_list(answered.get("ended"))]
    if not elements:
        return [[Span(f"the proxy knows no exchange {clean(identity)} any more", "bad")]]
    lines: list[Line] = []
    for element in elements:
        lines += [*([[]] if lines else []), *exchange(element)]
    return lines


def backend(row: Json) -> list[Line]:
    """All that /status says of a backend."""
    lines: list[Line] = [[Span(f"backend {clean(row.get('name'))}", "strong")], []]
    for name, value in row.items():
        if isinstance(value, dict):
            text = ", ".join(
                f"{clean(key)} {figures.duration(inner) if name in ('ttft', 'itl') else figures.rate(inner)}"
                for key, inner in value.items()
            )
        elif isinstance(value, list):
            text = ", ".join(map(clean, value))
        else:
            text = clean(value)
        mood: Mood = MOODS.get(text, "") if name == "state" else "bad" if name in ("why", "error") else ""
        lines.append([Span(f"{clean(name):<24}", "quiet"), Span(text, mood)])
    return lines
