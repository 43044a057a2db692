"""Spans of OpenTelemetry, one for each exchange, sent by OTLP over HTTP. This is all that knows of OpenTelemetry and of its
conventions for generative AI; it is imported only with --otel.

A span is made when its exchange has ended, of what the engine reports of it, so that it costs the forwarding nothing. A thread of its
own makes spans, for one takes a tenth of a millisecond, and one of the SDK's sends them. How many wait for either is bounded; those beyond
are dropped and counted. The variables of OpenTelemetry (OTEL_*) say where spans go and which are sampled.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import OTEL_BSP_MAX_QUEUE_SIZE
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from llmpipe import __version__, log, trace_context
from llmpipe._pipe import OUTCOMES, PHASES, REASONS
from llmpipe.access_log import request_line
from llmpipe.errors import UsageError
from llmpipe.metrics import NO_ERROR

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.util.types import AttributeValue

    from llmpipe.fleet import Fleet, Server
    from llmpipe.record_kinds import ExchangeEnded

CLOSE_LIMIT = 5.0
"""Seconds that the last spans may take to be sent."""

QUEUE_SPANS = 2048
"""Spans that wait to be sent, unless OTEL_BSP_MAX_QUEUE_SIZE says otherwise: the SDK's own default."""

COMPLAINT_INTERVAL = 60.0
"""Seconds for which the exporter says nothing more after it has complained: it would at each try."""

METHODS = frozenset(("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"))
"""Those that the conventions know; any other one could be a value that a client makes up."""

OPERATIONS = (
    ("/chat/completions", "chat"),
    ("/completions", "text_completion"),
    ("/embeddings", "embeddings"),
    ("/v1/responses", "chat"),
    ("/v1/messages", "chat"),
    ("/api/chat", "chat"),
    ("/api/generate", "text_completion"),
    ("/api/embed", "embeddings"),
)
"""Ends of paths to which requests are posted, and what the conventions call the operation. The first that fits counts."""


def operation(method: str, path: str) -> str:
    """What is asked for, in the words of the conventions for generative AI; empty where it is nothing of that kind."""
    if method != "POST":
        return ""
    return next((name for end, name in OPERATIONS if path.endswith(end)), "")


def span_name(method: str, operation: str, model: str) -> str:
    """The name of a span: `chat llama-3` for what has an operation, else the method."""
    if operation:
        return f"{operation} {model}" if model else operation
    return method if method in METHODS else "HTTP"


def parent_context(traceparent: bytes) -> Context | None:
    """The client's span as the parent; None where it named none."""
    parent = trace_context.parse(traceparent)
    if parent is None:
        return None
    context = SpanContext(
        int(parent.trace_id, 16), int(parent.parent_id, 16), is_remote=True, trace_flags=TraceFlags(parent.flags)
    )
    return trace.set_span_in_context(NonRecordingSpan(context))


def attributes(record: ExchangeEnded, server: Server | None, shown: Callable[[str], str]) -> dict[str, AttributeValue]:
    """What a span says of its exchange; what is not known is left out.

    Args:
        record: of the exchange.
        server: that worked on it.
        shown: makes a target fit to be seen.
    """
    method, target = request_line(record)
    path, _, query = shown(target).partition("?")
    outcome = OUTCOMES[record.outcome]
    model = record.model.decode(errors="replace")
    found: dict[str, AttributeValue | None] = {
        "gen_ai.operation.name": operation(method, path) or None,
        "gen_ai.request.model": model or None,
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
        "http.request.method": method if method in METHODS else "_OTHER",
        "http.request.method_original": method if method and method not in METHODS else None,
        "http.response.status_code": record.status or None,
        "url.path": path or None,
        "url.query": query or None,
        "client.address": record.client.decode("latin-1") or None,
        "llmpipe.request_id": record.request_id.decode("latin-1"),
        "llmpipe.pool": record.pool.decode(errors="replace") or None,
        "llmpipe.backend": None if server is None else server.name,
        "llmpipe.outcome": outcome,
        "llmpipe.phase": PHASES[record.phase],
        "llmpipe.reason": REASONS[record.reason] or None,
        "llmpipe.queued": record.queued,
        "llmpipe.attempts": record.attempts,
        "error.type": error_type(record),
    }
    if server is not None:
        found["server.address"] = server.backend.host or server.backend.path
        found["server.port"] = server.backend.port or None
    return {name: value for name, value in found.items() if value is not None}


def error_type(record: ExchangeEnded) -> str | None:
    """The outcome of an exchange that failed, or the 5xx that its backend answered; None for no error."""
    outcome = OUTCOMES[record.outcome]
    if outcome not in NO_ERROR:
        return outcome
    return str(record.status) if record.status >= 500 else None


def events(record: ExchangeEnded, fleet: Fleet) -> list[tuple[float, str, Mapping[str, AttributeValue]]]:
    """What happened in an exchange, in its order: (seconds from its beginning, name, attributes)."""
    found: list[tuple[float, str, Mapping[str, AttributeValue]]] = []
    if record.queued:
        found.append((record.head or 0.0, "queued", {"llmpipe.queued": record.queued}))
    for attempt in record.failed:
        reason = {"llmpipe.backend": fleet.name(attempt.backend), "llmpipe.reason": REASONS[attempt.reason]}
        found.append((attempt.at, "attempt failed", reason))
    if record.connected is not None:
        found.append((record.connected, "connected", {}))
    if record.answered is not None:
        found.append((record.answered, "answered", {}))
    if record.ttft is not None:  # which is counted from the head
        found.append(((record.head or 0.0) + record.ttft, "first token", {}))
    found.sort(key=lambda event: event[0])
    return [*found, (record.duration, "ended", {})]


class _CountingExporter(SpanExporter):
    """Counts what another exporter has sent. It is called in the SDK's thread."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self.sent = 0
        self.failed = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            if result is SpanExportResult.SUCCESS:
                self.sent += len(spans)
            else:
                self.failed += len(spans)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


class _Seldom(logging.Filter):
    """Lets one line through, and then none for COMPLAINT_INTERVAL."""

    def __init__(self) -> None:
        super().__init__()
        self._next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002 - whatever it says
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + COMPLAINT_INTERVAL
        return True


def _queue_size(environment: Mapping[str, str]) -> int:
    text = environment.get(OTEL_BSP_MAX_QUEUE_SIZE, "").strip()
    if text and not (text.isascii() and text.isdigit() and int(text)):
        raise UsageError(f"{OTEL_BSP_MAX_QUEUE_SIZE} is {text!r}; write how many spans may wait, such as {QUEUE_SPANS}")
    return int(text) if text else QUEUE_SPANS


class Tracing:
    """Makes a span of each exchange and has it sent.

    Attributes:
        dropped: spans that were not made, since too many had not been sent.
    """

    def __init__(self, *, log_query: bool) -> None:
        """Args:
        log_query: whether spans show queries as they came.

        Raises:
            UsageError: a variable of OpenTelemetry makes no sense.
        """
        self.dropped = 0
        self._shown = log.mask_user if log_query else log.mask_secrets
        self._taken = 0
        self._unsampled = 0
        self._unmade = 0
        self._records: queue.SimpleQueue[tuple[ExchangeEnded, Fleet, int] | None] = queue.SimpleQueue()
        self._most = _queue_size(os.environ)
        logging.getLogger(OTLPSpanExporter.__module__).filters = [_Seldom()]
        ours = Resource({"service.name": "llmpipe", "service.version": __version__})
        try:
            self._exporter = _CountingExporter(OTLPSpanExporter())
            self._provider = TracerProvider(
                resource=Resource.create(dict(ours.merge(OTELResourceDetector().detect()).attributes)),
                shutdown_on_exit=False,  # `close` has a limit
            )
            self._provider.add_span_processor(BatchSpanProcessor(self._exporter, max_queue_size=self._most))
        except (OSError, ValueError) as error:  # of a certificate, a number
            raise UsageError(f"--otel: {error}") from None
        self._tracer = self._provider.get_tracer("llmpipe", __version__)
        self._thread = threading.Thread(target=self._run, name="otel", daemon=True)
        self._thread.start()

    @property
    def sent(self) -> int:
        """Spans that a collector has taken."""
        return self._exporter.sent

    @property
    def failed(self) -> int:
        """Spans that no collector took, or that could not be made."""
        return self._exporter.failed + self._unmade

    def write(self, record: ExchangeEnded, fleet: Fleet) -> None:
        """Has the span of an exchange made. It waits for nothing.

        Args:
            record: of the exchange.
            fleet: knows the servers that it names.
        """
        # The other counts only grow, in the threads that come behind, so no more wait than this.
        if self._taken - self._unsampled - self.sent - self.failed >= self._most:
            self.dropped += 1
            return
        self._taken += 1
        self._records.put((record, fleet, time.time_ns() - round(record.age * 1e9)))

    def _run(self) -> None:
        while (found := self._records.get()) is not None:
            self._take(*found)

    def _take(self, record: ExchangeEnded, fleet: Fleet, end: int) -> None:
        try:
            self._make(record, fleet, end)
        except Exception as error:  # else no span would be made any more
            self._unmade += 1
            log.error("span not made", error=repr(error))

    def _make(self, record: ExchangeEnded, fleet: Fleet, end: int) -> None:
        begin = end - round(record.duration * 1e9)
        server = None if record.backend is None else fleet.server(record.backend)
        known = attributes(record, server, self._shown)
        model = record.model.decode(errors="replace")
        method, _ = request_line(record)
        span = self._tracer.start_span(
            span_name(method, str(known.get("gen_ai.operation.name", "")), model),
            context=parent_context(record.traceparent),
            kind=SpanKind.SERVER,
            attributes=known,
            start_time=begin,
        )
        if not span.get_span_context().trace_flags.sampled:
            self._unsampled += 1
            return
        for at, name, more in events(record, fleet):
            span.add_event(name, more, timestamp=begin + round(at * 1e9))
        if "error.type" in known:
            span.set_status(Status(StatusCode.ERROR, REASONS[record.reason] or None))
        span.end(end)

    def close(self) -> None:
        """Sends what waits, within CLOSE_LIMIT."""
        self._records.put(None)

        def send() -> None:
            self._thread.join()
            self._provider.shutdown()

        closing = threading.Thread(target=send, name="otel-close", daemon=True)
        closing.start()
        closing.join(CLOSE_LIMIT)
        lost = self._taken - self._unsampled - self.sent + self.dropped
        if lost:
            log.warning("spans lost", spans=lost)
