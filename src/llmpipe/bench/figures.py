"""What is measured, once for all tables, plots, goals and lines: names, labels, units, and which way is better.

`of` knows every figure of a round, and `quantity` writes a value of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LESS, MORE = "less", "more"


@dataclass(frozen=True)
class Figure:
    """A figure of a round."""

    name: str
    """In reports."""
    label: str
    """For people, wherever it stands alone."""
    unit: str
    """s, B, B/s, 1/s, or a word that is shown behind the number."""
    group: str
    """The heading under which it is shown."""
    better: str | None
    """LESS, MORE, or None where neither is better."""
    percentile: str = ""
    """Of a time: p50, p99, max and so on."""


@dataclass(frozen=True)
class Time:
    """A kind of time. There is a histogram of it, and its percentiles are figures."""

    name: str
    label: str
    """With {} for the percentile."""
    title: str
    meaning: str
    """From when to when."""


TABLE: tuple[Time | Figure, ...] = (
    Time(
        "close",
        "close to EOF {}",
        "Close",
        "from the client's close to when the source saw it, whatever the client was waiting for",
    ),
    Time(
        "close:body",
        "close to EOF {}, body",
        "Close, in the request",
        "from the client's close, half of its request sent, to when the source saw it",
    ),
    Time(
        "close:wait",
        "close to EOF {}, wait",
        "Close, before the answer",
        "from the client's close, nothing answered yet, to when the source saw it",
    ),
    Time(
        "close:silent",
        "close to EOF {}, silent",
        "Close, in a pause",
        "from the client's close, while no more events came, to when the source saw it",
    ),
    Time(
        "close:stream",
        "close to EOF {}, stream",
        "Close, in a stream",
        "from the client's close, between two events, to when the source saw it",
    ),
    Time(
        "close:blocked",
        "close to EOF {}, blocked",
        "Close, not reading",
        "from the close of a client that had not read for a while to when the source saw it",
    ),
    Time(
        "latency",
        "event latency {}",
        "Event latency",
        "from just before the source sends an event to just after the client received it",
    ),
    Time(
        "ttft",
        "TTFT {}",
        "Time to first token",
        "from the request, or when it was due, to its first event at the client",
    ),
    Time(
        "grant",
        "grant of a place {}",
        "Grant of a place",
        "from just before a backend ends an answer to when it has the next request of those that wait",
    ),
    Time(
        "leave",
        "grant behind one that left {}",
        "Grant behind one that left",
        "the same where the first of those that wait has closed just before: from its close to the request of the one behind it",
    ),
    Time(
        "place",
        "place in a full queue {}",
        "Place in a full queue",
        "from the close of one that waits in a full queue to when a new request was sent that was not refused",
    ),
    Figure("cpu_per_event", "CPU per event", "s", "Cost", LESS),
    Figure("cpu_per_request", "CPU per request", "s", "Cost", LESS),
    Figure("user_cpu_per_request", "CPU per request, without the kernel's", "s", "Cost", LESS),
    Figure("cpu_used", "CPU used", "CPUs", "Cost", None),  # a proxy that forwards more may use more
    Figure("memory_per_stream", "memory per stream", "B", "Cost", LESS),
    Figure("memory_per_waiting", "memory per waiting request, beside its bytes", "B", "Cost", LESS),
    Figure("events_per_second", "event rate", "1/s", "Throughput", MORE),
    Figure("requests_per_second", "request rate", "1/s", "Throughput", MORE),
    Figure("tokens_per_second", "token rate", "1/s", "Throughput", MORE),
    Figure("closes_per_second", "close rate", "1/s", "Throughput", MORE),
    Figure("bytes_per_second", "data rate", "B/s", "Throughput", MORE),
    Time(
        "jitter",
        "gap jitter {}",
        "Jitter",
        "how far the gap between two events at the client is from the gap at the source",
    ),
    Time("itl", "ITL {}", "Gap between events", "from one event of a stream to the next, at the client"),
    Time(
        "duration",
        "whole answer {}",
        "Whole answer",
        "from the request, or when it was due, to the end of its answer",
    ),
    Time(
        "late",
        "late generator {}",
        "Late generator",
        "how much later than planned the generator itself sent; no target is the cause",
    ),
    Figure("attackers_open", "attackers open", "connections", "Attack", None),
    Figure("attacks_per_second", "attack rate", "1/s", "Attack", None),
)
"""In the order in which a page shows them: what most readers look for comes first."""

TIMES = {entry.name: entry for entry in TABLE if isinstance(entry, Time)}
FIGURES = {entry.name: entry for entry in TABLE if isinstance(entry, Figure)}
ORDER = [entry.name for entry in TABLE]

FIDELITY = {
    "events": ("events", 1.0),
    "alone": ("alone", 1.0),
    "merged": ("merged", 0.001),
    "split": ("split", 0.001),
    "altered": ("altered", 0.0),
    "out_of_order": ("out of order", 0.0),
}
"""Counts of how events came: the label, and the share of the events above which it is a fault of the target."""

_PERCENTILE = re.compile(r"(?P<time>.+)_(?P<percentile>p[\d.]+|max)")


def time_of(name: str) -> tuple[Time, str] | None:
    """The kind of time that a figure is a percentile of, and which percentile; None for other figures."""
    match = _PERCENTILE.fullmatch(name)
    return (TIMES[match["time"]], match["percentile"]) if match else None


def of(name: str) -> Figure:
    """The figure of this name.

    Raises:
        KeyError: there is none.
    """
    found = time_of(name)
    if found is None:
        return FIGURES[name]
    time, percentile = found
    return Figure(name, time.label.format(percentile), "s", time.title, LESS, percentile)


def place(name: str) -> int:
    """Where a figure stands in the table."""
    found = time_of(name)
    return ORDER.index(found[0].name if found else name)


# Steps of a unit, the largest first: what to divide by, and what is written behind the number.
_STEPS = {
    "s": ((60.0, " min"), (1.0, " s"), (1e-3, " ms"), (1e-6, " \u00b5s"), (1e-9, " ns")),
    "1/s": ((1e9, " G/s"), (1e6, " M/s"), (1.0, "/s")),
    "B": ((1e12, " TB"), (1e9, " GB"), (1e6, " MB"), (1e3, " KB"), (1.0, " B")),
    "B/s": ((1e12, " TB/s"), (1e9, " GB/s"), (1e6, " MB/s"), (1e3, " KB/s"), (1.0, " B/s")),
}

MINUTES_FROM = 120.0
LEAST_TIME = 1e-10
"""Seconds: no clock sees less, so that this is a rounding error of a difference."""


def scale(value: float, unit: str) -> tuple[float, str]:
    """What to divide a value of this size by, and what to write behind it."""
    size = abs(value)
    steps = _STEPS.get(unit, ((1.0, f" {unit}" if unit else ""),))
    if unit == "s":
        if size < LEAST_TIME:
            return steps[3]
        if size < MINUTES_FROM:
            steps = steps[1:]
    for divisor, name in steps:
        if size >= divisor * 0.9995:  # what would be written as 1000 belongs to the next step
            return divisor, name
    return steps[-1]


def digits(value: float) -> str:
    """Three significant digits, whole numbers with separators: 0.0123, 1.23, 12.3, 123, 12,345."""
    size = abs(value)
    if size >= 99.95:
        text = f"{value:,.0f}"
    elif size >= 9.995:
        text = f"{value:.1f}"
    elif size >= 0.9995 or size == 0:
        text = f"{value:.2f}"
    else:
        text = f"{value:.3g}"
    if "." in text and "e" not in text:
        text = text.rstrip("0").rstrip(".")
    return text.replace("-", "\u2212") if text != "-0" else "0"


def quantity(value: float, unit: str) -> str:
    """A value with a unit that suits its size: 34.2 µs, 4.1 KB, 25,000/s."""
    if unit == "s" and abs(value) < LEAST_TIME:
        value = 0.0
    divisor, name = scale(value, unit)
    return digits(value / divisor) + name


def spread(figure: Mapping[str, Any]) -> str:
    """A figure of a report: the median, and the least and the greatest of the rounds where they are written otherwise."""
    median, least, most = (quantity(figure[key], figure["unit"]) for key in ("median", "min", "max"))
    return median if least == most else f"{median} ({least} to {most})"


def percentage(part: int, whole: int) -> str:
    """A share that is never rounded up to 100 %."""
    return "100 %" if part == whole else f"{math.floor(1e5 * part / whole) / 1e3:.3f} %"
