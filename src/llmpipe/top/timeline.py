"""One exchange, or one backend, in lines: what it is, and for an exchange what happened when."""

from __future__ import annotations

from collections.abc import Iterator

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

_SHOWN = {
    *(
        "request_id",
        "at",
        "client",
        "method",
        "path",
        "pool",
        "model",
        "backend",
        "phase",
        "status",
        "outcome",
        "reason",
    ),
    *("error", "attempts", "bytes_up", "bytes_down", "events", "tokens", "traceparent", "duration", "times", "failed"),
    "close_ms",
}

Line = list[Span]


def _fact(title: str, value: str, mood: Mood = "") -> Line:
    return [Span(f"{title:<11} ", "quiet"), Span(value, mood)]


def _facts(exchange: Json) -> Iterator[Line]:
    def named(*names: str) -> str:
        return ", ".join(f"{name} {clean(exchange.get(name))}" for name in names if exchange.get(name) is not None)

    yield _fact("request", f"{clean(exchange.get('method'))} {clean(exchange.get('path'))}")
    yield _fact("began", f"{clean(exchange.get('at'))}, from {clean(exchange.get('client'))}")
    yield _fact("for", named("model", "pool", "backend") or figures.UNKNOWN)
    failed = exchange.get("outcome") not in (None, "ok")
    yield _fact("state", named("phase", "status", "outcome", "attempts") or figures.UNKNOWN, "bad" if failed else "")
    if why := named("reason", "error"):
        yield _fact("because of", why, "bad")
    tokens = as_object(exchange.get("tokens"))
    counted = [f"{figures.count(tokens[name])} {clean(name)}" for name in tokens if number(tokens[name]) is not None]
    yield _fact("tokens", f"{', '.join(counted) or figures.UNKNOWN}; {figures.count(exchange.get('events'))} pieces")
    yield _fact(
        "bytes", f"{figures.size(exchange.get('bytes_up'))} up, {figures.size(exchange.get('bytes_down'))} down"
    )
    closed = number(exchange.get("close_ms"))
    if closed is not None:
        yield _fact("closed", f"{figures.duration(closed / 1000)} after the client had left")
    if exchange.get("traceparent") is not None:
        yield _fact("traceparent", clean(exchange["traceparent"]))
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
    lines: list[Line] = [[Span(f"exchange {clean(request_id(element))}", "strong")], *_facts(element)]
    lines += [[], [Span(f"{'after':>7} {'':>8}  time line", "quiet")]]
    lines += _timeline(element)
    return lines


def found(identity: str, answered: Json | Missing) -> list[Line]:
    """What /exchanges?id= says: every exchange that has the id, live ones first, or why there is none."""
    if isinstance(answered, Missing):
        return [[Span(f"nothing is known of {clean(identity)}: {clean(answered.reason)}", "bad")]]
    # An endpoint may take an id that it does not know for the beginning of one.
    known = [*as_list(answered.get("live")), *as_list(answered.get("ended"))]
    elements = [element for element in known if request_id(element) == identity]
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
        lines.append([Span(f"{clean(name):<23} ", "quiet"), Span(text, mood)])
    return lines
