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
from llmpipe.bench import histogram, measure
from llmpipe.bench.measure import Outcome, Round, Target
from llmpipe.bench.work import Work
from llmpipe.config import format_address

Report = dict[str, Any]

COLUMNS = {
    "paced": ("latency_p50", "latency_p99", "latency_p99.9", "jitter_p99", "cpu_per_event", "memory_per_stream"),
    "requests": ("ttft_p50", "ttft_p99", "duration_p50", "requests_per_second", "cpu_per_request"),
    "arrivals": ("ttft_p50", "ttft_p99", "duration_p50", "requests_per_second", "cpu_per_request"),
    "churn": ("ttft_p50", "ttft_p99", "duration_p50", "requests_per_second", "cpu_per_request"),
    "flood": ("bytes_per_second", "events_per_second", "cpu_per_event"),
    "hold": ("memory_per_stream", "cpu_used"),
    "disconnect": (
        *(f"close:{phase}_p50" for phase in ("body", "wait", "silent", "stream", "blocked")),
        "close_p50",
        "close_p99",
        "latency_p50",
        "latency_p99",
    ),
}

SERVER_COLUMNS = ("itl_p50", "itl_p99", "tokens_per_second")
"""Of targets that are inference servers."""

ATTACK_COLUMNS = ("attackers_open", "attacks_per_second")
"""Of targets that were attacked meanwhile."""

LABELS = {
    "latency": "event latency",
    "ttft": "TTFT",
    "jitter": "gap jitter",
    "itl": "ITL",
    "duration": "whole answer",
    "close": "close",
    "cpu_per_event": "CPU per event",
    "cpu_per_request": "CPU per request",
    "cpu_used": "CPUs used",
    "memory_per_stream": "memory per stream",
    "events_per_second": "events/s",
    "requests_per_second": "requests/s",
    "tokens_per_second": "tokens/s",
    "bytes_per_second": "throughput",
    "closes_per_second": "closes/s",
    "attackers_open": "attackers open",
    "attacks_per_second": "attacks/s",
}


def label(figure: str) -> str:
    """What a figure is called in a table."""
    if figure in LABELS:
        return LABELS[figure]
    name, _, percentile = figure.rpartition("_")
    name, _, phase = name.partition(":")
    return " ".join(part for part in (LABELS.get(name, name), phase, percentile) if part)


def unit(figure: str) -> str:
    """The unit of a figure; most are seconds."""
    return measure.UNITS.get(figure, "s")


def columns_of_round(work: Work, result: Round) -> list[str]:
    """The figures of its shape that a round has."""
    wanted = COLUMNS[work.shape] if result.fidelity or work.endless else (*COLUMNS[work.shape], *SERVER_COLUMNS)
    return [name for name in (*wanted, *ATTACK_COLUMNS) if name in result.figures]


def quantity(value: float, unit: str) -> str:
    """A figure with a unit that suits its size."""
    if unit == "s":
        for factor, name in ((1e6, "µs"), (1e3, "ms")):
            if value * factor < 1000:
                return f"{value * factor:.3g} {name}" if value * factor < 100 else f"{value * factor:.0f} {name}"
        return f"{value:.3g} s"
    if unit in ("B", "B/s"):
        for factor, name in ((1, "B"), (1e3, "KB"), (1e6, "MB"), (1e9, "GB")):
            if value / factor < 1000 or name == "GB":
                shown = f"{value / factor:.0f}" if value / factor >= 100 or name == "B" else f"{value / factor:.3g}"
                return f"{shown} {name}{unit[1:]}"
    if unit in ("1/s", "connections"):
        return f"{value:,.0f}"
    return f"{value:.3g}"


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
    figures = measure.summary(rounds)
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
        "figures": figures,
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
            if figure["unit"] == "s" and name in direct["figures"]
        }


def _work(outcome: Outcome) -> dict[str, Any]:
    work = outcome.work
    targets = [_target(target, outcome) for target in outcome.targets if outcome.results[target.name]]
    _add_differences(targets)
    return {
        "name": work.name or work.shape,
        "title": work.title,
        "shape": work.shape,
        "plan": work.described,
        "rounds": outcome.schedule.rounds,
        "settle": outcome.schedule.settle,
        "duration": outcome.schedule.duration,
        "targets": targets,
    }


def make(outcomes: Iterable[Outcome], complete: bool, cpu: int | None) -> Report:
    """The whole report; `cpu` is the one that the generator was pinned to."""
    return {
        "schema": 1,
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join([*_program(), *sys.argv[1:]]),
        "complete": complete,
        "machine": machine(cpu),
        "versions": versions(),
        "works": [_work(outcome) for outcome in outcomes],
        "goals": [],
    }


def columns(work: dict[str, Any]) -> list[str]:
    """The figures that a table of this work shows: those of its shape that somebody has."""
    wanted = list(COLUMNS[work["shape"]])
    if any(target["kind"] == "url" for target in work["targets"]):
        wanted += SERVER_COLUMNS
    wanted += ATTACK_COLUMNS
    return [name for name in wanted if any(name in target["figures"] for target in work["targets"])]


def errors(target: dict[str, Any]) -> dict[str, int]:
    """All rounds' errors by kind."""
    found: dict[str, int] = {}
    for one in target["rounds"]:
        for name, count in one["errors"].items():
            found[name] = found.get(name, 0) + count
    return found


def fidelity(target: dict[str, Any]) -> str:
    """In a word: how many events came as they were sent."""
    totals: dict[str, int] = {}
    for one in target["rounds"]:
        for name, count in one["fidelity"].items():
            totals[name] = totals.get(name, 0) + count
    if not totals.get("events"):
        return ""
    parts = [f"{totals['alone'] / totals['events']:.2%} alone".replace("100.00%", "100%")]
    parts += [
        f"{totals[name]:,} {name.replace('_', ' ')}" for name in ("split", "altered", "out_of_order") if totals[name]
    ]
    return ", ".join(parts)


def rows(work: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of a work's table."""
    names = columns(work)
    headings = ["target", *(label(name) for name in names), "events", "errors"]
    cells = []
    for target in work["targets"]:
        row = [target["name"]]
        for name in names:
            figure = target["figures"].get(name)
            row.append(_cell(figure) if figure else "")
        found = errors(target)
        row += [fidelity(target), ", ".join(f"{count:,} {name}" for name, count in found.items()) or "none"]
        cells.append(row)
    return headings, cells


def _cell(figure: dict[str, Any]) -> str:
    text = quantity(figure["median"], figure["unit"])
    if figure["min"] != figure["max"]:
        text += f" ({quantity(figure['min'], figure['unit'])} to {quantity(figure['max'], figure['unit'])})"
    return text


def warnings(work: dict[str, Any]) -> list[str]:
    """Each round's warnings, with whose they are."""
    return [
        f"{target['name']}, round {number + 1}: {warning}"
        for target in work["targets"]
        for number, one in enumerate(target["rounds"])
        for warning in one["warnings"]
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
        parts.append("## Goals\n\n" + markdown_table(["work", "goal", "measured", "met"], cells))
    for work in report["works"]:
        text = f"## {work['title']}\n\n" + markdown_table(*rows(work))
        text += f"\n\n{work['rounds']} rounds of {work['duration']:g} s, each after {work['settle']:g} s of settling."
        notes = warnings(work)
        if notes:
            text += "\n\n" + "\n".join(f"- {note}" for note in notes)
        parts.append(text)
    return "\n\n".join(parts) + "\n"


def text(report: Report) -> str:
    """The report's tables, as plain text."""
    parts = []
    for work in report["works"]:
        lines = [work["title"], "", text_table(*rows(work))]
        lines += [f"! {note}" for note in warnings(work)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)
