"""Counts of values by bucket, as the engines keep them: sums, differences, quantiles."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

Counts = Mapping[int, int]
"""How many values each bucket has, by its index; a bucket that has none may be left out."""


def total(parts: Iterable[Counts]) -> dict[int, int]:
    """The sum of several."""
    counts: Counter[int] = Counter()
    for part in parts:
        counts.update(part)
    return dict(counts)


def since(counts: Counts, before: Counts) -> dict[int, int]:
    """What was counted after `before` was taken, without empty buckets."""
    if counts == before:  # as of most of thousands of backends, and quickly seen
        return {}
    return {index: more for index, count in counts.items() if (more := count - before.get(index, 0)) > 0}


def quantile(counts: Counts, q: float, edges: Sequence[float]) -> float | None:
    """The least value that is not exceeded by a share `q` of all, as exactly as its bucket tells: the middle of that.

    Args:
        counts: of each bucket.
        q: 0 to 1; the least value for 0, the greatest for 1.
        edges: the lower bound of each bucket, and the end of the last one.

    Returns:
        In the unit of the edges; None where nothing was counted.
    """
    rank = max(1, math.ceil(q * sum(counts.values())))
    seen = 0
    for index in sorted(counts):
        seen += counts[index]
        if seen >= rank:
            return (edges[index] + edges[index + 1]) / 2
    return None
