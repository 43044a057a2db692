"""The workloads that the benchmark runs, and the goals that their figures are held against.

A goal is a ratio, or an amount of time or memory, that must hold on any machine; what it compares was measured in the
same run, in alternating rounds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.attacks import Attack
from bench.peers import Peer
from llmpipe.bench.figures import of, quantity
from llmpipe.bench.measure import RunRound, run_round
from llmpipe.bench.workload import Workload

US = "llmpipe"


@dataclass(frozen=True)
class Measured:
    """What a goal came to."""

    text: str
    met: bool


Rounds = Callable[[str, str], list[float]]
"""A target's figure in each of its rounds; empty where it did not run."""


@dataclass(frozen=True)
class Goal:
    """One promise about one workload."""

    text: str
    judge: Callable[[Rounds], Measured | None]
    """None where what it compares did not run."""


@dataclass(frozen=True)
class Task:
    """A workload, its goals, and how long a round of it takes; times in seconds."""

    workload: Workload
    goals: Sequence[Goal] = ()
    seconds: float = 2.0
    """How long a round measures."""
    settle: float = 0.5
    direct: bool = True
    """Whether the same load straight at the source tells something."""
    attack: Attack | None = None
    """What is done to each target while it is measured."""
    only: Sequence[str] = ()
    """The peers that it is worth the time of; all where this is empty."""
    peers: Sequence[Peer] = ()
    """Its own peers, instead of those that were asked for: those whose kin was."""
    group: str = ""
    """Another name by which it is asked for, together with others."""
    everywhere: bool = False
    """Whether its backends are at many addresses."""
    runs: RunRound = run_round
    """What makes a round."""


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)


def _ratios(rounds: Rounds, figure: str, one: str, other: str) -> list[float]:
    """Round by round: what the machine did besides met both."""
    return [a / b for a, b in zip(rounds(one, figure), rounds(other, figure), strict=False)]


def at_most(figure: str, factor: float, other: str = "floor") -> Goal:
    """Ours is at most `factor` times that of another target."""

    def judge(rounds: Rounds) -> Measured | None:
        ratios = _ratios(rounds, figure, US, other)
        if not ratios:
            return None
        return Measured(f"{_median(ratios):.2f} x {other}", _median(ratios) <= factor)

    what = "" if factor == 1 else f"{factor:g} x "
    return Goal(f"{of(figure).label}: at most {what}{other}", judge)


def at_least(figure: str, factor: float, other: str) -> Goal:
    """Ours is at least `factor` times that of another target."""

    def judge(rounds: Rounds) -> Measured | None:
        ratios = _ratios(rounds, figure, US, other)
        if not ratios:
            return None
        return Measured(f"{_median(ratios):.2f} x {other}", _median(ratios) >= factor)

    what = "" if factor == 1 else f"{factor:g} x "
    return Goal(f"{of(figure).label}: at least {what}{other}", judge)


def near(figure: str, seconds: float, other: str = "floor", one: str = US) -> Goal:
    """Ours, or that of `one`, is at most so much above that of another target."""

    def judge(rounds: Rounds) -> Measured | None:
        differences = [a - b for a, b in zip(rounds(one, figure), rounds(other, figure), strict=False)]
        if not differences:
            return None
        middle = _median(differences)
        sign = "-" if middle < 0 else "+"
        return Measured(f"{other} {sign} {quantity(abs(middle), 's')}", middle <= seconds)

    who = "" if one == US else f"{one}, "
    return Goal(f"{who}{of(figure).label}: at most {other} + {quantity(seconds, 's')}", judge)


def within(figure: str, limit: float) -> Goal:
    """Ours is at most so much."""
    unit = of(figure).unit

    def judge(rounds: Rounds) -> Measured | None:
        values = rounds(US, figure)
        if not values:
            return None
        return Measured(quantity(_median(values), unit), _median(values) <= limit)

    return Goal(f"{of(figure).label}: at most {quantity(limit, unit)}", judge)


def without_errors() -> Goal:
    """No error in any round."""

    def judge(rounds: Rounds) -> Measured | None:
        found = rounds(US, "errors")
        return Measured(f"{sum(found):.0f} errors", not any(found)) if found else None

    return Goal("no error", judge)


def intact() -> Goal:
    """No event of any round was altered, lost or out of order."""

    def judge(rounds: Rounds) -> Measured | None:
        found = rounds(US, "broken_events")
        return Measured(f"{sum(found):.0f} broken events", not any(found)) if found else None

    return Goal("every event intact", judge)


def _beside(name: str, attack: Attack | None, settle: float = 0.4) -> Task:
    """A modest load of well-behaved streams. An attack may break none, and its delay must stay below what anybody notices.

    Not a ratio to another proxy's p99: of so few events it is mostly the machine's (docs/adr/0016).
    """
    title = attack.title if attack else "nothing"
    return Task(
        Workload("paced", f"beside-{name}", streams=40, rate=25, beside=title),
        (without_errors(), intact(), within("latency_p99", 1e-3)),
        seconds=2.0,
        settle=settle,
        direct=False,
        attack=attack,
        only=("llmpipe", "haproxy", "nginx"),
    )


KILOBYTE = 1024.0

TASKS = (
    Task(
        Workload("paced", "paced-1000x25", streams=1000, rate=25, event_size=200),
        (
            at_most("cpu_per_event", 1.15),
            at_most("cpu_per_event", 1, "haproxy"),
            at_most("cpu_per_event", 1, "nginx"),
            near("latency_p50", 3e-6),
            at_most("latency_p50", 1, "haproxy"),
            at_most("latency_p99", 1, "haproxy"),
        ),
        seconds=3.0,
    ),
    Task(
        Workload("requests", "requests-1", streams=1),
        (near("ttft_p50", 15e-6), at_most("ttft_p50", 1, "haproxy")),
    ),
    Task(
        Workload("requests", "requests-32", streams=32),
        (at_most("cpu_per_request", 1.15), at_most("cpu_per_request", 1, "haproxy")),
    ),
    Task(
        Workload("churn", "churn-16", streams=16),
        (at_least("requests_per_second", 1, "nginx"), at_least("requests_per_second", 1, "envoy")),
    ),
    Task(Workload("flood", "flood-10", streams=10), (at_least("bytes_per_second", 0.95, "floor"),)),
    Task(
        Workload("hold", "hold-5000", streams=5000),
        (within("memory_per_stream", KILOBYTE),),
        seconds=1.0,
        direct=False,
    ),
    Task(
        Workload("paced", "flowing-5000x5", streams=5000, rate=5),
        (within("memory_per_stream", KILOBYTE),),
        direct=False,
    ),
    Task(
        Workload("paced", "live-9000x5", streams=9000, rate=5),
        (without_errors(), at_most("latency_p99", 1, "haproxy")),
    ),
    Task(
        Workload("disconnect", "disconnect-idle", streams=0, disconnecting=8),
        (
            *(within(f"close:{phase}_p50", 0.3e-3) for phase in ("body", "wait", "silent", "stream", "blocked")),
            within("close_p99", 5e-3),
        ),
        seconds=3.0,
    ),
    Task(
        Workload("disconnect", "disconnect-5000", streams=5000, rate=5, disconnecting=8),
        (within("close_p99", 50e-3),),
        seconds=3.0,
    ),
    _beside("nothing", None),
    _beside("slow-heads", Attack("slow-heads", 500)),
    _beside("slow-bodies", Attack("slow-bodies", 300)),
    _beside("slow-readers", Attack("flood-readers", 50, "/flood"), settle=1.0),
    _beside("idle", Attack("idle", 2000)),
    _beside("aborts", Attack("aborts", 3000)),
)
