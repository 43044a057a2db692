"""Rows of what a proxy answered: backends by pool, live exchanges, failures; sorted, filtered, and laid out for a width.

A table is a list of `Group` and `Row`. What a cell shows and what it is sorted by are two things: "1.2s" is less than "45s".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from llmpipe.top import figures
from llmpipe.top.figures import clean, number
from llmpipe.top.source import Json

Mood = Literal["", "good", "bad", "odd", "quiet", "strong"]
"""How a text is meant. A terminal may show it as a colour; nothing is said by it that no word says."""

MOODS: dict[str, Mood] = {"up": "good", "down": "bad", "draining": "odd", "drained": "odd", "unresolved": "bad"}


class Span(NamedTuple):
    """A piece of a line."""

    text: str
    mood: Mood = ""


class Cell(NamedTuple):
    """Attributes:
    text: that is shown, of one line, without control characters.
    order: that it is sorted by: of one type in a column; None comes last.
    mood: of the text.
    """

    text: str
    order: float | str | None
    mood: Mood = ""


@dataclass(frozen=True)
class Column:
    """Attributes:
    name: key in `Row.cells`.
    title: above it.
    width: columns of the terminal that it takes at least.
    keep: the greater, the longer it stays where there is no room for all.
    align: "<" or ">".
    grows: whether it takes more where there is room and what it shows is longer.
    middle: whether a text that is too long loses its middle.
    if_any: whether it is left out where no row has anything to show.
    """

    name: str
    title: str
    width: int
    keep: int
    align: str = ">"
    grows: bool = False
    middle: bool = False
    if_any: bool = False


@dataclass(frozen=True)
class Row:
    """Attributes:
    key: that it is known by from one answer to the next.
    cells: by name of column.
    data: as it was answered.
    words: that a filter looks at, in lower case.
    backend: name of its backend, empty where there is none.
    """

    key: str
    cells: dict[str, Cell]
    data: Json
    words: str
    backend: str = ""


@dataclass(frozen=True)
class Group:
    """A line above rows that belong together."""

    spans: tuple[Span, ...]
    rows: tuple[Row, ...] = field(default=())


MAIN = 50
"""Of a column's `keep`, from which on it shows all that it has to show before others are shown at all."""

BACKENDS = (
    Column("backend", "backend", 14, 100, "<", grows=True, middle=True),
    Column("state", "state", 8, 99, "<"),
    Column("in_flight", "flight", 6, 95),
    Column("why", "why", 12, 94, "<", grows=True, if_any=True),
    Column("exchanges", "exch/s", 6, 90),
    Column("errors", "err/s", 5, 92),
    Column("ttft50", "TTFT50", 6, 80),
    Column("ttft99", "TTFT99", 6, 89),
    Column("itl50", "ITL50", 5, 70),
    Column("itl99", "ITL99", 5, 88),
    Column("content", "content", 7, 60),
    Column("weight", "weight", 6, 20),
    Column("tier", "tier", 4, 19),
    Column("total", "total", 6, 30),
    Column("failures", "failed", 6, 31),
    Column("idle", "idle", 5, 10),
)

EXCHANGES = (
    Column("id", "id", 10, 99, "<", grows=True, middle=True),
    Column("model", "model", 12, 95, "<", grows=True, middle=True),
    Column("backend", "backend", 14, 96, "<", grows=True, middle=True),
    Column("phase", "phase", 7, 98, "<"),
    Column("age", "age", 6, 97),
    Column("tokens", "tokens", 8, 94),
    Column("bytes", "bytes", 6, 93),
    Column("first", "first", 6, 60),
    Column("pool", "pool", 8, 30, "<", grows=True, if_any=True),
    Column("client", "client", 15, 20, "<", grows=True, if_any=True),
)

FAILURES = (
    Column("at", "at (UTC)", 8, 100, "<"),
    Column("backend", "backend", 14, 95, "<", grows=True, middle=True),
    Column("outcome", "outcome", 14, 97, "<"),
    Column("reason", "reason", 20, 99, "<", grows=True),
    Column("status", "status", 6, 40),
    Column("model", "model", 10, 60, "<", grows=True, middle=True),
    Column("id", "id", 10, 70, "<", grows=True, middle=True),
    Column("phase", "phase", 7, 30, "<"),
    Column("pool", "pool", 8, 20, "<", grows=True, if_any=True),
)


def _figure(text: str, value: Any, mood: Mood = "") -> Cell:
    return Cell(text, number(value), mood)


def _word(value: Any, mood: Mood = "") -> Cell:
    text = clean(value)
    return Cell(text, text.lower() if text != figures.UNKNOWN else None, mood)


def as_list(value: Any) -> list[Json]:
    """The objects in a list of JSON; none for anything else."""
    return [element for element in value if isinstance(element, dict)] if isinstance(value, list) else []


def as_object(value: Any) -> Json:
    """An object of JSON; an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def short_name(name: Any) -> str:
    """A backend's name without the scheme that all of them have."""
    return clean(name).removeprefix("http://")


def _latency(value: Any, name: str) -> Cell:
    found = as_object(value).get(name)
    return _figure(figures.duration(found), found)


def _why(backend: Json) -> str:
    """Why a backend is not asked, in words."""
    why = backend.get("why")
    words = [clean(word) for word in why] if isinstance(why, list) else []
    if backend.get("error"):
        words.append(clean(backend["error"]))
    return ", ".join(words)


def _backend(pool: Json, backend: Json) -> Row:
    name, state = clean(backend.get("name")), clean(backend.get("state"))
    rates, content = as_object(backend.get("rates")), backend.get("seconds_since_content")
    errors, why = rates.get("errors"), _why(backend)
    cells = {
        "backend": Cell(short_name(name), short_name(name).lower()),
        "state": _word(state, MOODS.get(state, "")),
        "why": Cell(why, why or None, "bad" if why else ""),
        "in_flight": _figure(figures.count(backend.get("in_flight")), backend.get("in_flight")),
        "exchanges": _figure(figures.rate(rates.get("exchanges")), rates.get("exchanges")),
        "errors": _figure(figures.rate(errors), errors, "bad" if (number(errors) or 0) >= 0.005 else ""),
        "ttft50": _latency(backend.get("ttft"), "p50"),
        "ttft99": _latency(backend.get("ttft"), "p99"),
        "itl50": _latency(backend.get("itl"), "p50"),
        "itl99": _latency(backend.get("itl"), "p99"),
        "content": _figure(figures.age(content), content),
        "weight": _figure(figures.count(backend.get("weight")), backend.get("weight")),
        "tier": _figure(figures.count(backend.get("tier")), backend.get("tier")),
        "total": _figure(figures.count(backend.get("exchanges")), backend.get("exchanges")),
        "failures": _figure(figures.count(backend.get("failures")), backend.get("failures")),
        "idle": _figure(figures.count(backend.get("idle_connections")), backend.get("idle_connections")),
    }
    models = pool.get("models")
    words = [clean(pool.get("name")), name, state, why, *(map(clean, models) if isinstance(models, list) else ())]
    key = f"{clean(pool.get('name'))}\n{name}"
    return Row(key, cells, backend, "\n".join(words).lower(), backend=str(backend.get("name") or ""))


def _pool_line(pool: Json) -> tuple[Span, ...]:
    queue = as_object(pool.get("queue"))
    waiting, most = number(queue.get("waiting")), queue.get("size")
    text = "  queue -"
    if waiting is not None:
        text = f"  queue {waiting:.0f}/{figures.count(most)}" if waiting or number(most) else "  no queue"
    mood: Mood = "odd" if waiting else ""
    refused = [f"{figures.count(queue[name])} {name}" for name in ("full", "late") if number(queue.get(name))]
    models = pool.get("models")
    names = ", ".join(map(clean, models)) if isinstance(models, list) else ""
    return (
        Span(clean(pool.get("name")), "strong"),
        Span(text, mood),
        Span(f" ({', '.join(refused)})" if refused else "", "bad"),
        Span(f"  {names}" if names else "", "quiet"),
    )


def backends(status: Json) -> list[Group]:
    """A group for each pool of /status."""
    return [
        Group(_pool_line(pool), tuple(_backend(pool, backend) for backend in as_list(pool.get("backends"))))
        for pool in as_list(status.get("pools"))
    ]


def request_id(exchange: Json) -> str:
    """The id of an exchange as it was answered; empty where it has none."""
    return str(exchange.get("request_id") or "")


def progress(exchange: Json) -> tuple[str, float | None]:
    """Tokens where the backend has counted them, else pieces of content, and which."""
    tokens = number(as_object(exchange.get("tokens")).get("completion"))
    if tokens is not None:
        return figures.count(tokens), tokens
    pieces = number(exchange.get("events"))
    return (figures.UNKNOWN, None) if pieces is None else (f"{figures.count(pieces)} pcs", pieces)


def _exchange(exchange: Json, index: int) -> Row:
    tokens, amount = progress(exchange)
    identity, age = request_id(exchange), exchange.get("duration")
    first = as_object(exchange.get("times")).get("first")
    phase = clean(exchange.get("phase"))
    cells = {
        "id": _word(identity),
        "model": _word(exchange.get("model")),
        "backend": Cell(short_name(exchange.get("backend")), short_name(exchange.get("backend")).lower()),
        "phase": _word(phase, "bad" if phase == "blocked" else ""),
        "age": _figure(figures.age(age), age),
        "tokens": Cell(tokens, amount),
        "bytes": _figure(figures.size(exchange.get("bytes_down")), exchange.get("bytes_down")),
        "first": _figure(figures.duration(first), first),
        "pool": _word(exchange.get("pool")),
        "client": _word(exchange.get("client")),
    }
    words = (identity, *(clean(exchange.get(name)) for name in ("model", "backend", "pool", "phase", "client")))
    key = identity or f"no id {index}"
    return Row(key, cells, exchange, "\n".join(words).lower(), backend=str(exchange.get("backend") or ""))


def exchanges(answered: Json) -> list[Group]:
    """One group of the live ones of /exchanges."""
    return [Group((), tuple(_exchange(element, index) for index, element in enumerate(as_list(answered.get("live")))))]


def _failure(failure: Json, index: int) -> Row:
    at, identity = failure.get("at"), request_id(failure)
    cells = {
        "at": Cell(figures.clock(at), str(at) if at else None),
        "backend": Cell(short_name(failure.get("backend")), short_name(failure.get("backend")).lower()),
        "outcome": _word(failure.get("outcome"), "bad"),
        "reason": _word(failure.get("reason")),
        "status": _figure(figures.count(failure.get("status")), failure.get("status")),
        "model": _word(failure.get("model")),
        "id": _word(identity),
        "phase": _word(failure.get("phase")),
        "pool": _word(failure.get("pool")),
    }
    names = ("backend", "model", "pool", "outcome", "reason", "phase")
    words = (identity, *(clean(failure.get(name)) for name in names))
    key = f"{at}\n{identity or index}"
    return Row(key, cells, failure, "\n".join(words).lower(), backend=str(failure.get("backend") or ""))


def failures(status: Json) -> list[Group] | None:
    """One group of the last failures; None where the proxy does not list them."""
    if not isinstance(status.get("failures"), list):
        return None
    return [Group((), tuple(_failure(element, index) for index, element in enumerate(as_list(status["failures"]))))]


def filtered(groups: Sequence[Group], text: str) -> list[Group]:
    """The rows that have each word of a text, in any case of letters; groups without one are left out."""
    wanted = text.lower().split()
    if not wanted:
        return list(groups)
    kept = [
        Group(group.spans, tuple(row for row in group.rows if all(word in row.words for word in wanted)))
        for group in groups
    ]
    return [group for group in kept if group.rows]


def ordered(groups: Sequence[Group], name: str, *, reverse: bool) -> list[Group]:
    """Each group's rows sorted by a column; what is unknown comes last either way. An empty name leaves them as they are."""

    def by(row: Row) -> Any:
        return row.cells[name].order

    def order(rows: Sequence[Row]) -> Iterator[Row]:
        yield from sorted((row for row in rows if by(row) is not None), key=by, reverse=reverse)
        yield from (row for row in rows if by(row) is None)

    if not name:
        return [Group(group.spans, group.rows[::-1] if reverse else group.rows) for group in groups]
    return [Group(group.spans, tuple(order(group.rows))) for group in groups]


class Placed(NamedTuple):
    """A column and the width that it got."""

    column: Column
    width: int


def layout(columns: Sequence[Column], groups: Sequence[Group], width: int | None, gap: int = 1) -> list[Placed]:
    """The columns for which there is room, in their order, with their widths.

    Args:
        columns: that there are.
        groups: that they show.
        width: of the terminal; None for as much as they need.
        gap: between two columns.
    """
    rows = [row for group in groups for row in group.rows]

    def needs(column: Column) -> int:
        return max((figures.cells(row.cells[column.name].text) for row in rows), default=0)

    known = [column for column in columns if not column.if_any or any(_says(row.cells[column.name]) for row in rows)]
    if width is None:
        return [Placed(column, max(column.width, len(column.title), needs(column))) for column in known]
    widths: dict[str, int] = {}
    left = width + gap
    for wanted in (lambda column: column.keep >= MAIN, lambda column: column.keep < MAIN):
        chosen = []
        for column in sorted(filter(wanted, known), key=lambda column: -column.keep):
            if column.width + gap > left:
                break  # what counts less has no better right to the room
            left -= column.width + gap
            widths[column.name] = column.width
            chosen.append(column)
        for column in chosen:  # who stays longest grows first
            more = min(max(needs(column) - column.width, 0), left) if column.grows else 0
            widths[column.name] += more
            left -= more
    return [Placed(column, widths[column.name]) for column in known if column.name in widths]


def _says(cell: Cell) -> bool:
    return cell.text not in ("", figures.UNKNOWN)


def row_spans(row: Row, placed: Sequence[Placed]) -> list[Span]:
    """A row as a line."""
    spans: list[Span] = []
    for column, width in placed:
        cell = row.cells[column.name]
        text = figures.cut(cell.text, width, middle=column.middle)
        spans.append(Span(figures.pad(text, width, column.align), cell.mood))
        spans.append(Span(" "))
    return spans[:-1]


def title_spans(placed: Sequence[Placed], sorted_by: str = "", *, reverse: bool = False) -> list[Span]:
    """The titles as a line; that of the column that the rows are sorted by is strong, and has an arrow where there is room."""
    spans: list[Span] = []
    for column, width in placed:
        is_it = column.name == sorted_by
        title = column.title
        if is_it and len(title) < width:
            arrow = "▼" if reverse else "▲"
            title = title + arrow if column.align == "<" else arrow + title
        spans.append(Span(figures.pad(title, width, column.align), "strong" if is_it else "quiet"))
        spans.append(Span(" "))
    return spans[:-1]
