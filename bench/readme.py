"""The tables of the README and of docs/comparison.md, from the last full run: no figure there that is not in bench/results.

    python -m bench.readme    # writes them between their marks

tests/test_benchmark.py holds the pages against it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmpipe.bench.figures import quantity

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
COMPARISON = ROOT / "docs" / "comparison.md"
RESULTS = ROOT / "bench" / "results" / "bench.json"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"

TARGETS = {
    "llmpipe": "**llmpipe**",
    "floor": "floor",
    "haproxy": "HAProxy",
    "nginx": "nginx",
    "envoy": "Envoy",
    "caddy": "Caddy",
    "vllm-router": "vllm-router",
    "smg": "smg",
    "aiohttp": "aiohttp",
    "litellm": "LiteLLM",
}
ROWS = (
    ("1,000 streams of 25 events/s: CPU per event", "paced-1000x25", "cpu_per_event"),
    ("the same: event latency p50", "paced-1000x25", "latency_p50"),
    ("the same: event latency p99", "paced-1000x25", "latency_p99"),
    ("short keep-alive requests, 1 client: TTFT p50", "requests-1", "ttft_p50"),
    ("short keep-alive requests, 32 clients: CPU per request", "requests-32", "cpu_per_request"),
    ("a new connection for each request: request rate", "churn-16", "requests_per_second"),
    ("10 unpaced streams: throughput", "flood-10", "bytes_per_second"),
    ("memory per stream, 5,000 flowing", "flowing-5000x5", "memory_per_stream"),
    ("9,000 live streams: event latency p99", "live-9000x5", "latency_p99"),
    ("a client leaves before the answer began: its backend knows after", "disconnect-idle", "close:wait_p50"),
    ("a client leaves a silent stream: its backend knows after", "disconnect-idle", "close:silent_p50"),
)


def cell(workload: dict[str, Any], name: str, figure: str) -> str:
    """A target's median; "-" where it was left out or did nothing, "never" where its backend was not told in a round's time."""
    target = next((target for target in workload["targets"] if target["name"] == name), None)
    if target is None:
        return "-"
    found = target["figures"].get(figure)
    if found is None:
        return "never" if figure.startswith("close:") else "-"
    return quantity(found["median"], found["unit"]) if found["median"] else "-"


def table(results: dict[str, Any], page: Path = README) -> str:
    """The table of a page as Markdown, and a line that says where it comes from.

    Args:
        results: of the last full run.
        page: README or COMPARISON; the latter has the name of each workload too.
    """
    workloads = {workload["name"]: workload for workload in results["workloads"]}
    named = page == COMPARISON
    lines = [
        f"| | {' | '.join(TARGETS.values())} |{' workload |' if named else ''}",
        f"|---{'|---' * (len(TARGETS) + named)}|",
        *(
            f"| {title} | {' | '.join(cell(workloads[workload], name, figure) for name in TARGETS)} |"
            f"{f' `{workload}` |' if named else ''}"
            for title, workload, figure in ROWS
        ),
    ]
    met = sum(goal["met"] for goal in results["goals"])
    machine = results["machine"]
    source = (
        f"Medians of {workloads['paced-1000x25']['rounds']} rounds, in turns, each proxy on one core ({machine['cpu']}, "
        f"{machine['kernel'].split('-')[0]}), on {results['made'][:10]}, commit {results['versions']['commit']}; "
        f"{met} of {len(results['goals'])} goals met: [bench/results/bench.md]({'../' * named}bench/results/bench.md)."
    )
    return "\n".join([*lines, "", source])


def split(text: str) -> tuple[str, str, str]:
    """What stands before, between and behind the marks. ValueError where they are missing."""
    before, begin, rest = text.partition(f"{BEGIN}\n\n")
    between, end, behind = rest.partition(f"\n\n{END}")
    if not begin or not end:
        raise ValueError(f"there are no marks, {BEGIN} and {END}, with an empty line inside of each")
    return before + begin, between, end + behind


if __name__ == "__main__":
    for page in (README, COMPARISON):
        before, _, behind = split(page.read_text())
        page.write_text(before + table(json.loads(RESULTS.read_text()), page) + behind)
