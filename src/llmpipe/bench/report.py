"""Reports: the dictionary that is written as JSON, and the tables that are made of it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from llmpipe import __version__
from llmpipe.bench import figures, histogram, measure
from llmpipe.bench.figures import percentage, quantity, spread
from llmpipe.bench.measure import Outcome, Round, Target
from llmpipe.bench.workload import Workload
from llmpipe.config import format_address

Report = dict[str, Any]

COLUMNS = {
    "paced": ("latency_p50", "latency_p99", "latency_p99.9", "jitter_p99", "cpu_per_event", "memory_per_stream"),
    "requests": ("ttft_p50", "ttft_p99", "duration_p50", "requests_per_second", "cpu_per_request"),
    "arrivals": ("ttft_p50", "ttft_p99", "duration_p50", "requests_per_second", "cpu_per_request"),
    "churn": ("ttft_p50", "ttft_p99", "duration_p50", "requests_per_second", "cpu_per_request"),
    "uploads": ("requests_per_second", "cpu_per_request", "memory_per_stream"),
    "queue": ("memory_per_waiting", "grant_p50", "grant_p99", "leave_p50", "leave_p90", "place_p50", "place_p90"),
    "flood": ("bytes_per_second", "events_per_second", "cpu_per_event"),
    "hold": ("memory_per_stream", "cpu_used"),
    "disconnect": (
        *(f"close:{phase}_p50" for phase in ("body", "wait", "silent", "stream", "blocked")),
        "close_p50",
        "close_p99",
        "latency_p50",
        "latency_p99",
    ),
    "replay": (
        *("latency_p50", "latency_p99", "latency_p99.9", "jitter_p99", "events_per_second", "cpu_per_event"),
        "memory_per_stream",
    ),
}

SERVER_COLUMNS = ("itl_p50", "itl_p99", "tokens_per_second")
"""Of targets that are inference servers."""

USER_COLUMNS = ("user_cpu_per_request",)
"""Of targets whose work outside of the kernel was looked at."""

REPLAY_ERROR = ("late_p50", "late_p99")
"""How much later than recorded the source sent, of a replay: the generator's own, and so no column of the targets' table."""

ATTACK_COLUMNS = ("attackers_open", "attacks_per_second")
"""Of targets that were attacked meanwhile."""


def columns_of_round(workload: Workload, result: Round) -> list[str]:
    """The figures of its shape that a round has."""
    wanted = (
        COLUMNS[workload.shape]
        if result.fidelity or workload.by_events
        else (*COLUMNS[workload.shape], *SERVER_COLUMNS)
    )
    return [name for name in (*wanted, *USER_COLUMNS, *ATTACK_COLUMNS) if name in result.figures]


def line(workload: Workload, result: Round) -> str:
    """A round's most telling figures, on one line."""
    shown = (figures.of(name) for name in columns_of_round(workload, result))
    parts = [f"{figure.label} {quantity(result.figures[figure.name], figure.unit)}" for figure in shown]
    if all(name in result.figures for name in REPLAY_ERROR):
        parts += [f"replay error {name[5:]} {quantity(result.figures[name], 's')}" for name in REPLAY_ERROR]
    if result.errors:
        parts.append("errors: " + ", ".join(f"{count:,} {name}" for name, count in result.errors.items()))
    return ", ".join(parts + result.warnings)


def _program() -> list[str]:
    """What was run, as one would type it."""
    path = Path(sys.argv[0])
    return ["python", "-m", path.parent.name] if path.name == "__main__.py" else [path.name]


def machine(cpu: int | None) -> dict[str, Any]:
    """Where it was measured."""
    model = platform.processor() or platform.machine()
    with Path("/proc/cpuinfo").open() as lines:
        for line in lines:
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": f"{platform.system()} {platform.release()}",
        "congestion_control": Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip(),
        "python": platform.python_version(),
        "load_cpu": cpu,
    }


def commit() -> str | None:
    """The commit of the checkout that this runs from, with a + where something is changed; None outside of one."""
    git = shutil.which("git")
    if git is None:
        return None
    found = subprocess.run(  # noqa: S603 - arguments are ours
        [git, "describe", "--always", "--dirty=+", "--exclude=*"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or None


def versions() -> dict[str, str | None]:
    """Of this program and of what measures."""
    found: dict[str, str | None] = {"llmpipe": __version__}
    if (Path.cwd() / "src" / "_pipe.pyx").exists():
        found["commit"] = commit()
    for name in ("click", "uvloop"):
        found[name] = importlib.metadata.version(name)
    return found


def _target(target: Target, outcome: Outcome) -> dict[str, Any]:
    rounds = outcome.results[target.name]
    names = dict.fromkeys(name for one in rounds for name in one.histograms)
    merged = {
        name: histogram.merge(one.histograms[name][0] for one in rounds if name in one.histograms) for name in names
    }
    return {
        "name": target.name,
        "kind": target.kind,
        "address": format_address(*target.address),
        "version": target.version,
        "about": target.about,
        "rounds": [
            {
                "figures": one.figures,
                "errors": one.errors | {f"status {status}": count for status, count in one.status.items()},
                "fidelity": one.fidelity,
                "warnings": one.warnings,
            }
            for one in rounds
        ],
        "figures": measure.summary(rounds),
        "histograms": {name: {"buckets": [list(pair) for pair in pairs]} for name, pairs in merged.items()},
        "series": [point for one in rounds for point in one.series],
    }


def _add_differences(targets: list[dict[str, Any]]) -> None:
    """What each proxy adds to the same load straight at the source."""
    direct = next((target for target in targets if target["kind"] == "direct"), None)
    for target in targets:
        if direct is None or target is direct or target["kind"] != "proxy":
            continue
        target["added"] = {
            name: figure["median"] - direct["figures"][name]["median"]
            for name, figure in target["figures"].items()
            if figure["unit"] == "s" and name in direct["figures"] and not name.startswith("late_")
        }


def _workload(outcome: Outcome) -> dict[str, Any]:
    workload = outcome.workload
    targets = [_target(target, outcome) for target in outcome.targets if outcome.results[target.name]]
    _add_differences(targets)
    return {
        "name": workload.name or workload.shape,
        "title": workload.title,
        "shape": workload.shape,
        "plan": workload.described,
        "rounds": outcome.schedule.rounds,
        "settle": outcome.schedule.settle,
        "duration": outcome.schedule.duration,
        "targets": targets,
    }


def make(outcomes: Iterable[Outcome], complete: bool, cpu: int | None) -> Report:
    """The whole report; `cpu` is the one that the generator was pinned to."""
    return {
        "schema": 2,
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join([*_program(), *sys.argv[1:]]),
        "complete": complete,
        "machine": machine(cpu),
        "versions": versions(),
        "workloads": [_workload(outcome) for outcome in outcomes],
        "goals": [],
    }


def without_samples(report: Report) -> Report:
    """The same with medians and spreads only: no histograms, no series, and no figures of single rounds.

    Tables, goals and everything of a page but its curves are made of it.
    """
    return report | {
        "workloads": [
            workload
            | {
                "targets": [
                    {key: value for key, value in target.items() if key not in ("histograms", "series")}
                    | {"rounds": [{k: v for k, v in one.items() if k != "figures"} for one in target["rounds"]]}
                    for target in workload["targets"]
                ]
            }
            for workload in report["workloads"]
        ]
    }


def columns(workload: dict[str, Any]) -> list[str]:
    """The figures that a table of this workload shows: those of its shape that somebody has."""
    wanted = list(COLUMNS[workload["shape"]])
    if any(target["kind"] == "url" for target in workload["targets"]):
        wanted += SERVER_COLUMNS
    wanted += USER_COLUMNS + ATTACK_COLUMNS
    return [name for name in wanted if any(name in target["figures"] for target in workload["targets"])]


def totals(target: dict[str, Any], what: str) -> dict[str, int]:
    """Counts of all rounds together."""
    found: dict[str, int] = {}
    for one in target["rounds"]:
        for name, count in one[what].items():
            found[name] = found.get(name, 0) + count
    return found


def errors(target: dict[str, Any]) -> dict[str, int]:
    """All rounds' errors by kind."""
    return totals(target, "errors")


def fidelity(target: dict[str, Any]) -> str:
    """In a word: how many events came as they were sent."""
    found = totals(target, "fidelity")
    if not found.get("events"):
        return ""
    faults = [
        f"{found[name]:,} {figures.FIDELITY[name][0]}" for name in ("split", "altered", "out_of_order") if found[name]
    ]
    return ", ".join([f"{percentage(found['alone'], found['events'])} alone", *faults])


def rows(workload: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of a workload's table."""
    names = columns(workload)
    headings = ["target", *(figures.of(name).label for name in names), "events", "errors"]
    cells = []
    for target in workload["targets"]:
        row = [target["name"]]
        for name in names:
            figure = target["figures"].get(name)
            row.append(spread(figure) if figure else "")
        found = errors(target)
        row += [fidelity(target), ", ".join(f"{count:,} {name}" for name, count in found.items()) or "none"]
        cells.append(row)
    return headings, cells


def warnings(workload: dict[str, Any]) -> list[str]:
    """Each round's warnings, with whose they are."""
    return [
        f"{target['name']}, round {number + 1}: {warning}"
        for target in workload["targets"]
        for number, one in enumerate(target["rounds"])
        for warning in one["warnings"]
    ]


def replay_errors(workload: dict[str, Any]) -> list[str]:
    """A line for each target of a replay: how many pieces a second, and how much later than recorded the source sent them."""
    return [
        f"replay error, {target['name']}: "
        + ", ".join(f"{name[5:]} {spread(target['figures'][name])}" for name in REPLAY_ERROR)
        + f"; pieces {spread(target['figures']['events_per_second'])}"
        for target in workload["targets"]
        if all(name in target["figures"] for name in REPLAY_ERROR)
    ]


def markdown_table(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(headings) + " |", "|" + " --- |" * len(headings)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in cells)])


def text_table(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A table of plain text."""
    widths = [max(len(row[i]) for row in [headings, *cells]) for i in range(len(headings))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [headings, *cells]
    )


def markdown(report: Report) -> str:
    """The report's tables, as Markdown."""
    where = report["machine"]
    versions_text = ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version)
    parts = [
        f"Measured {report['made']} on {where['cpu']}, {where['cores']} cores, {where['kernel']}, TCP {where['congestion_control']}; {versions_text}.",
        "Medians over the rounds (least to greatest).",
    ]
    if report["goals"]:
        cells = [
            [goal["title"], goal["text"], goal["measured"], "yes" if goal["met"] else "**no**"]
            for goal in report["goals"]
        ]
        parts.append("## Goals\n\n" + markdown_table(["workload", "goal", "measured", "met"], cells))
    for workload in report["workloads"]:
        text = f"## {workload['title']}\n\n" + markdown_table(*rows(workload))
        text += f"\n\n{workload['rounds']} rounds of {workload['duration']:g} s, each after {workload['settle']:g} s of settling."
        notes = replay_errors(workload) + warnings(workload)
        if notes:
            text += "\n\n" + "\n".join(f"- {note}" for note in notes)
        parts.append(text)
    return "\n\n".join(parts) + "\n"


def text(report: Report) -> str:
    """The report's tables, as plain text."""
    parts = []
    for workload in report["workloads"]:
        lines = [workload["title"], "", text_table(*rows(workload))]
        lines += replay_errors(workload)
        lines += [f"! {note}" for note in warnings(workload)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)
