"""The part of docs/metrics.md that is made: the table of metrics, from what a proxy shows of itself after it has done a little of everything.

PYTHONPATH=tests .venv/bin/python tests/metrics_page.py --write   puts it into the page
"""

from __future__ import annotations

import json
import sys
import tempfile
from functools import cache
from pathlib import Path

from harness import Backend, Client, Mock, Proxy, answer_all, wait_until
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
BEGIN, END = "<!-- metrics: begin -->\n", "<!-- metrics: end -->"

CONFIG = """
[pools.p]
models = ["mock"]
health = {{ path = "/health", interval = "100ms" }}
queue = {{ size = 1 }}

[[pools.p.backends]]
name = "gpu"
url = "{url}"
max_in_flight = 8
on_abort = {{ call = "/abort_request" }}
"""

HOOK = {
    "METADATA": "Metadata-Version: 2.1\nName: a-hook\nVersion: 1.0\n",
    "RECORD": "",
    "entry_points.txt": "[llmpipe.hooks]\nnothing = builtins:id\n",
}

FREE = {"backend", "hook", "model", "pool", "version"}
"""Labels whose values are names that an operator, a package or a release has given. All others have a list of values."""


def environment(folder: Path, collector: str) -> dict[str, str]:
    """One with a hook in it, and with spans that somebody takes."""
    info = folder / "a_hook-1.0.dist-info"
    info.mkdir()
    for name, text in HOOK.items():
        (info / name).write_text(text)
    return {"PYTHONPATH": str(folder), "OTEL_EXPORTER_OTLP_ENDPOINT": collector, "OTEL_BSP_SCHEDULE_DELAY": "50"}


def ask(client: Client, tokens: int) -> None:
    """Asks for a stream, and reads its head."""
    asked = {"model": "mock", "stream": True, "max_tokens": tokens, "messages": [{"role": "user", "content": "Hi"}]}
    body = json.dumps({**asked, "stream_options": {"include_usage": True}}).encode()
    client.send(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
        % (len(body), body)
    )


def families(text: str) -> list[Metric]:
    return list(text_string_to_metric_families(text))


@cache
def live() -> str:
    """/metrics of a proxy after a stream that was read and one whose client left: each metric has a sample."""
    with (
        tempfile.TemporaryDirectory() as name,
        Mock("--tokens-per-second", "200", "--ttft", "10ms", "--tokens", "100000") as mock,
        Backend(answer_all) as collector,
    ):
        folder = Path(name)
        path = folder / "llmpipe.toml"
        path.write_text(CONFIG.format(url=mock.url))
        options = ("--config", str(path), "--otel", "--record", str(folder / "answers"))
        with Proxy(options=options, env=environment(folder, collector.url)) as proxy:
            with Client(proxy) as client:
                ask(client, 3)
                client.read_response()
                ask(client, 100000)
                client.read_head()
            proxy.wait_metric("llmpipe_exchanges_total", 1, outcome="client_abort")
            texts: list[str] = []

            def complete() -> bool:
                texts.append(proxy.admin("/metrics")[1])
                return all(family.samples for family in families(texts[-1]))

            wait_until(complete, what="a sample of each metric")
            return texts[-1]


def table(text: str) -> str:
    """The metrics in Markdown, in the order in which they are shown."""
    rows = []
    for family in families(text):
        shown = f"{family.name}_total" if family.type == "counter" else family.name
        labels = [label for label in family.samples[0].labels if label != "le"]
        cells = (f"`{shown}`", family.type, ", ".join(f"`{label}`" for label in labels), family.documentation)
        rows.append(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
    return "\n".join(["| metric | type | labels | what it is |", "|---|---|---|---|", *rows, ""])


def values(text: str) -> dict[tuple[str, str], set[str]]:
    """By the name of a metric and that of a label which has a list of values: those values."""
    found: dict[tuple[str, str], set[str]] = {}
    for family in families(text):
        shown = f"{family.name}_total" if family.type == "counter" else family.name
        for sample in family.samples:
            for label, value in sample.labels.items():
                if label not in FREE and label != "le":
                    found.setdefault((shown, label), set()).add(value)
    return found


def filled(page: str) -> str:
    """The page with the table as it is now."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin
    assert end
    return before + begin + table(live()) + end + after


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    PAGE.write_text(filled(PAGE.read_text()))
