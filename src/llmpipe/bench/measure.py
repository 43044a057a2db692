"""Rounds: each workload runs against each target in turn, several times, and each time gives a set of figures.

Targets alternate within one run, so that what else the machine does meets all of them. A round settles before it
measures. Figures of a target are medians over its rounds, with the least and the greatest.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from llmpipe._load import LEAVE_PHASES, TIMES, Load
from llmpipe.bench import figures, generator, histogram, process
from llmpipe.bench.figures import quantity
from llmpipe.bench.histogram import PERCENTILES, Pairs
from llmpipe.bench.workload import Workload, make_plan

TICK = 0.25
"""Seconds between two looks at what was counted."""

LATE_LIMIT = 0.001
"""A generator that sends its 99th percentile later than this after its time, in seconds, is the limit."""

BUSY_LIMIT = 0.9
"""So is one that works for a greater part of its time."""

MEANINGS = {
    "no_answer": "200, but neither a token nor the end of an answer: a page, an empty body, another API?",
    "error_answer": "200, but an error instead of an answer or inside it",
    "unended": "an event stream that ended without [DONE] and without a finish_reason",
    "usage": "a number of tokens that cannot be true; events with content were counted instead",
}
"""What errors mean that look like answers."""


@dataclass
class Target:
    """What the load goes to."""

    name: str
    kind: str
    """direct, proxy or url."""
    address: tuple[str, int]
    """Numeric, as the generator connects it."""
    pids: list[int] = field(default_factory=list)
    """Processes whose CPU time and memory are looked at, without their descendants."""
    host: str = ""
    """For the Host field, where the address is not what the user wrote."""
    version: str | None = None
    about: str | None = None
    resident_before: int | None = None
    """Bytes, before the first load of this workload."""
    timed_out: bool = False
    """Whether it could not open all streams in time; it is not asked again, as each try takes so long."""

    @property
    def marked(self) -> bool:
        """Whether the generator's own source is behind it."""
        return self.kind != "url"

    def tree(self) -> list[int]:
        """The processes and their descendants."""
        return list(dict.fromkeys(member for pid in self.pids for member in process.tree(pid)))


@dataclass
class Round:
    """What one round of one target gave."""

    figures: dict[str, float]
    errors: dict[str, int]
    status: dict[int, int]
    fidelity: dict[str, int]
    warnings: list[str]
    histograms: dict[str, tuple[Pairs, int]]
    series: list[dict[str, float]]


@dataclass(frozen=True)
class Schedule:
    """How often and how long; times in seconds."""

    rounds: int
    settle: float
    """Each round runs so long before it measures."""
    duration: float
    """Each round measures so long."""


@dataclass
class Outcome:
    """A workload and the rounds of each target, in the order they were made."""

    workload: Workload
    schedule: Schedule
    targets: list[Target]
    results: dict[str, list[Round]]


class RunRound(Protocol):
    """What makes a round."""

    def __call__(
        self, load: Load, workload: Workload, target: Target, *, number: int, schedule: Schedule, watcher: Watcher
    ) -> Round: ...


class Watcher(Protocol):
    """Who shows how far it is."""

    def workload(self, workload: Workload, targets: Sequence[Target], rounds: int) -> None:
        """A workload begins."""

    def phase(self, target: Target, number: int, phase: str) -> None:
        """A round of a target is starting, settling, measuring or finishing."""

    def tick(self, target: Target, done: float, latest: dict[str, float]) -> None:
        """It measures: `done` from 0 to 1, and figures of the last moment."""

    def round(self, target: Target, number: int, result: Round) -> None:
        """A round is over."""


def _main_time(workload: Workload, target: Target) -> tuple[str, ...]:
    """The histograms whose percentiles say how it goes."""
    if workload.shape == "disconnect":
        return tuple(f"close:{phase}" for phase in LEAVE_PHASES)
    return ("latency",) if workload.by_events and target.marked else ("ttft",)


def _interval(load: Load, names: tuple[str, ...], before: Pairs) -> tuple[Pairs, Pairs]:
    """All counts so far, and those since `before`."""
    pairs = histogram.merge(load.times(name)[0] for name in names)
    return pairs, histogram.since(pairs, before)


def _watch(load: Load, workload: Workload, target: Target, duration: float, watcher: Watcher) -> list[dict[str, float]]:
    """Waits while it measures; the series of its intervals."""
    series: list[dict[str, float]] = []
    names = _main_time(workload, target)
    counted = "events" if workload.by_events else "answers"
    start = last = time.monotonic()
    pairs: Pairs = []
    events = 0
    while last - start < duration:
        time.sleep(max(0.0, min(TICK, start + duration - time.monotonic())))
        now = time.monotonic()
        pairs, added = _interval(load, names, pairs)
        total = load.stats()["counts"][counted]
        latest = {"at": now - start, "events_per_second": (total - events) / (now - last)}
        for name in ("p50", "p99"):
            value = histogram.percentile(added, PERCENTILES[name])
            if value is not None:
                latest[name] = value
        series.append(latest)
        watcher.tick(target, min(1.0, (now - start) / duration), latest)
        last, events = now, total
    return series


def _time_figures(workload: Workload, histograms: dict[str, tuple[Pairs, int]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, (pairs, most) in histograms.items():
        if not pairs or (name == "late" and workload.shape != "replay"):
            continue
        for label, percent in PERCENTILES.items():
            value = histogram.percentile(pairs, percent)
            assert value is not None, "there are counts"
            found[f"{name}_{label}"] = value
        found[f"{name}_max"] = most / 1e9
    return found


def _warnings(
    workload: Workload,
    counts: dict[str, int],
    histograms: dict[str, tuple[Pairs, int]],
    elapsed: float,
    errors: dict[str, int],
) -> list[str]:
    found = [f"{name}: {meaning}" for name, meaning in MEANINGS.items() if name in errors]
    if not workload.by_events and not counts["answers"]:
        found.append("no answer was complete within the time that was measured")
    late = histogram.percentile(histograms["late"][0], 99.0) if "late" in histograms else None
    if late is not None and late > LATE_LIMIT:  # a coarse number, so that rounds share a warning
        found.append(f"the generator was the limit: 1 % of its events were sent more than {late * 1e3:.1f} ms late")
    busy = counts["busy"] / 1e9 / elapsed
    if busy > BUSY_LIMIT and workload.shape != "hold":
        found.append(f"the generator was the limit: it worked {busy:.0%} of the time; the target might do more")
    return found


def _rate_figures(
    workload: Workload, target: Target, counts: dict[str, int], elapsed: float, cpu: float
) -> dict[str, float]:
    found: dict[str, float] = {}
    if target.pids:
        found["cpu_used"] = cpu / elapsed
    if workload.shape == "hold":
        return found
    if workload.shape != "disconnect" or workload.streams:
        found["events_per_second"] = counts["events"] / elapsed
        found["bytes_per_second"] = counts["bytes"] / elapsed
    if workload.shape == "disconnect":
        found["closes_per_second"] = counts["left"] / elapsed
    if not workload.endless:
        found["requests_per_second"] = counts["answers"] / elapsed
    if not target.marked:
        found["tokens_per_second"] = counts["tokens"] / elapsed
    if target.pids:
        if workload.by_events and workload.shape != "disconnect" and counts["events"]:
            found["cpu_per_event"] = cpu / counts["events"]
        if not workload.by_events and counts["answers"]:
            found["cpu_per_request"] = cpu / counts["answers"]
    return found


def run_round(
    load: Load, workload: Workload, target: Target, *, number: int, schedule: Schedule, watcher: Watcher
) -> Round:
    """One round of one target, the one of this number.

    Raises:
        UsageError: the plan cannot work.
    """
    pids = target.tree()
    if target.pids and target.resident_before is None:
        target.resident_before = process.resident_bytes(pids)
    watcher.phase(target, number, "starting")
    generator.begin(load, make_plan(workload, target.address, target.marked))
    warnings: list[str] = []
    try:
        if workload.endless and not generator.wait_flowing(load, workload.streams):
            flowing = load.stats()["flowing"]
            target.timed_out = True
            warnings.append(
                f"only {flowing:,} of {workload.streams:,} streams began within {quantity(generator.READY_TIME, 's')}"
            )
        watcher.phase(target, number, "settling")
        time.sleep(max(schedule.settle, workload.spread))  # before that, not all clients have begun
        watcher.phase(target, number, "measuring")
        pids = target.tree()
        cpu, start = process.cpu_seconds(pids), time.monotonic()
        load.measure()
        series = _watch(load, workload, target, schedule.duration, watcher)
        load.halt()
        cpu, elapsed = process.cpu_seconds(pids) - cpu, time.monotonic() - start
        resident = process.resident_bytes(pids)
        watcher.phase(target, number, "finishing")
        counts = load.stats()["counts"]
        histograms = {name: load.times(name) for name in TIMES}
    finally:
        unfinished = generator.finish(load)
    stats = load.stats()
    errors = {name: count for name, count in stats["errors"].items() if count}
    if unfinished:
        errors["unfinished"] = unfinished
    histograms = {name: found for name, found in histograms.items() if found[0]}
    closes = [found for name, found in histograms.items() if name.startswith("close:")]
    if closes:
        histograms["close"] = histogram.merge(pairs for pairs, _ in closes), max(most for _, most in closes)
    measured = _time_figures(workload, histograms) | _rate_figures(workload, target, counts, elapsed, cpu)
    if target.pids and workload.by_events and workload.streams and target.resident_before is not None:
        measured["memory_per_stream"] = max(0, resident - target.resident_before) / workload.streams
    fidelity = {name: counts[name] for name in figures.FIDELITY}
    result = Round(
        figures=measured,
        errors=errors,
        status=stats["status"],
        fidelity=fidelity if target.marked and workload.shape not in ("flood", "hold") else {},
        warnings=warnings + _warnings(workload, counts, histograms, elapsed, errors),
        histograms=histograms,
        series=[{"round": number, **point} for point in series],
    )
    watcher.round(target, number, result)
    return result


def run_workload(
    load: Load,
    workload: Workload,
    targets: Sequence[Target],
    schedule: Schedule,
    watcher: Watcher,
    *,
    runs: RunRound = run_round,
) -> Iterator[Outcome]:
    """Yields the outcome so far, after each round of each target; `runs` makes one.

    Raises:
        UsageError: a plan cannot work.
    """
    outcome = Outcome(workload, schedule, list(targets), {target.name: [] for target in targets})
    watcher.workload(workload, targets, schedule.rounds)
    for number in range(schedule.rounds):
        # The order turns with each round: nobody is always the one that runs behind somebody else.
        shift = number % len(targets)
        for target in [*targets[shift:], *targets[:shift]]:
            if target.timed_out:
                continue
            outcome.results[target.name].append(
                runs(load, workload, target, number=number, schedule=schedule, watcher=watcher)
            )
            yield outcome


def summary(rounds: Sequence[Round]) -> dict[str, dict[str, Any]]:
    """Median, least and greatest of each figure over the rounds."""
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(name for one in rounds for name in one.figures):
        values = [one.figures[name] for one in rounds if name in one.figures]
        found[name] = {
            "median": statistics.median(values),
            "min": min(values),
            "max": max(values),
            "unit": figures.of(name).unit,
        }
    return found
