"""Prometheus metrics. Nothing is counted here: a scrape reads what the engines and the control plane count (rule H)."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from prometheus_client import CollectorRegistry, ProcessCollector, make_asgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from llmpipe import __version__
from llmpipe._pipe import BUCKETS, DISCARDS, OUTCOMES, REASONS, RETRIES
from llmpipe.status import STATES, backend_state, common_state

if TYPE_CHECKING:
    from llmpipe._pipe import BackendStats, Histogram, PoolStats, Series, Stats, Tokens
    from llmpipe.background import App, Receive, Scope, Send
    from llmpipe.config import Settings
    from llmpipe.disconnect import Disconnects, Results
    from llmpipe.health import HealthChecks
    from llmpipe.otel import Tracing
    from llmpipe.record_kinds import ExchangeEnded
    from llmpipe.recorder import Recorder
    from llmpipe.reloads import Reloads
    from llmpipe.runner import Runner

NO_ERROR = ("ok", "client_abort")
"""Outcomes that are not failures of forwarding."""


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"llmpipe_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"llmpipe_{name}", text, value=value)


Bucket = tuple[str, float] | tuple[str, float, Exemplar]
Examples = dict[tuple[str, str, str, str], dict[int, Exemplar]]
"""By the name of a histogram, a pool, a backend and an outcome (empty where that is no label): an example for each bucket."""


def _buckets(parts: Sequence[Histogram], examples: Mapping[int, Exemplar] | None = None) -> tuple[list[Bucket], float]:
    """The buckets of several histograms together, each with all below it, and the sum of their values."""
    buckets: list[Bucket] = []
    total = 0
    for index, bound in enumerate((*map(str, BUCKETS), "+Inf")):
        total += sum(counts[index] for counts, _ in parts)
        example = examples.get(index) if examples else None
        buckets.append((bound, total) if example is None else (bound, total, example))
    return buckets, sum(sum_ for _, sum_ in parts)


def _add_tokens(family: CounterMetricFamily, labels: Sequence[str], counts: Iterable[Tokens]) -> None:
    for kind, values in zip(("prompt", "completion", "cached"), zip(*counts, strict=True), strict=True):
        family.add_metric([*labels, kind], sum(values))


TIMES: Sequence[tuple[str, Literal["ttft", "itl", "connect", "disconnect"], str]] = (
    ("ttft_seconds", "ttft", "Request head received to first body byte forwarded."),
    ("itl_seconds", "itl", "Gap between forwarded events of a stream."),
    ("connect_seconds", "connect", "Connect begun to upstream connected."),
    ("disconnect_seconds", "disconnect", "A client's disconnect seen to its upstream closed."),
)
"""Histograms by pool and backend: their names, their places in a series, and what they are."""


class EngineCollector(Collector):
    """Yields the metric families of all engines at scrape time."""

    def __init__(
        self,
        runner: Runner,
        dropped_lines: Callable[[], int],
        draining: Callable[[], bool],
        ended: Callable[[], Iterable[tuple[float, ExchangeEnded]]],
    ) -> None:
        """Args:
        runner: has the engines that count, and knows the servers that counters name.
        dropped_lines: log lines that were lost behind the engines' rings.
        draining: whether the proxy drains.
        ended: exchanges that ended, the newest first, each with the time of its record: the examples of OpenMetrics are theirs.
        """
        self._ended = ended
        self._runner = runner
        self._fleet = runner.fleet
        self._dropped_lines = dropped_lines
        self._draining = draining

    def collect(self) -> Iterable[Metric]:
        snapshots = self._runner.stats()
        yield from self._totals(snapshots)
        yield from self._outcomes(snapshots)
        series = self._series(snapshots)
        yield from self._histograms(series)
        yield from self._tokens(snapshots, series)
        yield from self._per_backend(snapshots)
        yield from self._per_pool(snapshots[0]["pools"])
        build = GaugeMetricFamily("llmpipe_build_info", "The version that runs; always 1.", labels=["version"])
        build.add_metric([__version__], 1)
        yield build

    def _totals(self, snapshots: list[Stats]) -> Iterable[Metric]:
        def total(get: Callable[[Stats], int]) -> int:
            return sum(get(stats) for stats in snapshots)

        yield _gauge("streaming_active", "Streams that are open now.", total(lambda s: s["streaming_active"]))
        yield _counter(
            "streaming_bytes_forwarded",
            "Bytes of response bodies forwarded to clients.",
            total(lambda s: s["streaming_bytes"]),
        )
        yield _counter("request_bytes", "Bytes of requests received from clients.", total(lambda s: s["bytes_up"]))
        yield _counter(
            "events_forwarded",
            "Pieces of response bodies forwarded, one a recv.",
            total(lambda s: s["reads_forwarded"]),
        )
        yield _gauge(
            "clients",
            "Client connections, with those that left a backend which may finish: limits count them.",
            total(lambda s: s["clients"]),
        )
        yield _gauge(
            "finishing",
            "Exchanges whose client has left and whose backend may finish.",
            total(lambda s: s["finishing"]),
        )
        yield _counter("accepted", "Client connections accepted.", total(lambda s: s["accepted"]))
        refused = CounterMetricFamily(
            "llmpipe_connections_refused",
            "Client connections above a limit, or closed because there was no memory for them.",
            labels=["reason"],
        )
        refused.add_metric(["max_connections"], total(lambda s: s["over_total"]))
        refused.add_metric(["max_connections_per_ip"], total(lambda s: s["over_address"]))
        refused.add_metric(["memory"], total(lambda s: s["over_memory"]))
        yield refused
        closed = CounterMetricFamily(
            "llmpipe_idle_connections_closed",
            "Client connections closed before or between requests.",
            labels=["reason"],
        )
        closed.add_metric(["silent"], total(lambda s: s["silent"]))
        closed.add_metric(["room"], total(lambda s: s["gave_way"]))
        yield closed
        yield _gauge("upstreams", "Open upstream connections, idle ones included.", total(lambda s: s["upstreams"]))
        retries = CounterMetricFamily(
            "llmpipe_retries", "Requests sent to a further backend, by cause.", labels=["cause"]
        )
        for index, cause in enumerate(RETRIES):
            retries.add_metric([cause], sum(stats["retries"][index] for stats in snapshots))
        yield retries
        yield _counter("stale_replays", "Requests sent again after a stale connection.", total(lambda s: s["stale"]))
        yield _counter("connect_errors", "Upstream connects that failed.", total(lambda s: s["connect_errors"]))
        yield _counter(
            "access_lines_dropped",
            "Lines of the log and of the access log that were lost: they came faster than they could be written.",
            total(lambda s: s["records_dropped"]) + self._dropped_lines(),
        )
        yield _gauge(
            "request_bytes_kept", "Bytes of requests that are kept to send them again.", float(snapshots[0]["kept"])
        )
        yield _gauge("buffers_held", "8 KB buffers that hold bytes now.", total(lambda s: s["buffers_held"]))
        yield _gauge("buffers", "8 KB buffers that exist, free ones included.", total(lambda s: s["buffers_made"]))
        yield _gauge("draining", "1 while the proxy drains.", float(self._draining()))

    def _outcomes(self, snapshots: list[Stats]) -> Iterable[Metric]:
        exchanges = CounterMetricFamily("llmpipe_exchanges", "Ended exchanges by outcome.", labels=["outcome"])
        errors = CounterMetricFamily(
            "llmpipe_streaming_errors",
            "Exchanges that ended with another outcome than ok and client_abort; the label has the outcome.",
            labels=["reason"],
        )
        for index, outcome in enumerate(OUTCOMES):
            count = sum(stats["outcomes"][index] for stats in snapshots)
            exchanges.add_metric([outcome], count)
            if outcome not in NO_ERROR:
                errors.add_metric([outcome], count)
        failures = CounterMetricFamily(
            "llmpipe_failures", "Attempts that failed and requests that were refused, by reason.", labels=["reason"]
        )
        for index, reason in enumerate(REASONS):
            if reason:
                failures.add_metric([reason], sum(stats["reasons"][index] for stats in snapshots))
        yield exchanges
        yield errors
        yield failures
        discarded = CounterMetricFamily(
            "llmpipe_discarded_bytes", "Bytes that were received and went nowhere, by reason.", labels=["reason"]
        )
        for index, reason in enumerate(DISCARDS):
            discarded.add_metric([reason], sum(stats["discarded"][index] for stats in snapshots))
        yield discarded

    def _series(self, snapshots: list[Stats]) -> dict[tuple[str, str], list[Series]]:
        """Those of each engine, by the names of a pool and of a server; an empty name is none."""
        found: dict[tuple[str, str], list[Series]] = {}
        for stats in snapshots:
            for (pool, number), series in stats["series"].items():
                server = None if number is None else self._fleet.find(number)
                if number is None or server is not None:  # of a table that is just made, it has no name yet
                    found.setdefault((pool.decode(), server.name if server else ""), []).append(series)
        return found

    def _histograms(self, found: Mapping[tuple[str, str], list[Series]]) -> Iterable[Metric]:
        labels = ["pool", "backend"]
        examples = self._examples()
        for name, key, text in TIMES:
            family = HistogramMetricFamily(f"llmpipe_{name}", text, labels=labels)
            for of, several in found.items():
                if parts := [part for series in several if (part := series[key])]:
                    family.add_metric(of, *_buckets(parts, examples.get((key, *of, ""))))
            yield family
        family = HistogramMetricFamily(
            "llmpipe_duration_seconds",
            "First byte of a request to the end of its exchange.",
            labels=[*labels, "outcome"],
        )
        for of, several in found.items():
            for index, outcome in enumerate(OUTCOMES):
                if parts := [part for series in several if (part := series["duration"].get(index))]:
                    family.add_metric([*of, outcome], *_buckets(parts, examples.get(("duration", *of, outcome))))
        yield family

    def _examples(self) -> Examples:
        """The latest exchange of each bucket, by the id of its request."""
        found: Examples = {}
        for taken, record in self._ended():
            server = None if record.backend is None else self._fleet.find(record.backend)
            of = (record.pool.decode(), "" if server is None else server.name)
            at = taken - record.age
            label = {"request_id": record.request_id.decode("latin-1")}
            for key, value in (
                (("duration", *of, OUTCOMES[record.outcome]), record.duration),
                (("ttft", *of, ""), record.ttft),
            ):
                if value is not None:
                    found.setdefault(key, {}).setdefault(bisect_right(BUCKETS, value), Exemplar(label, value, at))
        return found

    @staticmethod
    def _tokens(snapshots: list[Stats], found: Mapping[tuple[str, str], list[Series]]) -> Iterable[Metric]:
        by_model = CounterMetricFamily(
            "llmpipe_tokens",
            "Tokens that backends said their answers took, by model as the file names it, and kind; cached ones are of the prompt's.",
            labels=["model", "kind"],
        )
        names = {name for stats in snapshots for name in stats["tokens"]}
        for name in sorted(names):
            _add_tokens(by_model, [name.decode()], [stats["tokens"].get(name, (0, 0, 0)) for stats in snapshots])
        yield by_model
        by_backend = CounterMetricFamily(
            "llmpipe_backend_tokens",
            "The same by the pool and the backend that answered.",
            labels=["pool", "backend", "kind"],
        )
        for of, several in found.items():
            if of[1]:
                _add_tokens(by_backend, of, [series["tokens"] for series in several])
        yield by_backend

    def _per_backend(self, snapshots: list[Stats]) -> Iterable[Metric]:
        # What the engines share each of them tells alike.
        shared: list[tuple[str, str, Callable[[BackendStats], float]]] = [
            ("in_flight", "Exchanges that a backend works on now.", lambda b: b["in_flight"]),
            (
                "backend_up",
                "1 for a usable backend, 0 for one that failed, fails its health checks, hangs, is drained, or whose name has no address.",
                lambda b: float(backend_state(b) == "up"),
            ),
            ("backend_drained", "1 for a backend that gets no new exchange.", lambda b: float(b["drained"])),
        ]
        # One table's, all of it: another may come at any moment.
        numbered = [
            found for found in self._fleet.numbered() if all(found[0] in stats["backends"] for stats in snapshots)
        ]
        # No server has numbers of these, but they are drained or not.
        names = {server.name for _, server in numbered}
        unresolved = [name for name in self._fleet.unresolved if name not in names]
        for name, text, read in shared:
            gauge = GaugeMetricFamily(f"llmpipe_{name}", text, labels=["backend"])
            for number, server in numbered:
                gauge.add_metric([server.name], read(snapshots[0]["backends"][number]))
            for lacking in unresolved if name != "in_flight" else ():
                gauge.add_metric([lacking], float(name == "backend_drained" and self._runner.is_drained(lacking)))
            yield gauge
        gauges: list[tuple[str, str, Callable[[BackendStats], int]]] = [
            ("upstream_idle", "Idle upstream connections.", lambda b: b["idle"]),
        ]
        counters: list[tuple[str, str, Callable[[BackendStats], int]]] = [
            ("backend_exchanges", "Attempts sent to a backend.", lambda b: b["exchanges"]),
            (
                "backend_failures",
                "Connects refused or timed out, and ends before any byte of an answer.",
                lambda b: b["failures"],
            ),
            ("ejections", "Failures that had a backend left out for a while.", lambda b: b["ejections"]),
            ("upstream_connects", "Upstream connections opened.", lambda b: b["connects"]),
            ("upstream_reuses", "Requests sent on an upstream that was open already.", lambda b: b["reuses"]),
        ]
        for name, text, get in gauges:
            gauge = GaugeMetricFamily(f"llmpipe_{name}", text, labels=["backend"])
            for number, server in numbered:
                gauge.add_metric([server.name], sum(get(stats["backends"][number]) for stats in snapshots))
            yield gauge
        for name, text, get in counters:
            counter = CounterMetricFamily(f"llmpipe_{name}", text, labels=["backend"])
            for number, server in numbered:
                counter.add_metric([server.name], sum(get(stats["backends"][number]) for stats in snapshots))
            yield counter

    def _per_pool(self, pools: Mapping[bytes, PoolStats]) -> Iterable[Metric]:
        length = GaugeMetricFamily("llmpipe_queue_length", "Requests that wait for a place.", labels=["pool"])
        wait = HistogramMetricFamily("llmpipe_queue_wait_seconds", "Wait of those that got a place.", labels=["pool"])
        refused = CounterMetricFamily(
            "llmpipe_queue_refused",
            "Requests that got no place: the queue was full, or their turn came too late, or would have.",
            labels=["pool", "reason"],
        )
        for name, pool in pools.items():
            text = name.decode()
            length.add_metric([text], pool["waiting"])
            wait.add_metric([text], *_buckets([pool["wait"]] if pool["wait"] else []))
            refused.add_metric([text, "full"], pool["full"])
            refused.add_metric([text, "late"], pool["late"])
        yield from (length, wait, refused)


class ControlCollector(Collector):
    """Yields the metric families of the control plane at scrape time: pools, health checks, calls about clients that left, reloads."""

    def __init__(
        self,
        runner: Runner,
        checks: HealthChecks,
        reloads: Reloads,
        settings: Callable[[], Settings],
        disconnects: Disconnects,
    ) -> None:
        """Args:
        runner: has the state of each backend.
        checks: count their results.
        reloads: what came of them.
        settings: the pools there are.
        disconnects: what came of telling others.
        """
        self._disconnects = disconnects
        self._runner = runner
        self._checks = checks
        self._reloads = reloads
        self._settings = settings

    def collect(self) -> Iterable[Metric]:
        yield self._pools()
        checks = CounterMetricFamily(
            "llmpipe_health_checks",
            "Health checks that ended, by what they came to: one that fails while content comes from the backend has passed.",
            labels=["backend", "result"],
        )
        for name, results in self._checks.results.items():
            checks.add_metric([name, "passed"], results.passed)
            checks.add_metric([name, "failed"], results.failed)
        yield checks
        hangs = CounterMetricFamily(
            "llmpipe_backend_hangs",
            "Times that a backend hung: all its streams fell silent at once.",
            labels=["backend"],
        )
        # From 0 on: what begins at 1 shows no increase.
        never = {server.name: 0 for server in self._runner.fleet.servers}
        for name, times in {**never, **self._checks.hang_watch.hangs}.items():
            hangs.add_metric([name], times)
        yield hangs
        yield from self._told()
        reloads = CounterMetricFamily("llmpipe_reloads", "Reloads that were asked for.", labels=["result"])
        reloads.add_metric(["success"], self._reloads.succeeded)
        reloads.add_metric(["failure"], self._reloads.failed)
        yield reloads
        yield _gauge(
            "config_last_reload_successful",
            "1 unless the last reload failed.",
            float(not self._reloads.faults),
        )
        yield _gauge(
            "config_last_reload_success_timestamp_seconds",
            "Time of the last reload that succeeded, or of the start, in seconds since 1970.",
            self._reloads.succeeded_at,
        )

    def _told(self) -> Iterable[Metric]:
        def counter(name: str, text: str, label: str, results: Mapping[str, Results]) -> Metric:
            family = CounterMetricFamily(f"llmpipe_{name}", text, labels=[label, "result"])
            for key, found in results.items():
                family.add_metric([key, "ok"], found.ok)
                family.add_metric([key, "error"], found.error)
                family.add_metric([key, "dropped"], found.dropped)
            return family

        yield counter(
            "abort_calls",
            "Calls that had a request stopped whose client had left, by what came of them.",
            "backend",
            self._disconnects.calls.results,
        )
        yield counter(
            "hook_calls",
            "Calls of hooks, one for each client that left; dropped are those for which a hook was too slow.",
            "hook",
            self._disconnects.hooks.results,
        )

    def _pools(self) -> Metric:
        family = GaugeMetricFamily(
            "llmpipe_pool_backends",
            "Servers of a pool by their state, and backends that have none.",
            labels=["pool", "state"],
        )
        runner = self._runner
        counters = runner.engines[0].stats()["backends"]
        states: dict[str, list[str]] = {
            name: [common_state((), drained=runner.is_drained(name))] for name in runner.fleet.unresolved
        }
        for number, server in runner.fleet.numbered():
            if number in counters:
                states.setdefault(server.backend.name, []).append(backend_state(counters[number]))
        for pool in self._settings().all_pools:
            found = [state for backend in pool.settings.backends for state in states.get(backend.name, ())]
            for state in STATES:
                family.add_metric([pool.name, state], found.count(state))
        return family


class RecordingCollector(Collector):
    """Yields what came of recordings at scrape time."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def collect(self) -> Iterable[Metric]:
        recordings = CounterMetricFamily(
            "llmpipe_recordings",
            "Recorded answers: written whole, written and cut, not written, dropped because too many waited, or sent to who asked.",
            labels=["result"],
        )
        for result, count in self._recorder.results():
            recordings.add_metric([result], count)
        yield recordings


class SpanCollector(Collector):
    """Yields what came of the spans at scrape time."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    def collect(self) -> Iterable[Metric]:
        spans = CounterMetricFamily(
            "llmpipe_spans",
            "Spans of exchanges: sent to a collector, taken by none or not made, or dropped because too many waited.",
            labels=["result"],
        )
        spans.add_metric(["sent"], self._tracing.sent)
        spans.add_metric(["failed"], self._tracing.failed)
        spans.add_metric(["dropped"], self._tracing.dropped)
        yield spans


def make_registry(*collectors: Collector) -> CollectorRegistry:
    """What /metrics shows: what is collected, and the process's own metrics."""
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    ProcessCollector(registry=registry)
    return registry


OPEN_METRICS = b"application/openmetrics-text"
TEXT = b"text/plain"
NEW_TEXT = b"text/plain; version=1.0.0"

_VERSION_1 = re.compile(rb"[1-9][0-9]{0,8}(\.[0-9]+)*")
"""1.0 and what came behind it."""


def choose_form(accept: bytes) -> bytes:
    """The form that an Accept field asks for: OPEN_METRICS or NEW_TEXT, whichever is named first, else TEXT. What cannot be read of it
    names nothing: the field can be anything, and prometheus_client fails on versions that are no numbers.
    """
    for element in accept.lower().split(b","):
        kind, *parameters = (part.strip() for part in element.split(b";"))
        named = (parameter.partition(b"=") for parameter in parameters)
        version = next((value.strip(b' "') for name, _, value in named if name == b"version"), b"")
        if kind == OPEN_METRICS and (not version or _VERSION_1.fullmatch(version)):
            return OPEN_METRICS
        if kind == TEXT and _VERSION_1.fullmatch(version):
            return NEW_TEXT
    return TEXT


def _accepts_gzip(accept_encoding: bytes) -> bool:
    return any(coding.partition(b";")[0].strip().lower() == b"gzip" for coding in accept_encoding.split(b","))


async def _no_body() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


def make_app(text: CollectorRegistry, open_metrics: CollectorRegistry) -> App:
    """What answers at /metrics. A collector is not told what becomes of what it yields, so each form has a registry of its own.

    Args:
        text: for those who want the text format, which has no place for examples.
        open_metrics: for those who want OpenMetrics, which has one.
    """
    as_text, as_open_metrics = make_asgi_app(text), make_asgi_app(open_metrics)

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001
        def field(name: bytes) -> bytes:
            return b",".join(value for key, value in scope["headers"] if key == name)

        # The library gets what it understands, and waits for no body.
        form = choose_form(field(b"accept"))
        headers = [(b"accept", form)]
        if _accepts_gzip(field(b"accept-encoding")):
            headers.append((b"accept-encoding", b"gzip"))
        app = as_open_metrics if form == OPEN_METRICS else as_text
        await app({**scope, "headers": headers}, _no_body, send)

    return answer
