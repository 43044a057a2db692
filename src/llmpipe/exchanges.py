"""Single exchanges: those that ended last, and those that are alive, as /exchanges shows them (rule S2).

What is kept of an exchange is the record that the engine made of it, packed: nothing is looked up, masked or computed until somebody
asks. The control plane's thread keeps; the admin endpoint's asks.
"""

from __future__ import annotations

import errno
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from msgspec import Struct, msgpack

from llmpipe import trace_context
from llmpipe._pipe import OUTCOMES, PHASES, REASONS
from llmpipe.access_log import request_line
from llmpipe.config import parse_count
from llmpipe.errors import UsageError
from llmpipe.query import parse_parameters
from llmpipe.record_kinds import ExchangeEnded

if TYPE_CHECKING:
    from llmpipe.fleet import Fleet
    from llmpipe.record_kinds import Record

MOST_SHOWN = 1000
"""Exchanges of each list in an answer, live and ended."""

LEAST_PREFIX = 8
"""Characters with which an id may be asked for by its beginning."""

PARAMETERS = ("limit", "id", "outcome", "backend", "pool", "model")


_pack = msgpack.Encoder().encode
_unpack: Callable[[bytes], tuple[float, ExchangeEnded]] = msgpack.Decoder(tuple[float, ExchangeEnded]).decode


class Query(Struct, frozen=True, kw_only=True):
    """Which exchanges somebody asks for. What is empty does not matter."""

    limit: int = 100
    """The newest ones, of each list."""
    id: str = ""
    """Of the request. Where no exchange has it, and it has LEAST_PREFIX characters or more: the beginning of one."""
    outcome: str = ""
    backend: str = ""
    """The name of a backend or a server that was asked, last or in vain."""
    pool: str = ""
    model: str = ""


def parse_query(text: str) -> Query:
    """What the query of a URL asks for.

    Raises:
        UsageError: a parameter is unknown, empty or there twice, or its value cannot be.
    """
    given = parse_parameters(text, PARAMETERS)
    if empty := [name for name, value in given.items() if not value]:
        raise UsageError(f"the parameter {empty[0]} is empty; leave it out")
    if given.get("outcome", "ok") not in OUTCOMES:
        raise UsageError(f"there is no outcome {given['outcome']!r}; there are {', '.join(OUTCOMES)}")
    limit = parse_count(given.pop("limit", "100"))
    if not 1 <= limit <= MOST_SHOWN:
        raise UsageError(f"limit is from 1 to {MOST_SHOWN}, not {limit}")
    return Query(limit=limit, **given)


class Exchanges:
    """The last exchanges that ended, in a ring."""

    def __init__(self, fleet: Fleet, kept: int, shown: Callable[[str], str]) -> None:
        """Args:
        fleet: knows the servers that records name.
        kept: how many are kept at most.
        shown: takes what may be a credential out of a request's target.
        """
        self._fleet = fleet
        self._shown = shown
        self.kept = kept
        self._ended: deque[bytes] = deque(maxlen=kept)

    def note(self, record: Record) -> None:
        """Keeps an exchange that has just ended."""
        if self.kept and isinstance(record, ExchangeEnded):
            self._ended.append(_pack((time.time(), record)))

    def latest(self) -> Iterator[tuple[float, ExchangeEnded]]:
        """Those that are kept, the newest first, each with the time when its record came, in seconds since 1970."""
        return self._unpacked(Query())

    def show(self, query: Query, live: Sequence[ExchangeEnded]) -> dict[str, Any]:
        """What /exchanges answers.

        Args:
            query: which are asked for.
            live: those that have not ended (`Runner.live`), the newest first.
        """
        found = self._find(query, live, str.__eq__)
        if not found["live"] and not found["ended"] and len(query.id) >= LEAST_PREFIX:
            found = self._find(query, live, str.startswith)
        return {**found, "kept": self.kept}

    def _find(
        self, query: Query, live: Iterable[ExchangeEnded], is_id: Callable[[str, str], bool]
    ) -> dict[str, list[dict[str, Any]]]:
        now = time.time()
        found: dict[str, list[dict[str, Any]]] = {"live": [], "ended": []}
        if not query.outcome:  # what has not ended has none
            for record in live:
                if len(found["live"]) < query.limit and self._is_meant(record, query, is_id):
                    found["live"].append(self._element(record, now, ended=False))
        for taken, record in self._unpacked(query):
            if len(found["ended"]) == query.limit:
                break
            if self._is_meant(record, query, is_id):
                found["ended"].append(self._element(record, taken, ended=True))
        return found

    def _unpacked(self, query: Query) -> Iterator[tuple[float, ExchangeEnded]]:
        """Those that may be meant, the newest first: in each stands what is asked for."""
        texts = [text.encode(errors="replace") for text in (query.id, query.pool, query.model)]
        for packed in reversed(self._ended.copy()):  # other threads append meanwhile
            if all(text in packed for text in texts):
                yield _unpack(packed)

    def _is_meant(self, record: ExchangeEnded, query: Query, is_id: Callable[[str, str], bool]) -> bool:
        return (
            (not query.id or is_id(_text(record.request_id), query.id))
            and (not query.outcome or OUTCOMES[record.outcome] == query.outcome)
            and (not query.pool or _text(record.pool) == query.pool)
            and (not query.model or _text(record.model) == query.model)
            and (not query.backend or self._has_asked(record, query.backend))
        )

    def _has_asked(self, record: ExchangeEnded, name: str) -> bool:
        numbers = {record.backend, *(attempt.backend for attempt in record.failed)}
        servers = [self._fleet.find(number) for number in numbers if number is not None]
        return any(server is not None and name in (server.name, server.backend.name) for server in servers)

    def _name(self, number: int | None) -> str | None:
        server = None if number is None else self._fleet.find(number)
        return None if server is None else server.name

    def _element(self, record: ExchangeEnded, taken: float, *, ended: bool) -> dict[str, Any]:
        began = datetime.fromtimestamp(taken - record.age - record.duration, timezone.utc)
        method, target = request_line(record)
        return {
            "request_id": _text(record.request_id),
            "at": began.isoformat(timespec="milliseconds"),
            "client": _text(record.client) or None,
            "method": method or None,
            "path": self._shown(target) or None,
            "pool": _text(record.pool) or None,
            "model": _text(record.model) or None,
            "backend": self._name(record.backend),
            "status": record.status or None,
            "outcome": OUTCOMES[record.outcome] if ended else None,
            "phase": PHASES[record.phase],
            "reason": REASONS[record.reason] or None,
            "error": errno.errorcode.get(record.error, f"errno {record.error}") if record.error else None,
            "attempts": record.attempts,
            "bytes_up": record.bytes_up,
            "bytes_down": record.bytes_down,
            "events": record.events,
            "tokens": {
                "prompt": record.prompt_tokens,
                "completion": record.completion_tokens,
                "cached": record.cached_tokens,
            },
            "traceparent": _text(record.traceparent) if trace_context.parse(record.traceparent) else None,
            "duration": round(record.duration, 6),
            "times": _times(record, ended=ended),
            "close_ms": None if record.close_time is None else round(record.close_time * 1000, 3),
            "failed": [
                {"backend": self._name(attempt.backend), "at": round(attempt.at, 6), "reason": REASONS[attempt.reason]}
                for attempt in record.failed
            ],
        }


def _text(value: bytes) -> str:
    return value.decode(errors="replace")


def _times(record: ExchangeEnded, *, ended: bool) -> dict[str, float | None]:
    """Seconds from the first byte of the request to each thing that happened, None for what did not."""
    times = {
        "head": record.head,
        "queued": (record.head or 0.0) + record.queued if record.queued else None,
        "connected": record.connected,
        "answered": record.answered,
        "first": None if record.ttft is None else (record.head or 0.0) + record.ttft,
        "last": record.last,
        "end": record.duration if ended else None,
    }
    return {name: None if seconds is None else round(seconds, 6) for name, seconds in times.items()}
