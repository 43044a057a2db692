"""What the proxy did of late: rates, percentiles, samples of a quarter of an hour, and the last exchanges that failed.

The engines only count. Every INTERVAL the control plane takes a snapshot of their counters, and all that is told here is a
difference of two snapshots: it costs an exchange nothing, and two views that ask in the same interval are told the same.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Protocol

from llmpipe import log
from llmpipe._pipe import EDGES, OUTCOMES, PHASES, REASONS
from llmpipe.histogram import Counts, quantile, since, total
from llmpipe.metrics import NO_ERROR
from llmpipe.record_kinds import ExchangeEnded

if TYPE_CHECKING:
    from llmpipe._pipe import Stats
    from llmpipe.fleet import Fleet
    from llmpipe.record_kinds import Record

INTERVAL = 5.0
"""Seconds between two snapshots."""

MOST_SAMPLES = 180
"""Samples that are kept: those of 15 minutes."""

RATE_INTERVALS = 2
"""Intervals that a rate is of."""

LATENCY_INTERVALS = 12
"""Intervals that percentiles are of."""

MOST_FAILURES = 20
"""Failed exchanges that are kept."""

Latencies = Mapping[int, tuple[Counts, Counts]]
"""By the number of a backend: counts of the times to the first token, and of the gaps between events."""

Row = dict[str, Any]


class Source(Protocol):
    """What snapshots are taken of."""

    def stats(self) -> list[Stats]:
        """The counters of each engine."""

    def latencies(self) -> Latencies:
        """Those of all engines together."""


@dataclass(frozen=True)
class Snapshot:
    """Counters of all engines together at one moment."""

    at: float
    """Of time.monotonic()."""
    exchanges: int
    errors: int
    """Exchanges that ended neither well nor by their client."""
    tokens: int
    """Of answers, as backends counted them."""
    pieces: int
    """Of response bodies, that were forwarded."""
    streams: int
    """That are open now."""
    queued: int
    """Requests that wait for a place now."""
    backends: Mapping[int, tuple[int, int]]
    """By number: exchanges and failures."""
    latencies: Latencies


def take_snapshot(source: Source, at: float) -> Snapshot:
    """Args:
    source: is asked.
    at: the moment, of time.monotonic().
    """
    engines = source.stats()
    outcomes = [sum(counts) for counts in zip(*(stats["outcomes"] for stats in engines), strict=True)]
    numbers = {number for stats in engines for number in stats["backends"]}
    known = {
        number: [stats["backends"][number] for stats in engines if number in stats["backends"]] for number in numbers
    }
    return Snapshot(
        at=at,
        exchanges=sum(outcomes),
        errors=sum(count for name, count in zip(OUTCOMES, outcomes, strict=True) if name not in NO_ERROR),
        tokens=sum(completion for stats in engines for _, completion, _ in stats["tokens"].values()),
        pieces=sum(stats["reads_forwarded"] for stats in engines),
        streams=sum(stats["streaming_active"] for stats in engines),
        queued=sum(pool["waiting"] for pool in engines[0]["pools"].values()),  # all engines tell the same
        backends={
            number: (sum(row["exchanges"] for row in rows), sum(row["failures"] for row in rows))
            for number, rows in known.items()
        },
        latencies=source.latencies(),
    )


def _rate(now: float, before: float, seconds: float) -> float:
    """Counters of engines never go back; what is not there any more counts as 0."""
    return round(max(0.0, now - before) / seconds, 3)


def _percentiles(counts: Counts) -> Row:
    """In seconds."""
    return {name: quantile(counts, q, EDGES) for name, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))}


def _counted(now: Latencies, before: Latencies, kind: int) -> dict[int, int]:
    """What was counted between two snapshots at all backends: 0 for TTFT, 1 for ITL."""
    nothing: tuple[Counts, Counts] = ({}, {})
    return total(since(found[kind], before.get(number, nothing)[kind]) for number, found in now.items())


class Recent:
    """What a few snapshots say about the last seconds. It never changes, so any thread may ask it; it computes what it is asked."""

    def __init__(self, snapshots: Sequence[Snapshot]) -> None:
        """Args:
        snapshots: oldest first; at least one.
        """
        self._now = snapshots[-1]
        self._rates_from = snapshots[-1 - RATE_INTERVALS :][0]
        self._latencies_from = snapshots[-1 - LATENCY_INTERVALS :][0]
        self._seconds = max(1.0, self._now.at - self._rates_from.at)
        self._made: dict[int | None, Row] = {}

    def totals(self) -> Row:
        """`rates`, a second, and `ttft` and `itl` in seconds, of all that went through."""
        return self._get(None, self._totals)

    def backend(self, number: int | None) -> Row:
        """The same of one backend; nothing of None, which is one that has no server."""
        return self._get(-1 if number is None else number, lambda: self._backend(number))

    def _get(self, key: int | None, make: Callable[[], Row]) -> Row:
        # Two threads may both make it; what they make is the same.
        found = self._made.get(key)
        if found is None:
            found = self._made[key] = make()
        return found

    def _totals(self) -> Row:
        now, before = self._now, self._rates_from
        latencies = self._latencies_from.latencies
        return {
            "rates": {
                "exchanges": _rate(now.exchanges, before.exchanges, self._seconds),
                "errors": _rate(now.errors, before.errors, self._seconds),
                "tokens": _rate(now.tokens, before.tokens, self._seconds),
                "pieces": _rate(now.pieces, before.pieces, self._seconds),
            },
            "ttft": _percentiles(_counted(now.latencies, latencies, 0)),
            "itl": _percentiles(_counted(now.latencies, latencies, 1)),
        }

    def _backend(self, number: int | None) -> Row:
        def counts(snapshot: Snapshot) -> tuple[int, int]:
            return (0, 0) if number is None else snapshot.backends.get(number, (0, 0))

        def of(latencies: Latencies) -> Latencies:
            return {number: latencies[number]} if number is not None and number in latencies else {}

        now, before = counts(self._now), counts(self._rates_from)
        taken, earlier = of(self._now.latencies), of(self._latencies_from.latencies)
        return {
            "rates": {
                "exchanges": _rate(now[0], before[0], self._seconds),
                "errors": _rate(now[1], before[1], self._seconds),
            },
            "ttft": _percentiles(_counted(taken, earlier, 0)),
            "itl": _percentiles(_counted(taken, earlier, 1)),
        }


def make_sample(now: Snapshot, before: Snapshot, at: float) -> Row:
    """What the history keeps of an interval.

    Args:
        now: taken at its end.
        before: taken at its beginning.
        at: its end in seconds since 1970.
    """
    seconds = max(now.at - before.at, 0.001)
    ttft = _counted(now.latencies, before.latencies, 0)
    itl = _counted(now.latencies, before.latencies, 1)
    return {
        "at": round(at, 3),
        "streams": now.streams,
        "exchanges": _rate(now.exchanges, before.exchanges, seconds),
        "errors": _rate(now.errors, before.errors, seconds),
        "tokens": _rate(now.tokens, before.tokens, seconds),
        "queued": now.queued,
        "ttft_p50": quantile(ttft, 0.5, EDGES),
        "ttft_p99": quantile(ttft, 0.99, EDGES),
        "itl_p50": quantile(itl, 0.5, EDGES),
        "itl_p99": quantile(itl, 0.99, EDGES),
    }


class History:
    """Takes the snapshots and keeps what came of them.

    The control plane's thread starts, notes and closes; any thread may read: what is read is replaced, and never changed.

    Attributes:
        samples: of the last 15 minutes, oldest first.
    """

    def __init__(self, fleet: Fleet) -> None:
        """Args:
        fleet: knows the servers that records name.
        """
        self.samples: tuple[Row, ...] = ()
        self._fleet = fleet
        self._failures: tuple[Row, ...] = ()
        self._snapshots: tuple[Snapshot, ...] = ()
        self._recent: Recent | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self, source: Source) -> None:
        """Takes the first snapshot now, and one each INTERVAL from then on."""
        loop = asyncio.get_running_loop()

        def wait(due: float) -> None:
            # Later than it should be by more than an interval: the process stood still.
            due = max(due, loop.time() - INTERVAL) + INTERVAL
            self._timer = loop.call_at(due, next_one, due)

        def next_one(due: float) -> None:
            try:
                self.take(source)
            except Exception as error:  # else there would be none any more
                log.error("sample not taken", error=repr(error))
            finally:
                wait(due)

        self.take(source)
        wait(loop.time())

    def close(self) -> None:
        """Takes no snapshot any more."""
        if self._timer is not None:
            self._timer.cancel()

    def take(self, source: Source) -> None:
        """Takes a snapshot, and a sample of the time since the last one."""
        now = take_snapshot(source, time.monotonic())
        if self._snapshots:
            sample = make_sample(now, self._snapshots[-1], time.time())
            self.samples = (*self.samples[1 - MOST_SAMPLES :], sample)
        self._snapshots = (*self._snapshots[-LATENCY_INTERVALS:], now)
        self._recent = Recent(self._snapshots)

    @property
    def recent(self) -> Recent:
        """Of the last seconds; `start` must have been called."""
        assert self._recent is not None
        return self._recent

    def note(self, record: Record) -> None:
        """Keeps a record of an exchange that failed. There is none where the engines make none (`Settings.access_records`)."""
        if isinstance(record, ExchangeEnded) and OUTCOMES[record.outcome] not in NO_ERROR:
            self._failures = (self._row(record), *self._failures[: MOST_FAILURES - 1])

    def _row(self, record: ExchangeEnded) -> Row:
        return {
            "at": time.time() - record.age,
            "request_id": record.request_id.decode("latin-1"),
            "pool": record.pool.decode("utf-8", "replace") or None,
            "model": record.model.decode("utf-8", "replace") or None,
            "backend": None if record.backend is None else self._fleet.name(record.backend),
            "outcome": OUTCOMES[record.outcome],
            "phase": PHASES[record.phase],
            "reason": REASONS[record.reason] or None,
            "status": record.status or None,
        }

    def failures(self) -> list[Row]:
        """The last exchanges that failed, newest first."""

        def moment(at: float) -> str:
            return datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="milliseconds")

        # Engines hand over their records one after the other.
        ordered = sorted(self._failures, key=lambda row: float(row["at"]), reverse=True)
        return [{**row, "at": moment(row["at"])} for row in ordered]

    def shown(self) -> Row:
        """What /history shows."""
        return {"interval": round(INTERVAL), "samples": list(self.samples)}
