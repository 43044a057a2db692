"""Histograms as sorted (nanoseconds, count) pairs: adding, subtracting, percentiles.

Percentiles are always of counts. Those of several rounds or phases come from added counts, never from averages.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

Pairs = list[tuple[int, int]]

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9}


def total(pairs: Pairs) -> int:
    """How many values it holds."""
    return sum(count for _, count in pairs)


def merge(histograms: Iterable[Pairs]) -> Pairs:
    """The sum of several."""
    counts: Counter[int] = Counter()
    for pairs in histograms:
        for value, count in pairs:
            counts[value] += count
    return sorted(counts.items())


def since(pairs: Pairs, before: Pairs) -> Pairs:
    """What was added to `before` to make `pairs`."""
    earlier = dict(before)
    return [(value, count - earlier.get(value, 0)) for value, count in pairs if count > earlier.get(value, 0)]


def percentile(pairs: Pairs, percent: float) -> float | None:
    """Seconds below which `percent` of the values lie, or None where there are none."""
    wanted = math.ceil(total(pairs) * percent / 100)
    seen = 0
    for value, count in pairs:
        seen += count
        if seen >= wanted:
            return value / 1e9
    return None
