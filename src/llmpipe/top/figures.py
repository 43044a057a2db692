"""Numbers as short text, for columns of a terminal. What is unknown is "-", never 0. Nothing here fails on what it is given."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

UNKNOWN = "-"

BARS = "▁▂▃▄▅▆▇█"

_WIDE = ("W", "F")

# Below which a duration has which factor, unit and digits.
_DURATIONS = (
    (5e-7, 0, "s", 0),
    (9.995e-4, 1e6, "us", 0),
    (9.95e-3, 1e3, "ms", 1),
    (0.9995, 1e3, "ms", 0),
    (9.95, 1, "s", 1),
    (59.5, 1, "s", 0),
)


def number(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e18 else None


def duration(seconds: Any) -> str:
    """At most 6 characters: 812us, 4.2ms, 210ms, 1.2s, 45s, 2m05s, 3h02m, 12d03h."""
    value = number(seconds)
    if value is None:
        return UNKNOWN
    value = max(0.0, value)
    for limit, factor, unit, digits in _DURATIONS:
        if value < limit:
            return f"{value * factor:.{digits}f}{unit}"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def age(seconds: Any) -> str:
    """The same in whole seconds, for what grows all the time."""
    value = number(seconds)
    if value is None:
        return UNKNOWN
    return f"{max(0, int(value))}s" if value < 60 else duration(int(value))


def rate(value: Any) -> str:
    """At most 5 characters: 0, 0.3, 12.4, 512, 8.1k, 310k, 1.2M."""
    found = number(value)
    if found is None:
        return UNKNOWN
    found = max(0.0, found)
    if found < 0.005:
        return "0"
    if found < 0.095:
        return f"{found:.2f}"
    if found < 99.95:
        return f"{found:.1f}"
    return _scaled(found, 1000, ("", "k", "M", "G", "T"))


def count(value: Any) -> str:
    """At most 5 characters: 12, 9999, 10.4k, 1.2M."""
    found = number(value)
    if found is None:
        return UNKNOWN
    return f"{found:.0f}" if found < 10_000 else _scaled(found, 1000, ("", "k", "M", "G", "T"))


def size(value: Any) -> str:
    """Bytes, at most 6 characters: 812B, 1.4KB, 310KB, 2.5MB."""
    found = number(value)
    if found is None:
        return UNKNOWN
    return _scaled(found, 1024, ("B", "KB", "MB", "GB", "TB"))


def _scaled(value: float, base: int, units: Sequence[str]) -> str:
    for unit in units[:-1]:
        if value < base - 0.5:
            return f"{value:.0f}{unit}" if value >= 9.95 or unit == units[0] else f"{value:.1f}{unit}"
        value /= base
    return f"{value:.0f}{units[-1]}"


def clean(value: Any) -> str:
    """Text without what a terminal would obey: clients choose names of models and request ids."""
    if value is None or value == "":
        return UNKNOWN
    text = value if isinstance(value, str) else str(value)
    return text if text.isascii() and text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def cells(text: str) -> int:
    """Columns of a terminal that a text takes."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in _WIDE else 1 for c in text)


def cut(text: str, width: int, *, middle: bool = False) -> str:
    """Text in at most so many columns; what was left out is "…", at the end or in the middle."""
    if cells(text) <= width:
        return text
    if width <= 1:
        return "…"[:width]
    tail = (width - 1) * 3 // 5 if middle else 0
    end = _last(text, tail) if tail else ""
    return _first(text, width - 1 - cells(end)) + "…" + end


def _first(text: str, width: int) -> str:
    kept = text[:width]
    while cells(kept) > width:
        kept = kept[:-1]
    return kept


def _last(text: str, width: int) -> str:
    kept = text[-width:]
    while cells(kept) > width:
        kept = kept[1:]
    return kept


def pad(text: str, width: int, align: str = "<") -> str:
    """Text in exactly so many columns."""
    text = cut(text, width)
    space = " " * (width - cells(text))
    return space + text if align == ">" else text + space


def sparkline(values: Sequence[Any], width: int) -> str:
    """The last values as bars from 0 to the greatest of them, right-aligned. What is unknown is a space."""
    known = [number(value) for value in values[-width:]] if width > 0 else []
    most = max((value for value in known if value is not None), default=0.0)
    bars = []
    for value in known:
        if value is None:
            bars.append(" ")
        else:
            step = round(value / most * (len(BARS) - 1)) if most > 0 else 0
            bars.append(BARS[min(max(step, 0), len(BARS) - 1)])
    return "".join(bars).rjust(max(width, 0))


def parse_time(value: Any) -> datetime | None:
    """A time of the proxy (ISO 8601); None for anything else."""
    if not isinstance(value, str):
        return None
    try:
        parsed = datetime.fromisoformat(value.replace("Z", "+00:00"))  # Python 3.10 knows no Z
    except ValueError:
        return None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=timezone.utc)


def clock(value: Any) -> str:
    """Hour, minute and second of a time of the proxy, in UTC as in its log."""
    parsed = parse_time(value)
    return UNKNOWN if parsed is None else parsed.astimezone(timezone.utc).strftime("%H:%M:%S")
