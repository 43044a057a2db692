"""The plots of a page: percentile curves, figures over time, bars.

What they have in common is a template of plotly's, which the page carries once. Colours are variables of the style sheet, which
page.js looks up when it draws. By hand are only: curves of percentiles, which plotly cannot read from a histogram; ticks and
texts of times, so that they are written as in the tables (plotly writes "500m" and "20µ"); a bar's value, which plotly would put
over the error bar.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from plotly import graph_objects as go  # type: ignore[import-untyped,import-not-found,unused-ignore]  # it has no types
from plotly import io as pio  # type: ignore[import-untyped,import-not-found,unused-ignore]

from llmpipe.bench.figures import quantity, scale, spread
from llmpipe.bench.palette import Line

Json = dict[str, Any]

_AXIS = {
    "title": {"standoff": 10, "font": {"size": 13, "color": "var(--soft)"}},
    "gridcolor": "var(--grid)",
    "showline": True,
    "linecolor": "var(--line)",
    "zeroline": False,
    "automargin": True,
    "showspikes": False,
}

pio.templates["llmpipe"] = go.layout.Template(
    layout={
        "margin": {"l": 12, "r": 16, "t": 16, "b": 12},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {
            "family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif",
            "size": 13,
            "color": "var(--ink)",
        },
        "hoverlabel": {"bgcolor": "var(--card)", "bordercolor": "var(--line)", "font": {"color": "var(--ink)"}},
        "showlegend": False,  # one legend is for several plots; it is the page's
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "bargap": 0.3,
        "annotationdefaults": {"showarrow": False, "font": {"size": 12}},
        "shapedefaults": {"line": {"color": "var(--line)", "width": 1}},
    },
    data={
        "scatter": [{"mode": "lines", "hovertemplate": "%{text}"}],
        "bar": [
            {
                "error_x": {"color": "var(--ink)", "thickness": 1.2, "width": 4},
                "textposition": "none",
                "hovertemplate": "%{text}<extra></extra>",
            }
        ],
    },
)


@dataclass(frozen=True)
class Plot:
    """A place on the page that the script draws in."""

    number: int
    height: int
    label: str


class Plots:
    """All plots of a page."""

    def __init__(self, lines: Mapping[str, Line]) -> None:
        self._lines = lines
        self._figures: list[Json] = []

    def data(self) -> Json:
        """For the script: the figures, and the template of all of them."""
        return {"template": pio.templates["llmpipe"].to_plotly_json(), "figures": self._figures}

    def _add(self, traces: Sequence[Any], layout: Json, height: int, label: str) -> Plot:
        # plotly checks it here: a wrong name is an error now, and no empty plot later.
        figure = go.Figure(traces, {**layout, "height": height, "template": "llmpipe"}).to_plotly_json()
        del figure["layout"]["template"]
        self._figures.append(figure)
        return Plot(len(self._figures) - 1, height, label)

    def _line(self, name: str, xs: list[float], ys: list[Any], texts: list[str], thinner: float = 1) -> Any:
        line = self._lines[name]
        return go.Scatter(
            name=escape(name),  # plotly reads a little HTML in all its texts
            meta=line.place,
            x=xs,
            y=ys,
            text=texts,
            line={"color": line.colour, "width": line.width * thinner, "dash": line.dash},
        )

    def percentiles(self, targets: Sequence[Json], kind: str, label: str) -> Plot | None:
        """The percentile curves of one kind of time; None if nothing was counted."""
        traces = []
        starts = []
        for target in targets:
            xs, ys = _curve(target.get("histograms", {}).get(kind, {}).get("buckets", []))
            if xs:
                starts.append(next((y for x, y in zip(xs, ys, strict=True) if x >= 1.25), ys[-1]))
                texts = [f"{quantity(y, 's')} ({_percent(x)})" for x, y in zip(xs, ys, strict=True)]
                texts[-1] = f"{quantity(ys[-1], 's')} (largest)"
                traces.append(self._line(target["name"], xs, ys, texts))
        if not traces:
            return None
        end = max(trace.x[-1] for trace in traces)
        marks = [2.0] + [10.0**power for power in range(1, 10) if 10.0**power <= end]
        x_axis = {
            "title": {"text": "percentile"},
            "type": "log",
            "range": [0, _rounded(math.log10(max(end, 10)) * 1.02)],
            "tickvals": marks,
            "ticktext": [_percent(mark)[1:] + "%" for mark in marks],
            "tickangle": 0,
            "unifiedhovertitle": {"text": "1 in %{x:.4~g} is slower"},
        }
        # The fastest few may be far below all else (of a jitter above all): the axis need not begin there.
        y_axis = _seconds_axis([y for trace in traces for y in trace.y], low=min(starts) / 2)
        return self._add(traces, {"xaxis": x_axis, "yaxis": y_axis, "hovermode": "x unified"}, 400, label)

    def over_time(self, workload: Json, statistic: str, label: str) -> Plot | None:
        """One percentile over time, the rounds behind one another; None if there is no such series."""
        series = {
            target["name"]: sorted(
                (point for point in target.get("series", []) if point.get(statistic, 0) > 0),
                key=lambda point: (point["round"], point["at"]),
            )
            for target in workload["targets"]
        }
        points = [point for found in series.values() for point in found]
        if not points:
            return None
        length = max(workload["duration"], *(point["at"] for point in points))
        rounds = sorted({int(point["round"]) for point in points})
        traces = [self._time_line(name, found, statistic, length) for name, found in series.items() if found]
        layout = {
            "xaxis": {
                "title": {"text": "seconds, the rounds behind one another" if len(rounds) > 1 else "seconds"},
                "range": [0, _rounded((rounds[-1] + 1) * length)],
                "showgrid": False,
                "hoverformat": ".2f",
                "unifiedhovertitle": {"text": "%{x:.2f} s"},
            },
            "yaxis": _seconds_axis([point[statistic] for point in points]),
            "hovermode": "x unified",
        }
        if len(rounds) > 1:
            layout |= _round_marks(rounds, length)
        return self._add(traces, layout, 280, label)

    def _time_line(self, name: str, points: Sequence[Json], statistic: str, length: float) -> Any:
        xs: list[float] = []
        ys: list[float | None] = []
        texts: list[str] = []
        for before, point in zip([None, *points], points, strict=False):
            at = round(point["round"] * length + point["at"], 3)
            if before is not None and before["round"] != point["round"]:  # a gap: between them others were measured
                xs.append(at)
                ys.append(None)
                texts.append("")
            xs.append(at)
            ys.append(_rounded(point[statistic]))
            texts.append(quantity(point[statistic], "s"))
        return self._line(name, xs, ys, texts, thinner=0.75)

    def bars(self, targets: Sequence[Json], figure: str, label: str) -> Plot:
        """One figure of all targets that have it, with the least and the greatest of its rounds."""
        rows = [(target["name"], target["figures"][figure]) for target in targets if figure in target["figures"]]
        top = max(row["max"] for _, row in rows)
        divisor, shown = scale(top, rows[0][1]["unit"])
        trace = go.Bar(
            orientation="h",
            x=[_rounded(row["median"] / divisor) for _, row in rows],
            y=list(range(len(rows))),  # places and not names: two may be shortened to the same
            width=0.66,
            marker={"color": [self._lines[name].colour for name, _ in rows]},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [_rounded((row["max"] - row["median"]) / divisor) for _, row in rows],
                "arrayminus": [_rounded((row["median"] - row["min"]) / divisor) for _, row in rows],
            },
            text=[f"{escape(name)}: {spread(row)}" for name, row in rows],
        )
        values = [
            {
                "x": _rounded(row["max"] / divisor),  # beyond the error bar
                "xanchor": "left",
                "xshift": 8,
                "y": place,
                "text": quantity(row["median"], row["unit"]),
            }
            for place, (_, row) in enumerate(rows)
        ]
        layout = {
            "xaxis": {
                "title": {"text": "per second" if shown == "/s" else shown.strip()},
                "range": [0, _rounded(top / divisor * 1.6) or 1],
                "nticks": 5,
            },
            "yaxis": {
                "tickvals": list(range(len(rows))),
                "ticktext": [escape(name if len(name) < 17 else name[:15] + "\u2026") for name, _ in rows],
                "range": [len(rows) - 0.45, -0.55],
                "showgrid": False,
                "fixedrange": True,
            },
            "annotations": values,
        }
        return self._add([trace], layout, 84 + 31 * len(rows), label)


def _rounded(value: float) -> float:
    """Five digits: a plot shows no more, and the page stays small."""
    return float(f"{value:.5g}")


def _seconds_axis(values: Sequence[float], low: float = 0) -> Json:
    """A logarithmic axis of seconds that shows these values; it may begin at `low` though there are lower ones."""
    bottom, top = max(min(values), low) / 1.12, max(values) * 1.12
    if top / bottom < 2.2:  # not a range in which noise looks like mountains
        middle = math.sqrt(bottom * top)
        bottom, top = middle / 1.5, middle * 1.5
    ticks = _ticks(bottom, top)
    return {
        "type": "log",
        "range": [_rounded(math.log10(bottom)), _rounded(math.log10(top))],
        "tickvals": ticks,
        "ticktext": [quantity(tick, "s") for tick in ticks],
    }


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between the two: enough, and not more than needed."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        ticks = [_rounded(step * 10.0**power) for power in powers for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 4:
            break
    return ticks


def _percentile_grid(total: int) -> list[float]:
    """Where a curve has points, as 1/(1-p): evenly on the logarithmic axis, and at the percentiles that have names."""
    end = math.log10(total)
    grid = {10 ** (step / 20) for step in range(int(end * 20) + 1)} | {2.0, 4.0, 20.0, 200.0, 2000.0}
    return [*sorted(_rounded(x) for x in grid if x < total * 0.999), float(total)]


def _curve(buckets: Sequence[Sequence[int]]) -> tuple[list[float], list[float]]:
    """A histogram as its percentiles: 1/(1-p) and seconds. The last point is the largest value."""
    total = sum(count for _, count in buckets)
    if not total:
        return [], []
    xs: list[float] = []
    ys: list[float] = []
    below, place = 0, -1
    for x in _percentile_grid(total):
        wanted = max(1, math.ceil(total * (1 - 1 / x) - 1e-9)) if x < total else total
        while below < wanted:
            place += 1
            below += buckets[place][1]
        if buckets[place][0] > 0:  # a logarithmic axis has no place for zero
            xs.append(x)
            ys.append(_rounded(buckets[place][0] / 1e9))
    return xs, ys


def _percent(x: float) -> str:
    """1/(1-p) as p: 100 is p99, 1000 is p99.9."""
    decimals = max(0, math.ceil(math.log10(x)) - 1) if x > 1 else 0
    text = f"{100 * (1 - 1 / x):.{decimals}f}"
    return "p" + (text.rstrip("0").rstrip(".") if "." in text else text)


def _round_marks(rounds: Sequence[int], length: float) -> Json:
    """Where each round begins, with its number."""
    lines = [
        {"type": "line", "x0": number * length, "x1": number * length, "yref": "paper", "y0": 0, "y1": 1}
        for number in rounds
        if number
    ]
    names = [
        {
            "x": number * length,
            "xanchor": "left",
            "yref": "paper",
            "y": 1,
            "yanchor": "bottom",
            "text": f"round {number + 1}" if len(rounds) < 5 else str(number + 1),
            "font": {"size": 11, "color": "var(--soft)"},
        }
        for number in rounds
    ]
    return {"shapes": lines, "annotations": names, "margin": {"t": 24}}
