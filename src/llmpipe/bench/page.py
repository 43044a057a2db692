"""The result of a benchmark as one HTML page that needs no network: tables, plots and how it was measured.

`render` is the only entry. It decides nothing about the numbers, but which of a column is the best. The page is made of
page.html.j2, which escapes all text of the report, page.css behind the base.css of all pages, page.js and method.md; it carries
plotly.js once.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup
from plotly.offline import get_plotlyjs  # type: ignore[import-untyped,import-not-found,unused-ignore]  # it has no types

from llmpipe.bench import figures, report
from llmpipe.bench.figures import FIDELITY, MORE, Figure, digits, percentage, quantity, scale
from llmpipe.bench.palette import palette
from llmpipe.bench.plots import Plot, Plots

Json = dict[str, Any]

DASH = "\u2013"
TIMES = "\u00d7"
CONTENTS_FROM = 3
"""Workloads that a page must have to get a table of contents."""


def render(made: Json) -> str:
    """The page of a report, with the plots that it has samples for."""
    workloads: list[Json] = made["workloads"]
    lines = palette(target["name"] for workload in workloads for target in workload["targets"])
    plots = Plots(lines)
    shown = [_workload(workload, plots) for workload in workloads]
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            report=made,
            summary=_summary(made),
            workloads=shown,
            contents=len(workloads) >= CONTENTS_FROM,
            lines=lines,
            plots=plots.data(),
            plotly=Markup(get_plotlyjs()),  # noqa: S704 - a script of the library's
        )
    )


def _environment() -> Environment:
    loader = ChoiceLoader([PackageLoader("llmpipe.bench", "."), PackageLoader("llmpipe.page", ".")])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}

    def source(name: str) -> Markup:
        """A file of ours as it is."""
        return Markup(loader.get_source(environment, name)[0])  # noqa: S704 - a file of ours

    def markdown(name: str) -> Markup:
        """A file of the package in Markdown, as HTML."""
        return Markup(MarkdownIt().render(source(name)))  # noqa: S704 - a file of ours

    environment.globals.update(source=source, markdown=markdown)
    environment.filters.update(plain=_plain, quantity=quantity, title=_title, counted=_counted, moment=_moment)
    return environment


# --- Words ---


def _plain(value: object) -> str:
    """A value without a unit."""
    if value is None:
        return DASH
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.6g}" if isinstance(value, float) else str(value)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _title(workload: Json) -> str:
    """The title, with a real multiplication sign."""
    return re.sub(r"(?<=\s)x(?=\s)", TIMES, str(workload["title"]))


def _moment(made: str) -> str:
    when = datetime.fromisoformat(made).astimezone(timezone.utc)
    return f"{when.day} {when:%B %Y, %H:%M} UTC"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _summary(made: Json) -> str:
    workloads, goals = made["workloads"], made["goals"]
    names = {target["name"] for workload in workloads for target in workload["targets"]}
    parts = [_counted(len(workloads), "workload"), _counted(len(names), "target")]
    rounds = sorted({workload["rounds"] for workload in workloads})
    if rounds:
        between = str(rounds[0]) if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}"
        noun = "round" if rounds == [1] else "rounds"
        parts.append(f"{between} {noun} {'each' if made['complete'] else 'planned'}")
    if goals:
        parts.append(f"{sum(goal['met'] is True for goal in goals)} of {_counted(len(goals), 'goal')} met")
    warned = sum(bool(_warnings(workload["targets"])) for workload in workloads)
    parts.append(f"warnings in {_counted(warned, 'workload')}" if warned else "no warnings")
    return ", ".join(parts) + "."


# --- One workload ---


def _workload(workload: Json, plots: Plots) -> Json:
    """What the template shows of a workload."""
    targets = workload["targets"]
    return {
        **workload,
        "plan": [(key.replace("_", " "), _plan_value(key, value)) for key, value in workload["plan"].items()],
        "table": _table(workload),
        "health": _health(targets),
        "replay_errors": [_capital(line) for line in report.replay_errors(workload)],
        "warnings": _warnings(targets),
        "curves": _curves(targets, plots),
        "times": _times(workload, plots),
        "bars": _bars(targets, plots),
    }


def _plan_value(key: str, value: Any) -> str:
    return quantity(value, "B") if key.endswith("_size") else _plain(value)


def _columns(targets: Sequence[Json]) -> list[Figure]:
    """All figures but percentiles of which there are enough: a table of sixty columns is for machines.

    Of what the workload is about there are p50, p99, p99.9 and the largest, of the other times p50 and p99.
    """
    names = dict.fromkeys(name for target in targets for name in target["figures"])
    kinds = {found[0].name for name in names if (found := figures.time_of(name))}
    main = next((kind for kind in ("close", "latency", "ttft") if kind in kinds), None)
    shown = []
    for name in sorted(names, key=figures.place):
        found = figures.time_of(name)
        if found and found[0].name == "late":
            continue  # no target is the cause
        wanted = ("p50", "p99", "p99.9", "max") if found and found[0].name == main else ("p50", "p99")
        if found is None or found[1] in wanted:
            shown.append(figures.of(name))
    return shown


def _table(workload: Json) -> Json:
    """The figures of each target."""
    targets = workload["targets"]
    columns = _columns(targets)
    groups = [(group, len(list(members))) for group, members in itertools.groupby(columns, key=lambda one: one.group)]
    starts = {next(members).name for _, members in itertools.groupby(columns, key=lambda one: one.group)}
    best = {figure.name: _best(targets, figure) for figure in columns}
    return {
        "groups": groups,
        "columns": [(figure.percentile or figure.label, figure.name in starts) for figure in columns],
        "rows": [
            (
                target,
                [
                    (_cell(target, figure.name, best=target["name"] in best[figure.name]), figure.name in starts)
                    for figure in columns
                ],
            )
            for target in targets
        ],
        "added": any(target.get("added") for target in targets),
        "percentiles": any(figure.percentile for figure in columns),
        "best": any(best.values()),
    }


def _best(targets: Sequence[Json], figure: Figure) -> set[str]:
    """The proxies with the best value; none if there is nothing to choose from.

    Those whose rounds overlap with those of the best are as good: to name one of them would be to name chance. The source
    itself and the least that a proxy can do do not take part.
    """
    rows = {
        target["name"]: target["figures"][figure.name]
        for target in targets
        if target["name"] not in ("direct", "floor") and figure.name in target["figures"]
    }
    if len(rows) < 2 or figure.better is None:
        return set()
    chosen = max if figure.better == MORE else min
    first = chosen(rows.values(), key=lambda row: float(row["median"]))
    best = {name for name, row in rows.items() if row["min"] <= first["max"] and row["max"] >= first["min"]}
    return best if len(best) < len(rows) else set()


def _cell(target: Json, name: str, *, best: bool) -> Json | None:
    """The median; the least and the greatest in the same unit, where they differ; what is added to the direct way."""
    figure = target["figures"].get(name)
    if figure is None:
        return None
    unit = figure["unit"]
    divisor, _ = scale(figure["median"], unit)
    between = [digits(figure[key] / divisor) for key in ("min", "max")]
    added = target.get("added", {}).get(name)
    return {
        "text": quantity(figure["median"], unit),
        "best": best,
        "between": between if between[0] != between[1] else None,
        "added": None if added is None else ("+" if added >= 0 else "") + quantity(added, unit),
    }


def _health(targets: Sequence[Json]) -> Json:
    """Errors, and whether the events came as they were sent."""
    sums = {target["name"]: report.totals(target, "fidelity") for target in targets}
    names = [name for name in FIDELITY if any(name in counts for counts in sums.values())]
    return {
        "columns": [FIDELITY[name][0] for name in names],
        "rows": [
            (target["name"], report.errors(target), [_fidelity(sums[target["name"]], name) for name in names])
            for target in targets
        ],
        "any_errors": any(report.errors(target) for target in targets),
    }


def _fidelity(counts: dict[str, int], name: str) -> tuple[str, str]:
    """The text and the class of a cell."""
    if name not in counts:
        return DASH, "quiet"
    value, events = counts[name], counts["events"]
    if name == "alone" and events:
        return percentage(value, events), ""
    if value > FIDELITY[name][1] * events:
        return f"{value:,}", "flag"
    return f"{value:,}", "" if value else "quiet"


def _warnings(targets: Iterable[Json]) -> dict[tuple[str, str], list[int]]:
    """Each warning once: the target, the text, and the rounds it was given in."""
    found: dict[tuple[str, str], list[int]] = {}
    for target in targets:
        for number, one in enumerate(target["rounds"]):
            for text in dict.fromkeys(one["warnings"]):
                found.setdefault((target["name"], text), []).append(number + 1)
    return found


# --- The plots of one workload ---


def _curves(targets: Sequence[Json], plots: Plots) -> list[tuple[figures.Time, Plot]]:
    """The percentile curves of each kind of time that was counted."""
    found = []
    for time in figures.TIMES.values():
        plot = plots.percentiles(targets, time.name, f"{time.title}, percentiles of each target")
        if plot is not None:
            found.append((time, plot))
    return found


def _times(workload: Json, plots: Plots) -> list[tuple[str, Plot]]:
    """What the generator followed while it measured, over time."""
    found = []
    for statistic in ("p50", "p99"):
        title = f"{statistic}, {_followed(workload)}"
        plot = plots.over_time(workload, statistic, f"{title}, over time, of each target")
        if plot is not None:
            found.append((title, plot))
    return found


def _followed(workload: Json) -> str:
    """What the series of a workload are of: the generator follows one kind of time."""
    if workload["shape"] == "disconnect":
        return "close"
    if workload["shape"] in ("requests", "arrivals", "churn", "uploads", "queue"):
        return "time to first token"
    if any(target["kind"] == "url" for target in workload["targets"]):
        return "event latency (of servers that are not the generator's own: time to first token)"
    return "event latency"


def _bars(targets: Sequence[Json], plots: Plots) -> list[tuple[str, str, Plot]]:
    """The title, which way is better, and the bars of each figure of cost and throughput."""
    present = {name for target in targets for name in target["figures"]}
    left_out = set()
    if "events_per_second" in present:
        left_out.add("bytes_per_second")  # the same picture twice
    if present & {"cpu_per_event", "cpu_per_request"}:
        left_out.add("cpu_used")
    found = []
    for figure in figures.FIGURES.values():
        if figure.name in present - left_out and figure.group in ("Cost", "Throughput"):
            title = _capital(figure.label)
            way = f"{figure.better} is better" if figure.better else ""
            found.append((title, way, plots.bars(targets, figure.name, f"{title} of each target")))
    return found
