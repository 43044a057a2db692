"""The result of a benchmark as one HTML page that needs no network: tables, plots and how it was measured.

`render` is the only entry. It decides nothing about the numbers, but which of a column is the best and how it is
written. All text of the report is escaped. The page carries plotly.js once; colours are CSS variables, so that light
and dark are a matter of the style sheet, for the plots as well.
"""

import json
import math
import re
import zlib
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from html import escape
from string import Template
from typing import Any

from plotly import graph_objects as go  # type: ignore[import-untyped,import-not-found,unused-ignore]  # it has no types
from plotly.offline import get_plotlyjs  # type: ignore[import-untyped,import-not-found,unused-ignore]

Json = dict[str, Any]

# Written as escapes: they look like other characters in many editors.
MICRO = "\u00b5"
MINUS = "\u2212"
DASH = "\u2013"
TIMES = "\u00d7"


def render(report: Json) -> str:
    """The whole page. Whatever the report does not have is left out."""
    works: list[Json] = report.get("works") or []
    palette = Palette(target["name"] for work in works for target in work.get("targets") or [])
    figures = Figures()
    sections = "".join(_work(work, number, palette, figures) for number, work in enumerate(works))
    return PAGE.substitute(
        style=STYLE,
        light=palette.css(0),
        dark=palette.css(1),
        header=_header(report, works),
        goals=_goals(report.get("goals") or []),
        contents=_contents(works),
        works=sections or "<p>The report has no works.</p>",
        method=METHOD,
        figures=figures.json(),
        plotly=get_plotlyjs(),
        script=SCRIPT,
    )


# --- Numbers as text ---


def _number(value: Any) -> float | None:
    """A finite number, or None for what is not there."""
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    return None


def _scale(value: float, unit: str) -> tuple[float, str]:
    """What to divide by, and the name of the unit that is left, for a value of this size."""
    size = abs(value)
    if unit == "s":
        steps = [(60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, MICRO + "s"), (1e-9, "ns")]
        if size < 120:
            steps = steps[1:]
        if size < 1e-10:
            return 1e-6, MICRO + "s"  # nothing, or a difference that is none
    elif unit in ("B", "B/s"):
        steps = [(1000.0**power, prefix + unit) for power, prefix in ((4, "T"), (3, "G"), (2, "M"), (1, "K"), (0, ""))]
    elif unit == "1/s":
        steps = [(1e9, "G/s"), (1e6, "M/s"), (1.0, "/s")]
    else:
        steps = [(1.0, unit)]
    for divisor, name in steps:
        if size >= divisor * 0.9995:  # what would be written as 1000 belongs to the next unit
            return divisor, name
    return steps[-1]


def _digits(value: float) -> str:
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
    return text.replace("-", MINUS) if text != "-0" else "0"


def _quantity(value: float, unit: str) -> str:
    """A number with its unit: 34.2 µs, 4.1 KB, 25,000/s."""
    if unit == "s" and abs(value) < 1e-10:
        value = 0.0  # no clock sees less
    divisor, name = _scale(value, unit)
    return _digits(value / divisor) + _joined(name)


def _joined(name: str) -> str:
    return name if name.startswith(("/", "%")) or not name else "\u00a0" + name


def _plain(value: Any) -> str:
    """A scalar of the report that has no unit."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:,.6g}" if abs(value) < 1e6 else f"{value:,.0f}"
    return str(value)


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _rounded(value: float) -> float:
    """Five digits: a plot shows no more, and the page stays small."""
    return float(f"{value:.5g}")


# --- Names of what is measured ---

KINDS = {  # in the order of the plots: the title, and from when to when
    "latency": ("Event latency", "from just before the source sends an event to just after the client received it"),
    "ttft": ("Time to first token", "from the request, or when it was due, to its first event at the client"),
    "close": ("Close", "from the client's close to when the source saw it, whatever the client was waiting for"),
    "close:body": (
        "Close, in the request",
        "from the client's close, half of its request sent, to when the source saw it",
    ),
    "close:wait": (
        "Close, before the answer",
        "from the client's close, nothing answered yet, to when the source saw it",
    ),
    "close:silent": (
        "Close, in a pause",
        "from the client's close, while no more events came, to when the source saw it",
    ),
    "close:stream": ("Close, in a stream", "from the client's close, between two events, to when the source saw it"),
    "close:blocked": (
        "Close, not reading",
        "from the close of a client that had not read for a while to when the source saw it",
    ),
    "jitter": ("Jitter", "how far the gap between two events at the client is from the gap at the source"),
    "itl": ("Gap between events", "from one event of a stream to the next, at the client"),
    "duration": ("Whole answer", "from the request, or when it was due, to the end of its answer"),
    "late": ("Late generator", "how much later than planned the generator itself sent; no target is the cause"),
}
COLUMNS = {  # figures that are no percentiles: the group and the name of the column
    "cpu_per_event": ("Cost", "CPU per event"),
    "cpu_per_request": ("Cost", "CPU per request"),
    "cpu_used": ("Cost", "CPUs used"),
    "memory_per_stream": ("Cost", "memory per stream"),
    "events_per_second": ("Throughput", "events"),
    "requests_per_second": ("Throughput", "requests"),
    "tokens_per_second": ("Throughput", "tokens"),
    "closes_per_second": ("Throughput", "closes"),
    "bytes_per_second": ("Throughput", "bytes"),
}
_STATISTIC = re.compile(r"(?P<kind>\w[\w:]*?)_(?P<statistic>p\d+(?:[._]\d+)?|max|min|mean|median)")


def _kind(kind: str) -> tuple[str, str]:
    """The title and the explanation of a kind of histogram."""
    if kind in KINDS:
        return KINDS[kind]
    if kind.startswith("close:"):
        return f"Close, {kind[6:]}", "from the client's close to when the source saw it"
    return kind.replace("_", " ").replace(":", ", "), ""


def _percentile_name(statistic: str) -> str:
    """p999 is p99.9; other names stay."""
    digits = statistic[1:]
    return f"p{digits[:2]}.{digits[2:]}" if statistic[0] == "p" and digits.isdigit() and len(digits) > 2 else statistic


def _column(name: str) -> tuple[str, str]:
    """The group and the name of a figure's column."""
    if name in COLUMNS:
        return COLUMNS[name]
    match = _STATISTIC.fullmatch(name)
    if match:
        kind = re.sub(r"^close_", "close:", match["kind"])
        return _kind(kind)[0], _percentile_name(match["statistic"])
    return "Other", name.replace("_", " ").replace(":", ", ")


def _columns(targets: Sequence[Json]) -> list[str]:
    """The names of all figures, those of one group beside each other: what most readers look for comes first."""
    names = _shown(list(dict.fromkeys(name for target in targets for name in target.get("figures") or {})))
    closes = [title for kind, (title, _) in KINDS.items() if kind.startswith("close")]
    first = [*closes, KINDS["latency"][0], KINDS["ttft"][0], "Cost", "Throughput"]
    kinds = [title for title, _ in KINDS.values() if title not in first]
    found = dict.fromkeys(_column(name)[0] for name in names)
    order = [*first, *kinds, *(group for group in found if group != "Other"), "Other"]
    return sorted(names, key=lambda name: order.index(_column(name)[0]))


def _shown(names: Sequence[str]) -> list[str]:
    """All figures but percentiles of which there are enough: a table of sixty columns is for machines.

    Of what the work is about there are p50, p99, p99.9 and the largest, of the other times p50 and p99.
    """
    matches = {name: match for name in names if name not in COLUMNS and (match := _STATISTIC.fullmatch(name))}
    kinds = {match["kind"] for match in matches.values()}
    main = next((kind for kind in ("close", "latency", "ttft") if kind in kinds), "")
    shown = []
    for name in names:
        match = matches.get(name)
        wanted = ("p50", "p99", "p99.9", "max") if match and match["kind"] == main else ("p50", "p99")
        if match is None or (match["kind"] != "late" and _percentile_name(match["statistic"]) in wanted):
            shown.append(name)
    return shown


def _more_is_better(unit: str) -> bool:
    return unit.endswith("/s")


# --- Colours ---


class Palette:
    """Each target's colour and line, the same in all plots; known names have the same in all reports.

    The colours can be told apart with the common kinds of colour blindness; thickness and dashes help.
    """

    KNOWN = {  # noqa: RUF012  # light, dark
        "llmpipe": ("#d5450b", "#ff8245"),
        "direct": ("#8a8f98", "#8d949e"),
        "floor": ("#16181d", "#d9dce2"),
        "nginx": ("#00875f", "#3ecf9f"),
        "haproxy": ("#0067a8", "#52acf0"),
        "envoy": ("#b0479f", "#e391d3"),
    }
    OTHERS = (
        ("#b98900", "#e8c12f"),
        ("#4a3db0", "#aaa0fa"),
        ("#45a5d9", "#9adcff"),
        ("#86204f", "#e56f9d"),
        ("#6f7416", "#c3c860"),
        ("#7a4a2c", "#cb9d7b"),
        ("#247c83", "#6fd3da"),
    )
    DASHES = {"direct": "dot", "floor": "dash"}  # noqa: RUF012

    def __init__(self, names: Iterable[str]) -> None:
        self._names = list(dict.fromkeys(names))
        self._colours: list[tuple[str, str]] = []
        self._dashes: list[str] = []
        taken: list[int] = []
        for name in self._names:
            if name in self.KNOWN:
                self._colours.append(self.KNOWN[name])
                self._dashes.append(self.DASHES.get(name, "solid"))
                continue
            # From the name, so that it mostly is the same in another report too; the next one that is free.
            place = zlib.crc32(name.encode())
            free = [(place + step) % len(self.OTHERS) for step in range(len(self.OTHERS))]
            chosen = min(free, key=taken.count)
            taken.append(chosen)
            self._colours.append(self.OTHERS[chosen])
            self._dashes.append(("solid", "dashdot", "longdash")[(taken.count(chosen) - 1) % 3])

    def css(self, scheme: int) -> str:
        """The variables of the light (0) or the dark (1) scheme."""
        return "".join(f"--t{place}:{colours[scheme]};" for place, colours in enumerate(self._colours))

    def place(self, name: str) -> int:
        return self._names.index(name)

    def colour(self, name: str) -> str:
        return f"var(--t{self.place(name)})"

    def line(self, name: str) -> Json:
        """A line of a plot."""
        width = 3.2 if name == "llmpipe" else 2
        return {"color": self.colour(name), "width": width, "dash": self._dashes[self.place(name)]}

    def sample(self, name: str) -> str:
        """A piece of the line for a legend."""
        pattern = {"dot": "2 3", "dash": "7 4", "dashdot": "7 3 2 3", "longdash": "11 4"}
        dashes = pattern.get(self._dashes[self.place(name)], "none")
        return (
            '<svg width="26" height="8" aria-hidden="true"><line x1="0" y1="4" x2="26" y2="4" '
            f'style="stroke:{self.colour(name)};stroke-width:{self.line(name)["width"]};stroke-dasharray:{dashes}"/></svg>'
        )


# --- Plots ---


class Figures:
    """The plots of the page: the places where they go, and what the script draws there."""

    def __init__(self) -> None:
        self._figures: list[Json] = []

    def add(self, figure: Json, height: int, label: str) -> str:
        """Args:
        figure: data and layout; plotly checks it here, so that a wrong name is an error now and no empty plot later.
        """
        layout = {**_layout(height), **figure["layout"], "template": "none"}
        checked = go.Figure(data=figure["data"], layout=layout).to_plotly_json()
        checked["layout"].pop("template", None)
        self._figures.append(checked)
        return (
            f'<div class="plot" data-figure="{len(self._figures) - 1}" style="height:{height}px" role="img" '
            f'aria-label="{escape(label)}"></div>'
        )

    def json(self) -> str:
        """For a script element: nothing in it can end that element."""
        text = json.dumps(self._figures, separators=(",", ":"), allow_nan=False)
        return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _layout(height: int) -> Json:
    return {
        "height": height,
        "margin": {"l": 12, "r": 16, "t": 16, "b": 12},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {
            "family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif",
            "size": 13,
            "color": "var(--ink)",
        },
        "hoverlabel": {"bgcolor": "var(--card)", "bordercolor": "var(--line)", "font": {"color": "var(--ink)"}},
        "showlegend": False,
    }


def _axis(title: str = "", **more: Any) -> Json:
    return {
        "title": {"text": title, "standoff": 10, "font": {"size": 13, "color": "var(--soft)"}},
        "gridcolor": "var(--grid)",
        "linecolor": "var(--line)",
        "zeroline": False,
        "automargin": True,
        **more,
    }


def _seconds_axis(values: Sequence[float], low: float | None = None) -> Json:
    """A logarithmic axis of seconds, with ticks as people write them.

    Args:
        values: what it must show.
        low: where it may begin though there are lower values.
    """
    bottom, top = max(min(values), low or 0) / 1.12, max(values) * 1.12
    if top / bottom < 2.2:  # not a range in which noise looks like mountains
        middle = math.sqrt(bottom * top)
        bottom, top = middle / 1.5, middle * 1.5
    ticks = _ticks(bottom, top)
    return _axis(
        type="log",
        range=[_rounded(math.log10(bottom)), _rounded(math.log10(top))],
        tickvals=ticks,
        ticktext=[_quantity(tick, "s") for tick in ticks],
    )


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
    share = 100 * (1 - 1 / x)
    decimals = max(0, math.ceil(math.log10(x)) - 1) if x > 1 else 0
    text = f"{share:.{decimals}f}"
    return "p" + (text.rstrip("0").rstrip(".") if "." in text else text)


def _percentiles(targets: Sequence[Json], kind: str, palette: Palette) -> Json | None:
    """The percentile curves of one kind of histogram; None if nothing was counted."""
    data: list[Json] = []
    starts: list[float] = []
    for target in targets:
        buckets = ((target.get("histograms") or {}).get(kind) or {}).get("buckets") or []
        xs, ys = _curve([bucket for bucket in buckets if bucket[1] > 0])
        if not xs:
            continue
        starts.append(next((y for x, y in zip(xs, ys, strict=True) if x >= 1.25), ys[-1]))
        texts = [f"{_quantity(y, 's')} ({_percent(x)})" for x, y in zip(xs, ys, strict=True)]
        texts[-1] = f"{_quantity(ys[-1], 's')} (largest)"
        data.append(_line(target["name"], xs, ys, texts, palette))
    if not data:
        return None
    end = max(trace["x"][-1] for trace in data)
    marks = [2.0] + [10.0**power for power in range(1, 10) if 10.0**power <= end]
    x_axis = _axis(
        "percentile",
        type="log",
        range=[0, _rounded(math.log10(max(end, 10)) * 1.02)],
        tickvals=marks,
        ticktext=[_percent(mark)[1:] + "%" for mark in marks],
        tickangle=0,
        unifiedhovertitle={"text": "1 in %{x:.4~g} is slower"},
        showspikes=False,
    )
    # The fastest few may be far below all else (of a jitter above all): the axis need not begin there.
    y_axis = _seconds_axis([y for trace in data for y in trace["y"]], low=min(starts) / 2)
    return {"data": data, "layout": {"xaxis": x_axis, "yaxis": y_axis, "hovermode": "x unified"}}


def _line(name: str, xs: list[float], ys: list[Any], texts: list[str], palette: Palette) -> Json:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": escape(name),  # plotly reads a little HTML in all its texts
        "meta": palette.place(name),
        "x": xs,
        "y": ys,
        "text": texts,
        "line": palette.line(name),
        "hovertemplate": "%{text}",
    }


def _over_time(work: Json, statistic: str, palette: Palette) -> Json | None:
    """One percentile over time, the rounds behind one another; None if there is no such series."""
    points = [
        (target["name"], point)
        for target in work["targets"]
        for point in target.get("series") or []
        if (_number(point.get(statistic)) or 0) > 0
    ]
    if not points:
        return None
    length = max([_number(work.get("duration")) or 0, *(point["at"] for _, point in points)])
    rounds = sorted({int(point["round"]) for _, point in points})
    data = []
    for name in dict.fromkeys(name for name, _ in points):
        mine = sorted((point for other, point in points if other == name), key=lambda p: (p["round"], p["at"]))
        data.append(_time_line(name, mine, statistic, length, palette))
    y_axis = _seconds_axis([point[statistic] for _, point in points])
    x_axis = _axis(
        "seconds, the rounds behind one another" if len(rounds) > 1 else "seconds",
        range=[0, _rounded((rounds[-1] + 1) * length)],
        showgrid=False,
        hoverformat=".2f",
        unifiedhovertitle={"text": "%{x:.2f} s"},
        showspikes=False,
    )
    marks = _round_marks(rounds, length) if len(rounds) > 1 else {}
    return {"data": data, "layout": {"xaxis": x_axis, "yaxis": y_axis, "hovermode": "x unified", **marks}}


def _time_line(name: str, points: Sequence[Json], statistic: str, length: float, palette: Palette) -> Json:
    xs: list[float] = []
    ys: list[float | None] = []
    texts: list[str] = []
    for before, point in zip([None, *points], points, strict=False):
        at = point["round"] * length + point["at"]
        if before is not None and before["round"] != point["round"]:  # a gap: between them others were measured
            xs.append(_rounded(at))
            ys.append(None)
            texts.append("")
        xs.append(round(at, 3))
        ys.append(_rounded(point[statistic]))
        texts.append(_quantity(point[statistic], "s"))
    trace = _line(name, xs, ys, texts, palette)
    trace["line"]["width"] *= 0.75
    return trace


def _round_marks(rounds: Sequence[int], length: float) -> Json:
    """Where each round begins, with its number."""
    lines = [
        {
            "type": "line",
            "x0": number * length,
            "x1": number * length,
            "yref": "paper",
            "y0": 0,
            "y1": 1,
            "line": {"color": "var(--line)", "width": 1},
        }
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
            "showarrow": False,
            "font": {"size": 11, "color": "var(--soft)"},
        }
        for number in rounds
    ]
    return {"shapes": lines, "annotations": names, "margin": {"l": 12, "r": 16, "t": 24, "b": 12}}


def _bars(targets: Sequence[Json], figure: str, palette: Palette) -> Json:
    """One figure of all targets that have it, with the least and the most of its rounds."""
    rows = [(target["name"], target["figures"][figure]) for target in targets if _median(target, figure) is not None]
    unit = rows[0][1].get("unit", "")
    top = max(_range(row)[1] for _, row in rows)
    divisor, shown = _scale(top, unit)
    names = [escape(name) if len(name) < 17 else escape(name[:15]) + "\u2026" for name, _ in rows]
    values = [row["median"] / divisor for _, row in rows]
    high = [max(0, _range(row)[1] / divisor - value) for (_, row), value in zip(rows, values, strict=True)]
    low = [max(0, value - _range(row)[0] / divisor) for (_, row), value in zip(rows, values, strict=True)]
    trace = {
        "type": "bar",
        "orientation": "h",
        "x": [_rounded(value) for value in values],
        "y": list(range(len(rows))),  # places and not names: two may be shortened to the same
        "marker": {"color": [palette.colour(name) for name, _ in rows]},
        "width": 0.66,
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [_rounded(value) for value in high],
            "arrayminus": [_rounded(value) for value in low],
            "color": "var(--ink)",
            "thickness": 1.2,
            "width": 4,
        },
        "text": [f"{escape(name)}: {_spread(row)}" for name, row in rows],
        "textposition": "none",
        "hovertemplate": "%{text}<extra></extra>",
    }
    # The value beside its bar, beyond the error bar.
    texts = [
        {
            "x": _rounded(value + more),
            "y": place,
            "text": _quantity(row["median"], unit),
            "xanchor": "left",
            "xshift": 8,
            "showarrow": False,
            "font": {"size": 12},
        }
        for place, ((_, row), value, more) in enumerate(zip(rows, values, high, strict=True))
    ]
    x_axis = _axis(
        shown.lstrip("/") if shown != "/s" else "per second", range=[0, _rounded(top / divisor * 1.6) or 1], nticks=5
    )
    y_axis = _axis(
        tickvals=list(range(len(rows))),
        ticktext=names,
        range=[len(rows) - 0.45, -0.55],
        showgrid=False,
        fixedrange=True,
    )
    return {"data": [trace], "layout": {"xaxis": x_axis, "yaxis": y_axis, "annotations": texts, "bargap": 0.3}}


def _spread(row: Json) -> str:
    """The median and the range of the rounds, in words."""
    median, low, high = (_quantity(value, row.get("unit", "")) for value in (row["median"], *_range(row)))
    return median if low == high else f"{median} ({low} to {high})"


# --- The top of the page ---


def _header(report: Json, works: Sequence[Json]) -> str:
    parts = ["<h1>LLM token streams through proxies: a benchmark</h1>"]
    when = _when(report.get("made"))
    parts.append(f'<p class="lead">{when + ". " if when else ""}{_summary(report, works)}</p>')
    if report.get("complete") is False:
        parts.append(
            '<p class="note bad"><strong>Interrupted.</strong> The run was stopped before its end: works, targets or '
            "rounds are missing here, and what is shown may be of fewer rounds than planned.</p>"
        )
    parts.append(_machine(report))
    return "".join(parts)


def _when(made: Any) -> str:
    if not isinstance(made, str):
        return ""
    try:
        moment = datetime.fromisoformat(made.replace("Z", "+00:00"))
    except ValueError:
        return escape(made)
    if moment.tzinfo:
        moment = moment.astimezone(timezone.utc)
    zone = " UTC" if moment.tzinfo else ""
    return f'<time datetime="{escape(made)}">{moment.day} {moment:%B %Y, %H:%M}{zone}</time>'


def _summary(report: Json, works: Sequence[Json]) -> str:
    names = {target["name"] for work in works for target in work.get("targets") or []}
    parts = [_count(len(works), "work"), _count(len(names), "target")]
    rounds = sorted({int(work["rounds"]) for work in works if work.get("rounds")})
    if rounds:
        way = "planned" if report.get("complete") is False else "each"
        between = str(rounds[0]) if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}"
        parts.append(f"{between} {'round' if rounds == [1] else 'rounds'} {way}")
    goals = report.get("goals") or []
    if goals:
        parts.append(f"{sum(goal.get('met') is True for goal in goals)} of {_count(len(goals), 'goal')} met")
    warned = sum(bool(_warnings(work.get("targets") or [])) for work in works)
    parts.append(f"warnings in {_count(warned, 'work')}" if warned else "no warnings")
    return ", ".join(parts) + "."


def _machine(report: Json) -> str:
    machine: Json = report.get("machine") or {}
    versions: Json = report.get("versions") or {}
    facts = [("CPU", machine.get("cpu")), ("Cores", machine.get("cores"))]
    memory = _number(machine.get("memory_bytes"))
    facts.append(("Memory", None if memory is None else _quantity(memory, "B")))
    facts += [
        ("Kernel", machine.get("kernel")),
        ("TCP", machine.get("congestion_control")),
        ("Python", machine.get("python")),
    ]
    if "load_cpu" in machine:
        pinned = machine["load_cpu"]
        facts.append(("Load generator", "on any CPU" if pinned is None else f"on CPU {_plain(pinned)} alone"))
    facts += list(versions.items())
    rows = "".join(
        f"<div><dt>{escape(str(name))}</dt><dd>{escape(_plain(value))}</dd></div>"
        for name, value in facts
        if value is not None
    )
    command = report.get("command")
    shown = f"<p>Made by</p><pre><code>{escape(str(command))}</code></pre>" if command else ""
    return (f'<dl class="facts">{rows}</dl>' if rows else "") + shown


def _goals(goals: Sequence[Json]) -> str:
    if not goals:
        return ""
    rows = "".join(
        f"<tr><td>{_met(goal.get('met'))}</td>"
        f'<th scope="row">{escape(str(goal.get("text", "")))}</th>'
        f'<td class="n">{escape(_plain(goal.get("measured")))}</td>'
        f"<td>{escape(str(goal.get('work', '')))}</td></tr>"
        for goal in goals
    )
    head = '<tr><th scope="col">Result</th><th scope="col">Goal</th><th scope="col" class="n">Measured</th><th scope="col">Work</th></tr>'
    return f"<h2>Goals</h2>{_table(head, rows, 'goals', 'Goals and whether they are met')}"


def _met(met: bool | None) -> str:
    if met is None:
        return '<span class="mark">not measured</span>'
    kind, text = ("good", "&#10003;&nbsp;met") if met else ("bad", "&#10007;&nbsp;missed")
    return f'<span class="mark {kind}">{text}</span>'


def _contents(works: Sequence[Json]) -> str:
    if len(works) < 3:
        return ""
    items = "".join(f'<li><a href="#work-{number}">{_title(work)}</a></li>' for number, work in enumerate(works))
    return f'<nav aria-label="Contents"><h2>Works</h2><ol>{items}</ol><p><a href="#method">Method</a></p></nav>'


def _title(work: Json) -> str:
    """The title, with a real multiplication sign."""
    text = str(work.get("title") or work.get("name") or "A work")
    return escape(re.sub(r"(?<=\s)x(?=\s)", TIMES, text))


def _table(head: str, rows: str, kind: str, label: str) -> str:
    """A table that scrolls in its own box, also by keyboard, so that the page never gets wider than the screen."""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">'
        f'<table class="{kind}"><thead>{head}</thead><tbody>{rows}</tbody></table></div>'
    )


# --- One work ---


def _work(work: Json, number: int, palette: Palette, figures: Figures) -> str:
    targets: list[Json] = work.get("targets") or []
    work = {**work, "targets": targets}
    parts = [
        f'<section class="work" id="work-{number}" aria-labelledby="title-{number}">',
        f'<h2 id="title-{number}">{_title(work)}</h2>',
        _plan(work),
    ]
    if targets:
        parts += [_figures_table(work), _health(targets), _warning_list(targets), _about(targets)]
        parts += [_plots(work, number, palette, figures)]
    else:
        parts.append("<p>Nothing was measured.</p>")
    return "".join(parts) + "</section>"


def _plan(work: Json) -> str:
    facts = [("name", work.get("name")), ("shape", work.get("shape"))]
    facts += [(key.replace("_", " "), _plan_value(key, value)) for key, value in (work.get("plan") or {}).items()]
    facts.append(("rounds", work.get("rounds")))
    for key, name in (("settle", "settles"), ("duration", "measures")):
        seconds = _number(work.get(key))
        facts.append((name, None if seconds is None else _quantity(seconds, "s")))
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(_plain(value))}</dd></div>"
        for name, value in facts
        if value is not None
    )
    return f'<dl class="plan">{items}</dl>'


def _plan_value(key: str, value: Any) -> Any:
    if key.endswith(("_size", "_bytes")) and _number(value) is not None and not isinstance(value, bool):
        return _quantity(value, "B")
    return value


def _median(target: Json, figure: str) -> float | None:
    return _number(((target.get("figures") or {}).get(figure) or {}).get("median"))


def _is_proxy(target: Json) -> bool:
    """Whether it takes part in the comparison: the source itself and the least that a proxy can do do not."""
    return target.get("kind") != "direct" and target["name"] not in ("direct", "floor")


def _best(targets: Sequence[Json], figure: str) -> set[str]:
    """The proxies with the best value; none if there is nothing to choose from.

    Those whose rounds overlap with those of the best are as good: to name one of them would be to name chance.
    """
    rows = {
        target["name"]: target["figures"][figure]
        for target in targets
        if _is_proxy(target) and _median(target, figure) is not None
    }
    if len(rows) < 2 or figure == "cpu_used":  # a proxy that forwards more may use more
        return set()
    better = max if _more_is_better(next(iter(rows.values())).get("unit", "")) else min
    low, high = _range(rows[better(rows, key=lambda name: rows[name]["median"])])
    best = {name for name, row in rows.items() if _range(row)[0] <= high and _range(row)[1] >= low}
    return best if len(best) < len(rows) else set()


def _range(figure: Json) -> tuple[float, float]:
    """The least and the most of the rounds; the median if they are not there."""
    low, high = _number(figure.get("min")), _number(figure.get("max"))
    return figure["median"] if low is None else low, figure["median"] if high is None else high


def _figures_table(work: Json) -> str:
    targets = work["targets"]
    columns = _columns(targets)
    if not columns:
        return "<p>There are no figures.</p>"
    groups: list[list[Any]] = []
    for name in columns:
        group = _column(name)[0]
        if groups and groups[-1][0] == group:
            groups[-1][1] += 1
        else:
            groups.append([group, 1])
    first = "".join(f'<th scope="colgroup" colspan="{span}" class="g">{escape(group)}</th>' for group, span in groups)
    starts = _group_starts(columns)
    second = "".join(
        f'<th scope="col" class="n{" g" if name in starts else ""}">{escape(_column(name)[1])}</th>' for name in columns
    )
    head = f'<tr><th scope="col" rowspan="2">Target</th>{first}</tr><tr>{second}</tr>'
    best = {name: _best(targets, name) for name in columns}
    rows = "".join(_figures_row(work, target, columns, best) for target in targets)
    return _table(head, rows, "figures", "Figures of each target") + _reading(targets, best)


def _group_starts(columns: Sequence[str]) -> set[str]:
    return {
        name
        for before, name in zip(["", *columns], columns, strict=False)
        if not before or _column(before)[0] != _column(name)[0]
    }


def _reading(targets: Sequence[Json], best: dict[str, set[str]]) -> str:
    """How to read the table: only what is in it."""
    words = ["Medians over the rounds; beneath them the least and the most."]
    if any(target.get("added") for target in targets):
        words.append("Last, with a sign: what it adds to the same load without a proxy.")
    if any(_STATISTIC.fullmatch(name) for name in best):
        words.append("More percentiles are in the plots.")
    if any(best.values()):
        words.append(
            "<strong>Bold</strong>: the best of the proxies, and those whose rounds overlap with its rounds; "
            "direct and floor do not take part."
        )
    return f'<p class="reading">{" ".join(words)}</p>'


def _figures_row(work: Json, target: Json, columns: Sequence[str], best: dict[str, set[str]]) -> str:
    name = target["name"]
    starts = _group_starts(columns)
    cells = "".join(
        f'<td class="n{" g" if column in starts else ""}">{_cell(target, column, best=name in best[column])}</td>'
        for column in columns
    )
    done, planned = len(target.get("rounds") or []), work.get("rounds")
    missing = ""
    if isinstance(planned, int) and done < planned:
        missing = f'<span class="s flag">{done} of {_count(planned, "round")}</span>'
    ours = ' class="ours"' if name == "llmpipe" else ""
    return f'<tr{ours}><th scope="row">{escape(name)}{missing}</th>{cells}</tr>'


def _cell(target: Json, column: str, *, best: bool) -> str:
    value = _median(target, column)
    if value is None:
        return DASH
    figure = target["figures"][column]
    unit = figure.get("unit", "")
    divisor, _ = _scale(value, unit)
    text = escape(_quantity(value, unit))
    parts = [f"<strong>{text}</strong>" if best else text]
    low, high = _number(figure.get("min")), _number(figure.get("max"))
    if low is not None and high is not None and low != high:
        parts.append(f'<span class="s">{_digits(low / divisor)}{DASH}{_digits(high / divisor)}</span>')
    added = _number((target.get("added") or {}).get(column))
    if added is not None:
        parts.append(f'<span class="s">{"+" if added >= 0 else ""}{escape(_quantity(added, unit))}</span>')
    return "".join(parts)


FIDELITY = {  # the names of the columns, and the share of the events above which it is marked as a fault
    "events": ("events", 1.0),
    "alone": ("alone", 1.0),
    "merged": ("merged", 0.001),
    "split": ("split", 0.001),
    "altered": ("altered", 0.0),
    "out_of_order": ("out of order", 0.0),
}


def _sums(target: Json, what: str) -> Json:
    """The counts of all rounds together."""
    sums: Json = {}
    for each in target.get("rounds") or []:
        for key, value in (each.get(what) or {}).items():
            number = _number(value)
            if number is not None:
                sums[key] = sums.get(key, 0) + int(number)
    return sums


def _health(targets: Sequence[Json]) -> str:
    """Errors, and whether the events came as they were sent."""
    fidelity = {target["name"]: _sums(target, "fidelity") for target in targets}
    errors = {target["name"]: {k: n for k, n in _sums(target, "errors").items() if n} for target in targets}
    measured = {target["name"] for target in targets if target.get("rounds")}
    known = [key for key in FIDELITY if any(key in sums for sums in fidelity.values())]
    others = dict.fromkeys(key for sums in fidelity.values() for key in sums if key not in FIDELITY)
    columns = [*known, *others]
    if not measured:
        return ""
    if not columns and not any(errors.values()):
        return "<h3>Errors</h3><p>None.</p>"
    head = "".join(
        f'<th scope="col" class="n">{escape(FIDELITY.get(key, (key.replace("_", " "), 1.0))[0])}</th>'
        for key in columns
    )
    rows = "".join(
        f'<tr{" class=ours" if name == "llmpipe" else ""}><th scope="row">{escape(name)}</th>{_errors_cell(errors[name], measured=name in measured)}'
        + "".join(_fidelity_cell(sums, key) for key in columns)
        + "</tr>"
        for name, sums in fidelity.items()
    )
    title = "Errors and fidelity" if columns else "Errors"
    table = _table(f'<tr><th scope="col">Target</th><th scope="col">errors</th>{head}</tr>', rows, "health", title)
    return f"<h3>{title}</h3>{table}"


def _errors_cell(errors: Json, *, measured: bool) -> str:
    if not errors:
        return f'<td class="quiet">{"none" if measured else DASH}</td>'
    text = ", ".join(f"{number:,} {kind}" for kind, number in errors.items())
    return f'<td class="flag">{escape(text)}</td>'


def _fidelity_cell(sums: Json, key: str) -> str:
    if key not in sums:
        return f'<td class="n quiet">{DASH}</td>'
    value = sums[key]
    if key == "alone" and sums.get("events"):
        share = 100 * value / sums["events"]
        text = "100" if value == sums["events"] else f"{math.floor(share * 1000) / 1000:.3f}"  # never up to 100
        return f'<td class="n">{text} %</td>'
    fault = value > FIDELITY.get(key, (key, 1.0))[1] * sums.get("events", 0)
    kind = " flag" if fault and key != "events" else "" if value else " quiet"
    return f'<td class="n{kind}">{value:,}</td>'


def _warnings(targets: Sequence[Json]) -> dict[tuple[str, str], list[int]]:
    """Each warning once: the target, the text, and the rounds it was given in."""
    found: dict[tuple[str, str], list[int]] = {}
    for target in targets:
        for number, each in enumerate(target.get("rounds") or []):
            for text in each.get("warnings") or []:
                rounds = found.setdefault((target["name"], str(text)), [])
                if number + 1 not in rounds:
                    rounds.append(number + 1)
    return found


def _warning_list(targets: Sequence[Json]) -> str:
    found = _warnings(targets)
    if not found:
        return ""
    items = "".join(
        f"<li><strong>{escape(name)}</strong>, {'round' if len(rounds) == 1 else 'rounds'} "
        f"{', '.join(map(str, rounds))}: {escape(text)}</li>"
        for (name, text), rounds in found.items()
    )
    return f'<div class="note warn"><strong>&#9888; Warnings</strong><ul>{items}</ul></div>'


def _about(targets: Sequence[Json]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(target["name"])}</th><td>{escape(str(target.get("kind") or DASH))}</td>'
        f"<td>{escape(str(target.get('version') or DASH))}</td><td><code>{escape(str(target.get('address') or DASH))}</code></td>"
        f'<td class="wide">{escape(str(target.get("about") or DASH))}</td></tr>'
        for target in targets
    )
    head = "".join(
        f'<th scope="col">{name}</th>' for name in ("Target", "Kind", "Version", "Address", "How it was set up")
    )
    table = _table(f"<tr>{head}</tr>", rows, "about", "The targets")
    return f"<details><summary>What the targets are</summary>{table}</details>"


# --- The plots of one work ---


def _plots(work: Json, number: int, palette: Palette, figures: Figures) -> str:
    targets = work["targets"]
    curves = _curves(targets, number, palette, figures)
    times = _times(work, palette, figures)
    legend = _legend(targets, palette) if curves or times else ""
    # The legend is of the curves: in their box, so that it does not stay on the screen beside the bars.
    return f'<div class="curves">{legend}{curves}{times}</div>' + _all_bars(targets, palette, figures)


def _legend(targets: Sequence[Json], palette: Palette) -> str:
    buttons = "".join(
        f'<button type="button" aria-pressed="true" data-target="{palette.place(target["name"])}">'
        f"{palette.sample(target['name'])}<span>{escape(target['name'])}</span></button>"
        for target in targets
    )
    return f'<div class="legend" role="group" aria-label="Targets in the plots">{buttons}</div>'


def _curves(targets: Sequence[Json], number: int, palette: Palette, figures: Figures) -> str:
    """The percentile curves, one tab for each kind of histogram."""
    present = dict.fromkeys(kind for target in targets for kind in target.get("histograms") or {})
    kinds = [kind for kind in KINDS if kind in present] + sorted(kind for kind in present if kind not in KINDS)
    panels: list[tuple[str, str]] = []
    for kind in kinds:
        figure = _percentiles(targets, kind, palette)
        if figure is None:
            continue
        title, meaning = _kind(kind)
        text = f"<p>{escape(title)}{': ' + escape(meaning) if meaning else ''}.</p>"
        panels.append((title, text + figures.add(figure, 400, f"{title}, percentiles of each target")))
    if not panels:
        return ""
    return (
        "<h3>Distribution</h3>"
        + _tabs(panels, f"kind-{number}")
        + '<p class="reading">Each step to the right has a tenth of the values of the one before; the last point of a curve is '
        "a single value, the largest. Lower is better.</p>"
    )


def _tabs(panels: Sequence[tuple[str, str]], name: str) -> str:
    if len(panels) == 1:
        return panels[0][1]
    tabs = "".join(
        f'<button type="button" role="tab" id="{name}-tab-{place}" aria-controls="{name}-panel-{place}" '
        f'aria-selected="{"false" if place else "true"}" tabindex="{-1 if place else 0}">{escape(title)}</button>'
        for place, (title, _) in enumerate(panels)
    )
    bodies = "".join(
        f'<div role="tabpanel" id="{name}-panel-{place}" aria-labelledby="{name}-tab-{place}"{" hidden" if place else ""}>'
        f"{body}</div>"
        for place, (_, body) in enumerate(panels)
    )
    return f'<div role="tablist" aria-label="What was measured">{tabs}</div>{bodies}'


def _followed(work: Json) -> str:
    """What the series of a work are of: the generator follows one kind of time."""
    shape = work.get("shape")
    if shape == "disconnect":
        return "close"
    if shape in ("requests", "arrivals", "churn"):
        return "time to first token"
    if any(target.get("kind") == "url" for target in work["targets"]):
        return "event latency (of servers that are not the generator's own: time to first token)"
    return "event latency"


def _times(work: Json, palette: Palette, figures: Figures) -> str:
    parts = []
    for statistic in ("p50", "p99"):
        figure = _over_time(work, statistic, palette)
        if figure is not None:
            title = f"{statistic}, {_followed(work)}"
            plot = figures.add(figure, 280, f"{title}, over time, of each target")
            parts.append(f"<figure><figcaption>{escape(title)}</figcaption>{plot}</figure>")
    return f"<h3>Over time</h3>{''.join(parts)}" if parts else ""


def _all_bars(targets: Sequence[Json], palette: Palette, figures: Figures) -> str:
    present = [name for name in COLUMNS if any(_median(target, name) is not None for target in targets)]
    if "bytes_per_second" in present and "events_per_second" in present:
        present.remove("bytes_per_second")  # the same picture twice
    if "cpu_per_event" in present or "cpu_per_request" in present:
        present = [name for name in present if name != "cpu_used"]
    parts = []
    for name in present:
        group, column = _column(name)
        rows = sum(_median(target, name) is not None for target in targets)
        title = f"{column} per second" if group == "Throughput" else column
        title = title[0].upper() + title[1:]
        plot = figures.add(_bars(targets, name, palette), 84 + 31 * rows, f"{title} of each target")
        way = "more is better" if group == "Throughput" else "" if name == "cpu_used" else "less is better"
        parts.append(f"<figure><figcaption>{escape(title)} <span>{way}</span></figcaption>{plot}</figure>")
    if not parts:
        return ""
    return (
        f'<h3>Cost and throughput</h3><div class="bars">{"".join(parts)}</div>'
        '<p class="reading">Medians over the rounds; the thin lines go from the least to the most.</p>'
    )


# --- What does not change ---

METHOD = """
<section id="method" aria-labelledby="method-title">
<h2 id="method-title">Method</h2>
<dl class="method">
<dt>Event latency</dt>
<dd>The source notes the time just before it sends an event, the client just after the <code>recv</code> that brought it.
Both read the same clock of the same machine, so no clocks have to agree. What lies between is the kernel, twice, and the
proxy.</dd>
<dt>Percentiles</dt>
<dd>Every value is counted in a histogram with buckets that grow with the value, as HdrHistogram does it; a percentile read
from it is less than 1&nbsp;% off. The histograms of all connections are added together, and then the percentile is read.
Percentiles are never averaged: the mean of two p99 is the p99 of nothing.</dd>
<dt>Rounds</dt>
<dd>All targets are measured in one run, in turn: one round of each, then the next round of each, in another order. What
changes on the machine in the meantime thus meets all of them. A figure is the median over the rounds, with the least and
the most of them beside it; where two ranges overlap, the difference may be chance. The curves are of the histograms of all
rounds together.</dd>
<dt>Settling</dt>
<dd>Each round first runs for a while without being counted, until the connections are there and the caches warm. Only then
it measures.</dd>
<dt>Direct and added</dt>
<dd><em>direct</em> is the same load straight at the source, with nothing between. What is <em>added</em> is the difference
of two medians, the target's and that of <em>direct</em> in the same run. For percentiles this is a difference of
distributions: it is not the percentile of what was added to each event.</dd>
<dt>Floor</dt>
<dd>Where there is a <em>floor</em>, it is the least that a program in the middle can do: it reads and writes, and understands
nothing. No proxy can be expected to be below it.</dd>
<dt>Open loop</dt>
<dd>Where requests arrive at a rate, each has a moment when it is due, and its time counts from that moment, also when
the generator or the proxy was too busy to begin it. A stall thus counts for all that waited in it, and not only for the one
that met it (no &ldquo;coordinated omission&rdquo;). Where clients ask again as soon as they are answered, this is not so: such a
work shows what a target can do, and its times are those of a full house.</dd>
<dt>Fidelity</dt>
<dd>Each event must come to the client as a read of its own, in order, and with the very bytes that were sent.
<em>Alone</em> is the share for which that was so. <em>Merged</em> events came with another one in the same read, <em>split</em>
ones in more than one read: a user sees merged tokens as a stutter. <em>Altered</em> and <em>out of order</em> must be 0.</dd>
<dt>Warnings</dt>
<dd>The generator watches itself. A warning says when it was the limit, and not the target: then latencies are too high and
throughputs too low, for all that were measured so.</dd>
<dt>Units</dt>
<dd>1&nbsp;MB is 1,000&nbsp;KB, 1&nbsp;KB is 1,000 bytes; 1&nbsp;ms is 1,000&nbsp;&micro;s.</dd>
</dl>
</section>
"""

STYLE = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-padding-top:1rem}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1100px;margin:0 auto;padding:2.5rem 1.25rem 4rem}
h1{font-size:1.9rem;line-height:1.2;letter-spacing:-.015em;margin:0 0 .6rem;text-wrap:balance}
h2{font-size:1.4rem;line-height:1.25;letter-spacing:-.01em;margin:2.6rem 0 .8rem;text-wrap:balance;overflow-wrap:anywhere}
h3{font-size:1.05rem;margin:2rem 0 .6rem}
p{margin:.6rem 0}
a{color:var(--link);text-underline-offset:.15em}
.lead{font-size:1.1rem;color:var(--soft);margin:0 0 1.4rem}
section.work{border-top:1px solid var(--line);margin-top:3.2rem}
section.work>h2{margin-top:2rem}
#method{border-top:1px solid var(--line);margin-top:3.2rem}
code,pre{font-family:ui-monospace,"SF Mono",Menlo,Consolas,"Liberation Mono",monospace;font-size:.875em}
pre code{font-size:1em}
pre{background:var(--card);border:1px solid var(--line);border-radius:6px;padding:.7rem .9rem;margin:.4rem 0;
white-space:pre-wrap;overflow-wrap:anywhere}
dl{margin:0}dd{margin:0}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(11rem,1fr));gap:.7rem 1.5rem;margin:0 0 1rem}
.facts dt,.plan dt{color:var(--soft);font-size:.85rem;line-height:1.3}
.facts dd{overflow-wrap:anywhere;line-height:1.35}
.facts div:first-child{grid-column:span 2}
.plan{display:flex;flex-wrap:wrap;gap:.5rem 1.6rem;margin:0 0 1.2rem}
.plan dd{line-height:1.35;overflow-wrap:anywhere}
.scroll{overflow-x:auto;border:1px solid var(--line);border-radius:8px;background:var(--card)}
.scroll:focus-visible,button:focus-visible,summary:focus-visible,a:focus-visible{outline:2px solid var(--link);outline-offset:2px}
table{border-collapse:separate;border-spacing:0;width:100%;font-size:.9rem;line-height:1.35;font-variant-numeric:tabular-nums}
th,td{padding:.5rem .8rem;text-align:left;vertical-align:top;white-space:nowrap}
thead th{color:var(--soft);font-weight:500;font-size:.83rem;vertical-align:bottom}
tbody tr>*{border-top:1px solid var(--line)}
tbody th{font-weight:600;white-space:normal;overflow-wrap:anywhere;min-width:6.2rem;max-width:14rem}
.goals tbody th,.about td.wide{white-space:normal;min-width:13rem}
.goals tbody th{font-weight:400;max-width:none}
.n{text-align:right}
.g{border-left:1px solid var(--line)}
thead .g[colspan]{text-align:left;color:var(--ink);font-weight:600;padding-bottom:.1rem}
.figures th:first-child,.health th:first-child{position:sticky;left:0;background:var(--card);z-index:1}
.figures thead tr:nth-child(2) th:first-child{position:static}
tr.ours>*,.figures tr.ours th:first-child,.health tr.ours th:first-child{background:var(--ours)}
.s{display:block;white-space:nowrap;font-size:.8rem;color:var(--soft);font-weight:400}
.quiet{color:var(--soft)}
.flag,.s.flag{color:var(--bad);font-weight:600}
.mark{display:inline-block;border:1px solid currentColor;border-radius:99px;padding:.02rem .6rem;font-size:.83rem;font-weight:600}
.mark.good{color:var(--good)}.mark.bad{color:var(--bad)}
.note{border:1px solid var(--line);border-left:4px solid var(--soft);border-radius:6px;padding:.7rem 1rem;margin:1rem 0;
background:var(--card);overflow-wrap:anywhere}
.note.warn{border-left-color:var(--warn)}.note.bad{border-left-color:var(--bad)}
.note ul{margin:.3rem 0 0;padding-left:1.2rem}
.reading{color:var(--soft);font-size:.88rem;margin:.5rem 0 0}
details{margin:1rem 0}summary{cursor:pointer;color:var(--link)}details .scroll{margin-top:.6rem}
nav ol{margin:.4rem 0;padding-left:1.4rem}nav li{margin:.15rem 0;overflow-wrap:anywhere}
.legend{position:sticky;top:0;z-index:2;display:flex;flex-wrap:wrap;gap:.2rem .3rem;padding:.5rem 0;margin-top:1.4rem;
background:var(--paper);border-bottom:1px solid var(--line)}
.legend button,[role=tab]{font:inherit;font-size:.88rem;color:var(--ink);background:none;border:1px solid transparent;
border-radius:6px;padding:.15rem .5rem;cursor:pointer}
.legend button{display:flex;align-items:center;gap:.45rem;max-width:100%}
.legend svg{flex:none}
.legend span{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.legend button:hover,[role=tab]:hover{border-color:var(--line)}
.legend button[aria-pressed=false]{opacity:.5;text-decoration:line-through}
[role=tablist]{display:flex;flex-wrap:wrap;gap:.3rem;margin:.2rem 0 .6rem}
[role=tab]{border-color:var(--line)}
[role=tab][aria-selected=true]{background:var(--ink);color:var(--paper);border-color:var(--ink)}
figure{margin:0 0 1rem;min-width:0}
figcaption{font-weight:600;font-size:.92rem}
figcaption span{font-weight:400;color:var(--soft);margin-left:.4rem}
.bars{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr));gap:1rem 2rem}
.plot{width:100%;min-width:0;overflow:hidden}
.method{display:grid;grid-template-columns:10rem minmax(0,44rem);gap:1rem 1.5rem}
.method dt{font-weight:600}
@media(max-width:640px){
main{padding:1.5rem 1rem 3rem}h1{font-size:1.5rem}h2{font-size:1.2rem}
.method{display:block}.method dd{margin:0 0 1rem}
th,td{padding:.45rem .6rem}tbody th{max-width:8rem}.legend{position:static}
.facts{grid-template-columns:repeat(2,minmax(0,1fr))}
}
@media print{.legend{position:static}.scroll{overflow:visible}main{max-width:none}}
"""

# The colours are read from the style sheet at each drawing. A plot is drawn when it comes near the screen: ten works
# have dozens, and drawn at once they would hold up the page for seconds.
SCRIPT = r"""
(function () {
  "use strict";
  var figures = JSON.parse(document.getElementById("figures").textContent);
  var places = Array.prototype.slice.call(document.querySelectorAll(".plot"));
  var config = {displaylogo: false, displayModeBar: false, doubleClick: "reset"};

  function coloured(value, style) {
    if (typeof value === "string") {
      var match = /^var\((--[\w-]+)\)$/.exec(value);
      return match ? style.getPropertyValue(match[1]).trim() : value;
    }
    if (Array.isArray(value)) {
      return typeof value[0] === "number" ? value : value.map(function (each) { return coloured(each, style); });
    }
    if (value && typeof value === "object") {
      var copy = {};
      Object.keys(value).forEach(function (key) { copy[key] = coloured(value[key], style); });
      return copy;
    }
    return value;
  }

  function off(place) {
    var box = place.closest(".curves");
    var buttons = box ? box.querySelectorAll('.legend [aria-pressed="false"]') : [];
    return Array.prototype.map.call(buttons, function (button) { return Number(button.dataset.target); });
  }

  function draw(place) {
    if (!place.clientWidth) { return; }  // in a tab that is not shown
    var style = getComputedStyle(document.documentElement);
    var figure = coloured(figures[Number(place.dataset.figure)], style);
    var hidden = off(place);
    figure.data.forEach(function (trace) { trace.visible = hidden.indexOf(trace.meta) < 0; });
    place.dataset.drawn = "1";
    place.dataset.width = place.clientWidth;
    Plotly.react(place, figure.data, figure.layout, config);
  }

  function redraw(inside) {
    places.forEach(function (place) {
      if (place.dataset.drawn && (!inside || inside.contains(place))) { draw(place); }
    });
  }

  var near = new IntersectionObserver(function (entries) {
    entries.forEach(function (entry) {
      if (entry.isIntersecting && !entry.target.dataset.drawn) { draw(entry.target); }
    });
  }, {rootMargin: "500px"});
  places.forEach(function (place) { near.observe(place); });

  // Not plotly's own way, which hears only of the window: a scroll bar or a larger font changes the width as well.
  var widths = new ResizeObserver(function (entries) {
    entries.forEach(function (entry) {
      var place = entry.target, width = Math.round(entry.contentRect.width);
      if (width && place.dataset.drawn && width !== Number(place.dataset.width)) {
        place.dataset.width = width;
        Plotly.Plots.resize(place);
      }
    });
  });
  places.forEach(function (place) { widths.observe(place); });

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", function () { redraw(null); });
  window.addEventListener("beforeprint", function () {
    places.forEach(function (place) { if (!place.dataset.drawn) { draw(place); } });
  });

  document.querySelectorAll(".legend button").forEach(function (button) {
    button.addEventListener("click", function () {
      button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
      redraw(button.closest(".curves"));
    });
  });

  function select(tabs, chosen) {
    tabs.forEach(function (tab) {
      var on = tab === chosen;
      tab.setAttribute("aria-selected", String(on));
      tab.tabIndex = on ? 0 : -1;
      var panel = document.getElementById(tab.getAttribute("aria-controls"));
      panel.hidden = !on;
      if (on) { panel.querySelectorAll(".plot").forEach(draw); }
    });
  }

  document.querySelectorAll("[role=tablist]").forEach(function (list) {
    var tabs = Array.prototype.slice.call(list.children);
    tabs.forEach(function (tab, place) {
      tab.addEventListener("click", function () { select(tabs, tab); });
      tab.addEventListener("keydown", function (event) {
        var step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
        if (step) {
          var next = tabs[(place + step + tabs.length) % tabs.length];
          next.focus();
          select(tabs, next);
        }
      });
    });
  });
})();
"""

# The policy forbids the page to load or send anything, whatever is in the report.
PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:">
<title>LLM token streams through proxies: a benchmark</title>
<style>
:root{color-scheme:light dark;--paper:#fcfcfb;--card:#fff;--ink:#1d2027;--soft:#5c636f;--line:#d9dce1;--grid:#e8eaed;
--link:#1a5fb4;--good:#1b7340;--bad:#b3261e;--warn:#b57700;--ours:#fdf1ea;$light}
@media(prefers-color-scheme:dark){:root{--paper:#14161a;--card:#1b1e24;--ink:#e8eaee;--soft:#a2a9b5;--line:#363b45;
--grid:#282c34;--link:#82b4ff;--good:#62d08f;--bad:#ff8f86;--warn:#e6b450;--ours:#33241d;$dark}}
$style</style>
</head>
<body>
<main>
<header>$header</header>
$goals
$contents
<noscript><p class="note warn">The plots need JavaScript; the tables do not.</p></noscript>
$works
$method
</main>
<script type="application/json" id="figures">$figures</script>
<script>$plotly</script>
<script>$script</script>
</body>
</html>
""")
