"""Spans: what is sent to a collector, decoded as OTLP, and that no collector can do harm."""

from __future__ import annotations

import contextlib
import logging
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import journey
import pytest
from harness import (
    Backend,
    Client,
    Connection,
    Proxy,
    answer_all,
    chunk,
    respond,
    sse_head,
    unanswering_address,
    wait_until,
)
from made_up import FLEET, OUTCOME, REASON, SERVERS, record
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from llmpipe import log, otel
from llmpipe.record_kinds import Attempt

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """A collector of OTLP over HTTP."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resources: list[dict[str, Any]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                assert self.headers["Content-Type"] == "application/x-protobuf"
                request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
                for resource in request.resource_spans:
                    collector.resources.append(values(resource.resource.attributes))
                    for scope in resource.scope_spans:
                        assert scope.scope.name == "llmpipe"
                        collector.spans += scope.spans
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self._server.server_port}",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def wait(self, number: int) -> list[Span]:
        """The spans, once there are so many."""
        wait_until(lambda: len(self.spans) >= number, what=f"{number} spans")
        return self.spans.copy()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join(30)
        self._server.server_close()


def values(attributes: Any) -> dict[str, Any]:
    """Attributes as Python has them."""
    return {found.key: getattr(found.value, found.value.WhichOneof("value")) for found in attributes}


@pytest.fixture
def collector() -> Iterator[Collector]:
    with contextlib.closing(Collector()) as collector:
        yield collector


@pytest.fixture
def trace(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Span]:
    """trace(**changes): the span of a made-up record with these changes, as a collector gets it."""

    def make(**changes: Any) -> Span:
        for name, value in collector.environment.items():
            monkeypatch.setenv(name, value)
        tracing = otel.Tracing(log_query=False)
        before = len(collector.spans)
        tracing.write(record(**changes), FLEET)
        tracing.close()
        assert (tracing.sent, tracing.failed, tracing.dropped) == (1, 0, 0)
        (span,) = collector.spans[before:]
        return span

    return make


def test_the_span_of_a_whole_exchange(trace: Callable[..., Span], collector: Collector) -> None:
    before = time.time_ns()
    span = trace()
    assert span.name == "chat llama-é"
    assert span.kind == Span.SPAN_KIND_SERVER
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert span.span_id.hex() not in ("", PARENT)
    begin, end = span.start_time_unix_nano, span.end_time_unix_nano
    assert end - begin == 10_000_000_000
    assert before - 500_000_000 <= end <= time.time_ns() - 500_000_000  # its age
    events = [(event.name, event.time_unix_nano - begin, values(event.attributes)) for event in span.events]
    assert events == [
        ("queued", 500_000_000, {"llmpipe.queued": 1.0}),
        ("attempt failed", 1_550_000_000, {"llmpipe.backend": "gpu1", "llmpipe.reason": "ECONNREFUSED"}),
        ("connected", 1_600_000_000, {}),
        ("answered", 1_750_000_000, {}),
        ("first token", 2_500_000_000, {}),  # the head was there after 0.5 s, and that 2 s behind it
        ("ended", 10_000_000_000, {}),
    ]
    assert values(span.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "llama-é",
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 65,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "url.path": "/v1/chat/completions",
        "url.query": "api_key=***",
        "client.address": "192.0.2.7",
        "server.address": "gpu2",
        "server.port": 8001,
        "llmpipe.request_id": "0123456789abcdef",
        "llmpipe.pool": "chat",
        "llmpipe.backend": "gpu2",
        "llmpipe.outcome": "ok",
        "llmpipe.phase": "stream",
        "llmpipe.reason": "ECONNREFUSED",
        "llmpipe.queued": 1.0,
        "llmpipe.attempts": 2,
    }
    assert span.status.code == Status.STATUS_CODE_UNSET
    (resource,) = collector.resources
    assert resource["service.name"] == "llmpipe"
    assert resource["service.version"]
    assert resource["telemetry.sdk.name"] == "opentelemetry"


@pytest.mark.parametrize(
    ("sampler", "sent"),
    [("", ["03"]), ("always_on", ["03", "02"]), ("parentbased_always_off", ["03"]), ("always_off", [])],
)
def test_a_client_decides_for_its_trace_unless_the_operator_does(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, sampler: str, sent: list[str]
) -> None:
    for name, value in {**collector.environment, "OTEL_TRACES_SAMPLER": sampler or "parentbased_always_on"}.items():
        monkeypatch.setenv(name, value)
    tracing = otel.Tracing(log_query=False)
    for flags in ("03", "02"):  # sampled or not; the other bit says nothing of that
        tracing.write(record(traceparent=f"00-{TRACE}-{PARENT}-{flags}".encode(), request_id=flags.encode()), FLEET)
    tracing.close()
    assert [values(span.attributes)["llmpipe.request_id"] for span in collector.spans] == sent
    assert (tracing.sent, tracing.failed, tracing.dropped) == (len(sent), 0, 0)


def test_the_operator_names_the_service(
    trace: Callable[..., Span], collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "edge")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    trace()
    (resource,) = collector.resources
    assert (resource["service.name"], resource["deployment.environment.name"]) == ("edge", "test")


def test_what_is_not_known_is_left_out(trace: Callable[..., Span]) -> None:
    span = trace(
        status=0, ttft=None, reason=0, pool=b"", model=b"", queued=0.0, connected=None, answered=None, last=None, events=0,
        prompt_tokens=None, completion_tokens=None, cached_tokens=None, traceparent=b"junk", failed=(), backend=None,
        target=b"/", method=b"GET", client=b"",
    )  # fmt: skip
    assert span.name == "GET"
    assert span.parent_span_id == b""
    assert any(span.trace_id)
    assert [event.name for event in span.events] == ["ended"]
    assert values(span.attributes) == {
        "http.request.method": "GET",
        "url.path": "/",
        "llmpipe.request_id": "0123456789abcdef",
        "llmpipe.outcome": "ok",
        "llmpipe.phase": "stream",
        "llmpipe.queued": 0.0,
        "llmpipe.attempts": 2,
    }


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        (
            {"outcome": OUTCOME("upstream_abort"), "reason": REASON("FIN in the body")},
            "upstream_abort",
            "FIN in the body",
        ),
        ({"outcome": OUTCOME("timeout_ttft"), "reason": 0, "status": 504}, "timeout_ttft", ""),
        ({"status": 503, "reason": 0}, "503", ""),
        ({"status": 404, "reason": 0}, None, ""),
        ({"outcome": OUTCOME("client_abort"), "status": 499}, None, ""),
    ],
)
def test_errors(trace: Callable[..., Span], changes: dict[str, Any], error: str | None, said: str) -> None:
    span = trace(**changes)
    assert values(span.attributes).get("error.type") == error
    assert span.status.code == (Status.STATUS_CODE_UNSET if error is None else Status.STATUS_CODE_ERROR)
    assert span.status.message == said


@pytest.mark.parametrize(
    ("method", "path", "operation", "name"),
    [
        ("POST", "/v1/chat/completions", "chat", "chat m"),
        ("POST", "/prefix/v1/completions", "text_completion", "text_completion m"),
        ("POST", "/v1/embeddings", "embeddings", "embeddings m"),
        ("POST", "/v1/responses", "chat", "chat m"),
        ("POST", "/v1/messages", "chat", "chat m"),
        ("POST", "/api/chat", "chat", "chat m"),
        ("POST", "/v1/threads/1/messages", "", "POST"),
        ("GET", "/v1/chat/completions", "", "GET"),
        ("POST", "/v1/chat/completions/1", "", "POST"),
        ("MAKE-IT-UP", "/", "", "HTTP"),
        ("", "", "", "HTTP"),
    ],
)
def test_names(method: str, path: str, operation: str, name: str) -> None:
    assert otel.operation(method, path) == operation
    assert otel.span_name(method, operation, "m") == name


def test_a_name_without_a_model_is_the_operation() -> None:
    assert otel.span_name("POST", "chat", "") == "chat"


def test_a_method_of_no_standard_and_a_unix_socket() -> None:
    found = otel.attributes(record(method=b"MAKE-IT-UP"), SERVERS[2], log.mask_secrets)
    assert (found["http.request.method"], found["http.request.method_original"]) == ("_OTHER", "MAKE-IT-UP")
    assert found["server.address"] == "/run/vllm.sock"
    assert "server.port" not in found


def test_a_span_that_cannot_be_made_is_counted_and_not_the_last_one(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in collector.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "2")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")
    tracing = otel.Tracing(log_query=False)
    for number in range(1, 4):  # more than may wait: they do not wait for ever
        tracing.write(record(backend=77), FLEET)
        wait_until(lambda number=number: tracing.failed == number)
    tracing.write(record(), FLEET)
    tracing.close()
    assert (tracing.sent, tracing.failed, tracing.dropped) == (1, 3, 0)
    found = [(line.getMessage(), vars(line).get("fields")) for line in caplog.records if line.levelname == "ERROR"]
    assert found == [("span not made", {"error": "KeyError(77)"})] * 3
    assert [line.getMessage() for line in caplog.records if line.levelname == "WARNING"] == ["spans lost"]


def test_events_are_in_their_order() -> None:
    late = record(failed=(Attempt(1, 1.62, 5), Attempt(2, 0.01, 5)))
    times = [at for at, _, _ in otel.events(late, FLEET)]
    assert times == sorted(times)
    assert [name for _, name, _ in otel.events(late, FLEET)][:4] == [
        "attempt failed",
        "queued",
        "connected",
        "attempt failed",
    ]


def test_a_proxy_sends_one_span_for_each_exchange(proxy_to: Callable[..., Proxy], collector: Collector) -> None:
    """Access lines are off: spans do not depend on them."""

    def script(connection: Connection) -> None:
        while True:
            request = connection.read_request()
            if b"/broken" in request.line:
                connection.reset()
                return
            if b"/left" in request.line:
                connection.send(sse_head() + chunk(b"data: 1\n\n"))
                connection.wait_eof()
                return
            respond(connection)

    with Backend(script) as backend:
        proxy = proxy_to(backend, options=["--otel", "--access-log", "off"], env=collector.environment)
        before = time.time_ns()
        with Client(proxy) as client:
            for number in range(50):
                head = b"POST /v1/chat/completions?key=s3cr3t HTTP/1.1\r\nHost: a\r\nX-Request-ID: %d\r\n" % number
                client.request(head + b"Content-Length: 2\r\n\r\n{}")
        with Client(proxy) as client:
            assert client.request(b"GET /broken HTTP/1.1\r\nHost: a\r\n\r\n").status == 502
        with Client(proxy) as client:
            client.send(b"GET /left HTTP/1.1\r\nHost: a\r\n\r\n")
            client.read_head()
        with Client(proxy) as client:
            assert client.request(b"nonsense\r\n\r\n").status == 400
        collector.wait(53)
        proxy.wait_metric("llmpipe_spans_total", 53, result="sent")
        proxy.settled()
        assert proxy.metric("llmpipe_exchanges_total") == 53
        after = time.time_ns()
        proxy.close()
        spans = {values(span.attributes)["llmpipe.request_id"]: span for span in collector.spans}
        assert len(spans) == len(collector.spans) == 53
        assert len({span.span_id for span in collector.spans}) == 53
        for number in range(50):
            span = spans[str(number)]
            assert span.name.split()[0] == "chat"
            found = values(span.attributes)
            assert (found["url.path"], found["url.query"]) == ("/v1/chat/completions", "key=***")
            assert (found["http.response.status_code"], found["llmpipe.outcome"]) == (200, "ok")
            assert (found["server.address"], found["server.port"]) == ("127.0.0.1", backend.port)
            assert found["llmpipe.backend"] == backend.url
            times = [
                span.start_time_unix_nano,
                *(event.time_unix_nano for event in span.events),
                span.end_time_unix_nano,
            ]
            assert before - 1_000_000 < times[0]
            assert times == sorted(times)
            assert times[-1] < after
            assert {event.name for event in span.events} >= {"first token", "ended"}
        others = {values(span.attributes).get("url.path", ""): span for span in collector.spans}
        assert others.keys() == {"/v1/chat/completions", "/broken", "/left", ""}
        assert (others["/broken"].status.code, others["/left"].status.code) == (2, 0)
        assert others[""].name == "HTTP"
        assert not [line for line in proxy.log if line["event"] == "access"]


def test_the_span_of_a_request_that_had_it_all(collector: Collector, tmp_path: Path) -> None:
    """A real wait, a real refusal, a real answer with figures: each time against the client's own clock."""
    with journey.travelled(tmp_path, "--otel", env=collector.environment) as (proxy, way):
        spans = {values(span.attributes)["llmpipe.request_id"]: span for span in collector.wait(2)}
        sent = time.time()
        proxy.close()
    assert len(collector.spans) == len(spans) == 2
    span = spans[way.request_id]
    assert span.name == "chat tiny-1"
    assert span.kind == Span.SPAN_KIND_SERVER
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (journey.TRACE, journey.PARENT)
    assert span.status.code == Status.STATUS_CODE_UNSET
    begin, end = span.start_time_unix_nano, span.end_time_unix_nano
    found = values(span.attributes)
    queued = found.pop("llmpipe.queued")
    assert found == {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "tiny-1",
        "gen_ai.usage.input_tokens": journey.PROMPT_TOKENS,
        "gen_ai.usage.output_tokens": journey.TOKENS,
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "url.path": "/v1/chat/completions",
        "url.query": "api_key=***",
        "client.address": "127.0.0.1",
        "server.address": "127.0.0.1",
        "server.port": way.server_port,
        "llmpipe.request_id": way.request_id,
        "llmpipe.pool": "large",
        "llmpipe.backend": "gpu2",
        "llmpipe.outcome": "ok",
        "llmpipe.phase": "stream",
        "llmpipe.reason": "ECONNREFUSED",
        "llmpipe.attempts": 2,
    }
    assert [event.name for event in span.events] == [
        *("queued", "attempt failed", "connected", "answered", "first token", "ended"),
    ]
    failed = {"llmpipe.backend": "gpu1", "llmpipe.reason": "ECONNREFUSED"}
    assert [values(event.attributes) for event in span.events] == [{"llmpipe.queued": queued}, failed, {}, {}, {}, {}]
    at = {event.name: (event.time_unix_nano - begin) / 1e9 for event in span.events}
    tiny = 1e-6  # what a rounding may be
    assert list(at.values()) == sorted(at.values())
    assert at["queued"] >= 0
    assert way.queued <= queued <= at["attempt failed"] - at["queued"] + tiny
    assert at["answered"] + way.before_first <= way.first
    assert queued + way.before_first <= at["first token"] <= way.first
    assert at["first token"] + way.streamed <= at["ended"] + tiny
    assert at["ended"] == pytest.approx((end - begin) / 1e9, abs=tiny)
    assert way.began - journey.TURN <= begin / 1e9 < end / 1e9 <= sent
    # The one before it named no trace: it has one of its own.
    before = spans["the-one-before"]
    assert (before.name, before.parent_span_id) == ("chat tiny", b"")
    assert before.trace_id not in (b"", span.trace_id)
    assert [event.name for event in before.events] == ["connected", "answered", "first token", "ended"]
    assert not [name for name in values(before.attributes) if name.startswith("gen_ai.usage.")]


def test_the_last_spans_are_sent_at_the_end(proxy_to: Callable[..., Proxy], collector: Collector) -> None:
    """Long before they are due."""
    environment = {**collector.environment, "OTEL_BSP_SCHEDULE_DELAY": "3600000"}
    proxy = proxy_to(answer_all, options=["--otel"], env=environment)
    with Client(proxy) as client:
        client.request(GET)
    proxy.access(1)
    assert collector.spans == []
    proxy.close()
    assert len(collector.spans) == 1


def test_a_collector_that_is_not_there_is_counted(proxy_to: Callable[..., Proxy]) -> None:
    with socket.socket() as refusing:  # nobody else can listen there, and it does not
        refusing.bind(("127.0.0.1", 0))
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{refusing.getsockname()[1]}",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }
        proxy = proxy_to(answer_all, options=["--otel"], env=environment)
        with Client(proxy) as client:
            for _ in range(20):
                assert client.request(GET).status == 200
        proxy.wait_metric("llmpipe_spans_total", 20, result="failed")
        proxy.close()
    assert proxy.wait_log("spans lost")["spans"] == 20
    assert re.search(r"export(ing)? spans batch", "".join(proxy.stderr))
    assert all(line.startswith("{") for line in proxy.stderr), "something wrote past the log"


def test_the_exporter_complains_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    seldom = otel._Seldom()
    passed = []
    for second in range(150):
        now[0] = 1000.0 + second
        if seldom.filter(logging.makeLogRecord({"msg": "down"})):
            passed.append(second)
    assert passed == [0, 60, 120]


@pytest.mark.slow
def test_a_collector_that_hangs_delays_neither_requests_nor_the_end(proxy_to: Callable[..., Proxy]) -> None:
    with unanswering_address() as address:
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": address,
            "OTEL_EXPORTER_OTLP_TIMEOUT": "3600",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "OTEL_BSP_MAX_QUEUE_SIZE": "20",
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "10",
        }
        proxy = proxy_to(answer_all, options=["--otel"], env=environment)
        with Client(proxy) as client:
            for _ in range(100):
                assert client.request(GET).status == 200
        proxy.access(100)
        proxy.wait_metric("llmpipe_spans_total", 80, result="dropped")
        assert proxy.metric("llmpipe_spans_total", result="sent") == 0
        proxy.close()  # which waits for 30 s at most
        assert proxy.wait_log("spans lost")["spans"] == 100


def test_a_second_signal_ends_the_wait_for_a_collector(proxy_to: Callable[..., Proxy]) -> None:
    """With a limit that no test waits for."""
    with unanswering_address() as address, Backend(answer_all) as backend:
        script = "import sys; from llmpipe import cli, otel; otel.CLOSE_LIMIT = 1000.0; sys.argv = ['llmpipe', *sys.argv[1:]]; cli.main()"
        command = [sys.executable, "-c", script, "serve", "--otel", "--listen", "127.0.0.1:0", "--admin", "off"]
        command += ["--backend", backend.url]
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": address, "OTEL_EXPORTER_OTLP_TIMEOUT": "3600", "PATH": ""}
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
            try:
                assert process.stderr is not None
                line = wait_for(process.stderr, "listening")
                port = int(line.partition("address=127.0.0.1:")[2].split()[0])
                with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
                    sock.sendall(GET)
                    assert sock.recv(100).startswith(b"HTTP/1.1 200")
                process.send_signal(signal.SIGTERM)
                wait_for(process.stderr, "stopped")
                time.sleep(0.2)
                assert process.poll() is None
                process.send_signal(signal.SIGTERM)
                assert process.wait(30) == 1
            finally:
                process.kill()


def wait_for(lines: Iterable[str], event: str) -> str:
    for line in lines:
        if f" {event} " in line:
            return line
    raise AssertionError(f"no line {event!r}")


def test_without_the_extra_it_is_one_line() -> None:
    script = (
        "import sys; sys.modules['opentelemetry'] = None; from llmpipe import cli; "
        "sys.argv = ['llmpipe', 'serve', '--demo', '--otel']; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: --otel needs OpenTelemetry (")
    assert done.stderr.endswith("); pip install 'llmpipe[otel]'\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("value", ["x", "0", "-1", "1.5"])
def test_a_queue_that_makes_no_sense_is_one_line(value: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llmpipe", "serve", "--demo", "--otel"],
        env={"OTEL_BSP_MAX_QUEUE_SIZE": value, "PATH": ""},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == f"Error: OTEL_BSP_MAX_QUEUE_SIZE is '{value}'; write how many spans may wait, such as 2048\n"


def test_variables_that_contradict_each_other_are_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llmpipe", "serve", "--demo", "--otel"],
        env={"OTEL_BSP_MAX_QUEUE_SIZE": "100", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "200", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("Error: --otel: ")
    assert done.stderr.count("\n") == 1


def test_the_page_names_every_attribute_every_event_and_every_operation() -> None:
    page = (Path(__file__).parents[1] / "docs" / "access-log.md").read_text().partition("## Spans")[2]
    failed = record(outcome=OUTCOME("upstream_abort"))
    names = set(otel.attributes(failed, SERVERS[0], log.mask_secrets)) | {
        name for _, name, _ in otel.events(failed, FLEET)
    }
    names |= {f"{operation} MODEL" for _, operation in otel.OPERATIONS}
    assert {name for name in names if f"`{name}`" not in page} == set()


def test_nothing_of_it_is_loaded_unless_it_is_asked_for() -> None:
    script = "import sys; from llmpipe import cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not [name for name in done.stdout.split() if name.startswith(("opentelemetry", "llmpipe.otel", "requests"))]
