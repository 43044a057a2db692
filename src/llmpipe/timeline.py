"""Where the time of one exchange went: its steps, one behind the other, the longest of them, and both as text.

An exchange is an element of what /exchanges answers (`exchanges`). Nothing is asked or opened here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from llmpipe.explanations import OUTCOMES, REASONS, Explanation

BAR = 24
"""Letters of a bar that stands for all of the time."""

Element = Mapping[str, Any]


class Kind(NamedTuple):
    """What a step is.

    Attributes:
        text: as the time line has it; {backend} stands for a name.
        verdict: the same, behind "where the time went".
        hint: what to look at where this took long; empty for nothing.
    """

    text: str
    verdict: str
    hint: str


KINDS: Mapping[str, Kind] = {
    "head": Kind(
        "request head received",
        "receiving the head of the request",
        "The client or the network to it is slow to send it.",
    ),
    "queued": Kind(
        "queue: waited for a free place at a backend",
        "waiting in the queue for a free place",
        "All backends were busy: add one, or raise max_in_flight if they have room.",
    ),
    "failed": Kind(
        "{backend} tried in vain", "attempts at backends that failed", "Look at the backends that were tried in vain."
    ),
    "connected": Kind(
        "connected to {backend}",
        "connecting to the backend",
        "The network or the backend's accept queue is slow. If the pool is found by the model, this has the client's sending of the "
        "body in it up to there.",
    ),
    "answered": Kind(
        "request sent -> head of the answer",
        "waiting for the backend's answer to begin",
        "The backend worked, or had the request in a queue of its own. An answer that is not streamed is made in this time.",
    ),
    "first": Kind(
        "prefill: head of the answer -> first token",
        "waiting for the backend's first token",
        "The backend read the prompt, or had the request in a queue of its own: a shorter prompt, a prompt cache, or fewer requests at a "
        "time (max_in_flight) help.",
    ),
    "last": Kind(
        "{pieces}",
        "receiving the answer",
        "The backend made the answer at this pace; with fewer requests at a time (max_in_flight) it makes each faster.",
    ),
    "end": Kind(
        "end of the answer", "the end of the answer, behind its last content", "The backend was slow to end its answer."
    ),
    "tunnel": Kind("tunnel: bytes both ways", "the tunnel", ""),
    "in head": Kind(
        "waiting for the rest of the request's head",
        "waiting for the request's head",
        "The client is slow, or sends nothing.",
    ),
    "in body": Kind(
        "waiting for the request's body",
        "waiting for the request's body",
        "The client or the network to it is slow to send it.",
    ),
    "in queue": Kind(
        "queue: waiting for a free place at a backend",
        "waiting in the queue for a free place",
        "All backends were busy: add one, or raise max_in_flight if they have room.",
    ),
    "in connect": Kind(
        "connecting to {backend}",
        "connecting to the backend",
        "The backend does not accept: is it up, and can it be reached?",
    ),
    "in wait": Kind(
        "waiting for {backend} to begin its answer",
        "waiting for the backend's answer to begin",
        "The backend works, hangs, or has the request in a queue of its own.",
    ),
    "in silent": Kind(
        "waiting for more of the answer from {backend}",
        "waiting for more of the backend's answer",
        "The backend works, hangs, or has the request in a queue of its own.",
    ),
    "in stream": Kind("waiting for more of the answer from {backend}", "waiting for more of the backend's answer", ""),
    "in blocked": Kind(
        "waiting for the client to take its answer",
        "waiting for the client to take its answer",
        "The client does not read, or the network to it is slow.",
    ),
    "in finish": Kind("the client has left; {backend} finishes", "letting the backend finish without its client", ""),
}
"""By what ends a step, or by "in " and the phase in which an exchange was when it ended."""


class Step(NamedTuple):
    """A part of the time.

    Attributes:
        kind: a key of KINDS.
        text: what it was.
        begin: seconds after the first byte of the request.
        seconds: that it took.
    """

    kind: str
    text: str
    begin: float
    seconds: float


def _pieces(element: Element) -> str:
    """What came between the first and the last content."""
    times, made, events = element["times"], element["tokens"]["completion"], element["events"]
    seconds = times["last"] - times["first"]
    count, noun = (made, "tokens") if made is not None else (events, "pieces of content")
    if count < 2:
        return "content"
    pace = f" ({count / seconds:.3g}/s)" if seconds > 0 else ""
    return f"{noun}: {count} in {format_seconds(seconds)}{pace}"


def _marks(element: Element) -> Iterator[tuple[str, str, float]]:
    """(kind, text, seconds after the first byte) of everything that happened and ended a step, in order."""
    times = element["times"]
    backend = element["backend"] or "a backend"
    for name in ("head", "queued", "connected", "answered", "first", "last"):
        if name == "connected":
            for attempt in element["failed"]:
                if times["connected"] is None or attempt["at"] <= times["connected"]:
                    text = KINDS["failed"].text.format(backend=attempt["backend"] or "a backend")
                    yield "failed", f"{text}: {attempt['reason']}", attempt["at"]
        if times[name] is not None:
            pieces = _pieces(element) if name == "last" and times["first"] is not None else "content"
            yield name, KINDS[name].text.format(backend=backend, pieces=pieces), times[name]


def _rest(element: Element) -> str:
    """The kind of the step in which the exchange ended, or is."""
    if element["phase"] == "tunnel":
        return "tunnel"
    return "end" if element["outcome"] == "ok" else f"in {element['phase']}"


def make(element: Element) -> list[Step]:
    """The steps of an exchange, without gaps: together they are its duration."""
    end = element["duration"]
    steps = []
    now = 0.0
    for kind, text, seconds in _marks(element):
        at = min(max(seconds, now), end)
        steps.append(Step(kind, text, now, at - now))
        now = at
    kind = _rest(element)
    text = KINDS[kind].text.format(backend=element["backend"] or "a backend")
    return [*steps, Step(kind, text, now, end - now)]


def format_seconds(seconds: float) -> str:
    """A time for a person, in the unit in which it is easy to read."""
    if seconds < 0.0995:
        return f"{seconds * 1000:.2g} ms" if seconds < 0.00995 else f"{seconds * 1000:.0f} ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 99.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def _share(seconds: float, total: float) -> float:
    return seconds / total if total else 0.0


def _percent(share: float) -> str:
    return f"{share * 100:.0f} %"


def verdict(element: Element) -> list[str]:
    """Where the time went, in a line, and what to look at, in another one where something is known."""
    total = element["duration"]
    if not total:
        return ["where the time went: it took no time at all"]
    taken: dict[str, float] = {}
    for step in make(element):
        taken[step.kind] = taken.get(step.kind, 0.0) + step.seconds
    order = sorted(taken, key=lambda kind: -taken[kind])
    named = [f"{KINDS[kind].verdict} ({_percent(_share(taken[kind], total))})" for kind in order[:2]]
    second = len(named) > 1 and _share(taken[order[0]], total) < 0.6 and _share(taken[order[1]], total) >= 0.2
    hint = KINDS[order[0]].hint
    return [f"where the time went: {', '.join(named if second else named[:1])}", *([hint] if hint else [])]


def _facts(element: Element) -> Iterator[tuple[str, str]]:
    """Names and values of the lines before the time line."""
    tokens = element["tokens"]
    about = [f"{element['method']} {element['path'] or ''}".strip()] if element["method"] else []
    about += [f"model {element['model']}"] if element["model"] else []
    about += [f"from {element['client']}"] if element["client"] else []
    yield "request", f"{element['request_id']}" + (f" ({', '.join(about)})" if about else "")
    yield "began", element["at"]
    way = [f"pool {element['pool']}"] if element["pool"] else []
    way += [f"backend {element['backend']}"] if element["backend"] else ["no backend"]
    connections = element["attempts"]
    yield "way", ", ".join([*way, f"{connections} connection{'' if connections == 1 else 's'} used"])
    if element["outcome"] is None:
        yield "outcome", f"none yet: it goes on, in the phase {element['phase']}"
    else:
        status = f", status {element['status']}" if element["status"] else ""
        yield "outcome", f"{element['outcome']}{status}, in the phase {element['phase']}"
        yield from _explained(OUTCOMES[element["outcome"]], advice=element["outcome"] != "ok")
    if element["reason"]:
        error = f" ({element['error']})" if element["error"] not in (None, element["reason"]) else ""
        yield "reason", f"{element['reason']}{error}"
        yield from _explained(REASONS[element["reason"]], advice=True)
    for attempt in element["failed"]:
        yield (
            "in vain",
            f"{attempt['backend'] or 'a backend'} after {format_seconds(attempt['at'])}: {attempt['reason']}",
        )
        if attempt["reason"] != element["reason"]:
            yield "", REASONS[attempt["reason"]].meaning if attempt["reason"] else ""
    yield "bytes", f"{element['bytes_up']} from the client, {element['bytes_down']} to it"
    known = [f"{tokens[kind]} {kind}" for kind in ("prompt", "cached", "completion") if tokens[kind] is not None]
    yield "tokens", ", ".join(known) or "the backend did not say"
    if element["close_ms"] is not None:
        after = format_seconds(element["close_ms"] / 1000)
        yield "left", f"the backend's connection was closed {after} after the client had left"
    if element["traceparent"]:
        yield "trace", element["traceparent"]


def _explained(explanation: Explanation, *, advice: bool) -> Iterator[tuple[str, str]]:
    yield "", explanation.meaning
    if advice:
        yield "", explanation.advice


def _printable(text: str) -> str:
    """Without what a client could tell a terminal to do, in the name of a model for one."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def lines(element: Element) -> Iterator[str]:
    """An exchange as text, for a person who sees one for the first time."""
    for name, value in _facts(element):
        if value:
            yield f"{name:<9}{_printable(value)}"
    total = element["duration"]
    yield ""
    yield f"{'after':>9}  {'took':>9}  share  {'':<{BAR + 2}}  step"
    for step in make(element):
        share = _share(step.seconds, total)
        begin = round(_share(step.begin, total) * BAR)
        length = max(1, round(share * BAR)) if step.seconds else 0
        bar = " " * min(begin, BAR - length) + "#" * length
        took = format_seconds(step.seconds)
        yield f"{format_seconds(step.begin):>9}  {took:>9}  {_percent(share):>5}  |{bar:<{BAR}}|  {step.text}"
    yield f"{format_seconds(total):>9}  {'so far' if element['outcome'] is None else 'end'}"
    yield ""
    yield from verdict(element)
