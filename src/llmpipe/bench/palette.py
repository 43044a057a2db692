"""Each target's colour and line, the same in all plots of a page.

Colours are variables of the style sheet, so that light and dark are its affair. They can be told apart with the common kinds of
colour blindness; thickness and dashes help.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass

KNOWN = {
    "llmpipe": ("#d5450b", "#ff8245"),
    "direct": ("#8a8f98", "#8d949e"),
    "floor": ("#16181d", "#d9dce2"),
    "nginx": ("#00875f", "#3ecf9f"),
    "haproxy": ("#0067a8", "#52acf0"),
    "envoy": ("#b0479f", "#e391d3"),
}
"""Names that have the same colours in all reports: in light, in dark."""

OTHERS = (
    ("#b98900", "#e8c12f"),
    ("#4a3db0", "#aaa0fa"),
    ("#45a5d9", "#9adcff"),
    ("#86204f", "#e56f9d"),
    ("#6f7416", "#c3c860"),
    ("#7a4a2c", "#cb9d7b"),
    ("#247c83", "#6fd3da"),
)

KNOWN_DASHES = {"direct": "dot", "floor": "dash"}
OTHER_DASHES = ("solid", "dashdot", "longdash")
"""For the first target that has a colour of OTHERS, the second, the third."""

PATTERNS = {"solid": "none", "dot": "2 3", "dash": "7 4", "dashdot": "7 3 2 3", "longdash": "11 4"}
"""Plotly's names of dashes, as SVG writes them."""


@dataclass(frozen=True)
class Line:
    """How a target is drawn."""

    place: int
    """Of the target in all plots."""
    light: str
    dark: str
    dash: str
    width: float

    @property
    def variable(self) -> str:
        """The name of the colour in the style sheet."""
        return f"--t{self.place}"

    @property
    def colour(self) -> str:
        """The colour as a style sheet uses it."""
        return f"var({self.variable})"

    @property
    def pattern(self) -> str:
        """The dash as SVG writes it."""
        return PATTERNS[self.dash]


def palette(names: Iterable[str]) -> dict[str, Line]:
    """The line of each target."""
    lines: dict[str, Line] = {}
    taken: list[int] = []
    for place, name in enumerate(dict.fromkeys(names)):
        if name in KNOWN:
            colours, dash = KNOWN[name], KNOWN_DASHES.get(name, "solid")
        else:
            # From the name, so that it mostly is the same in another report too; the next one that is free.
            first = zlib.crc32(name.encode())
            chosen = min(((first + step) % len(OTHERS) for step in range(len(OTHERS))), key=taken.count)
            colours, dash = OTHERS[chosen], OTHER_DASHES[taken.count(chosen) % len(OTHER_DASHES)]
            taken.append(chosen)
        lines[name] = Line(place, *colours, dash, 3.2 if name == "llmpipe" else 2)
    return lines
