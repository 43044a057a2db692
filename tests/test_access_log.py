"""One line for each exchange, true in every field, never in the way, and without a secret."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import journey
import pytest
from harness import (
    TIMEOUT,
    Backend,
    Client,
    Connection,
    Proxy,
    Stream,
    answer_all,
    chunk,
    free_port,
    respond,
    sse_head,
    wait_until,
)

from llmpipe._pipe import OUTCOMES, Engine
from llmpipe.config import Settings

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def test_the_fields(proxy_to):
    def serve(conn: Connection) -> None:
        conn.read_request()
        time.sleep(0.05)
        conn.send(sse_head() + chunk(b"data: 1\n\n"))
        time.sleep(0.05)
        conn.send(b"0\r\n\r\n")

    with Backend(serve) as backend:
        proxy = proxy_to(backend)
        with Client(proxy) as client:
            request = b"POST /v1/x?n=1 HTTP/1.1\r\nHost: a\r\nX-Request-ID: my-id\r\nContent-Length: 3\r\n\r\nabc"
            response = client.request(request)
        line = proxy.access()[0]
        assert line["level"] == "info"
        assert line["client"] == "127.0.0.1"
        assert (line["method"], line["path"], line["status"]) == ("POST", "/v1/x?n=1", 200)
        assert (line["outcome"], line["phase"], line["attempts"]) == ("ok", "stream", 1)
        assert (line["backend"], line["request_id"]) == (backend.url, "my-id")
        assert 45 < line["ttft_ms"] < line["duration_ms"] < 60_000
        assert line["duration_ms"] > 95
        assert line["bytes_up"] == len(request)
        assert line["bytes_down"] == len(response.raw)
        assert line["close_ms"] is None


def test_a_line_for_every_exchange(proxy_to):
    proxy = proxy_to(answer_all)
    with Client(proxy) as client:
        for i in range(50):
            client.request(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % i)
        client.request(b"bad\r\n\r\n")
    lines = proxy.access(51)
    assert [line["path"] for line in lines[:50]] == [f"/{i}" for i in range(50)]
    assert lines[50]["outcome"] == "bad_request"
    assert lines[50]["backend"] is None


def test_no_credential_is_logged(proxy_to):
    secret = "s3cr3t-value"
    proxy = proxy_to(answer_all, options=["--log-level", "debug"])
    with Client(proxy) as client:
        for target in (f"/x?api_key={secret}", f"/x?a=1&token={secret}&b=2", f"/x?key={secret}"):
            client.request(
                f"GET {target} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {secret}\r\nX-API-Key: {secret}\r\n"
                f"Cookie: s={secret}\r\nProxy-Authorization: Basic {secret}\r\n\r\n".encode()
            )
    lines = proxy.access(3)
    assert [line["path"] for line in lines] == ["/x?api_key=***", "/x?a=***&token=***&b=***", "/x?key=***"]
    proxy.settled()
    assert secret not in "".join(proxy.stderr)
    assert secret not in proxy.admin("/metrics")[1]


def test_queries_are_shown_where_that_is_asked_for(proxy_to):
    proxy = proxy_to(answer_all, options=["--log-query"])
    with Client(proxy) as client:
        client.request(b"GET /x?api_key=1&a=%31;b HTTP/1.1\r\nHost: a\r\n\r\n")
        client.request(b"GET http://u:pw@a/x?key=1 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert proxy.access(2)[0]["path"] == "/x?api_key=1&a=%31;b"
    assert "pw" not in proxy.access(2)[1]["path"]


def test_nothing_is_written_above_info(proxy_to):
    proxy = proxy_to(answer_all, options=["--log-level", "info"])
    with Client(proxy) as client:
        client.request(GET)
    proxy.access()
    assert proxy.metric("llmpipe_access_lines_dropped_total") == 0


def test_when_nobody_reads_the_log_lines_are_dropped_and_counted_and_nobody_waits():
    """The pipe of stderr fills, then the queue, then lines are lost; forwarding goes on as if nothing were."""
    read, write = os.pipe()
    port, admin = free_port(), free_port()
    with Backend(answer_all) as backend:
        command = [sys.executable, "-m", "llmpipe", "serve", "--listen", f"127.0.0.1:{port}", "--workers", "1"]
        process = subprocess.Popen([*command, "--admin", f"127.0.0.1:{admin}", "--backend", backend.url], stderr=write)
        os.close(write)
        try:

            def listening() -> bool:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT).close()
                except ConnectionRefusedError:
                    return False
                return True

            wait_until(listening)
            stream = Stream(socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT))
            one = b"HTTP/1.1 200 OK"
            for _ in range(200):
                stream.send(GET * 100)
                for _ in range(100):
                    assert stream.read_head().startswith(one)
                    assert stream.read(2) == b"ok"
            stream.close()

            def metrics() -> dict[str, float]:
                with urllib.request.urlopen(f"http://127.0.0.1:{admin}/metrics", timeout=TIMEOUT) as response:
                    lines = response.read().decode().splitlines()
                return {k: float(v) for k, _, v in (line.rpartition(" ") for line in lines if line[0] != "#")}

            # The last exchange ends behind the bytes of its answer.
            wait_until(lambda: metrics()['llmpipe_exchanges_total{outcome="ok"}'] == 20_000)
            dropped = [0.0]
            while (
                len(dropped) < 8 or len(set(dropped[-6:])) > 1 or not dropped[-1]
            ):  # until the control plane has taken every record
                time.sleep(0.5)
                dropped.append(metrics()["llmpipe_access_lines_dropped_total"])
            process.send_signal(signal.SIGTERM)
            with open(read, "rb") as log:
                written = sum(b" access " in line for line in log)
            assert process.wait(TIMEOUT) == 0
            assert written + dropped[-1] == 20_000
        finally:
            process.kill()
            process.wait()


def test_utf8_and_control_characters_in_paths(proxy_to):
    proxy = proxy_to(lambda conn: (conn.read_request(), respond(conn)))
    with Client(proxy) as client:
        client.request(b'GET /%0a"quoted"\\x HTTP/1.1\r\nHost: a\r\n\r\n')
    assert proxy.access()[0]["path"] == '/%0a"quoted"\\x'


def lines_by_path(proxy: Proxy, n: int) -> dict[str, dict]:
    lines = proxy.access(n)
    assert len({line["path"] for line in lines}) == len(lines) == n
    return {line["path"]: line for line in lines}


def test_the_fields_of_what_went_wrong(proxy_to):
    def serve(conn: Connection) -> None:
        head = conn.read_head()
        if b"/silent" in head:
            conn.wait_eof()
        elif b"/reset" in head:
            conn.reset()
        else:
            conn.send(sse_head() + chunk(b"data: 1\n\n"))
            if b"/truncated" not in head:
                conn.wait_eof()
            conn.close()

    with Backend(serve) as backend:
        proxy = proxy_to(backend, options=["--ttft-timeout", "2s"])
        got = {}
        for path in ("/silent", "/reset", "/truncated", "/left"):
            with Client(proxy) as client:
                client.send(b"GET %s HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % path.encode())
                got[path] = client.read_head() + client.recv() if path == "/left" else client.read_eof()
        lines = lines_by_path(proxy, 4)
        summary = {path: (line["status"], line["outcome"], line["phase"]) for path, line in lines.items()}
        assert summary == {
            "/silent": (504, "timeout_ttft", "wait"),
            "/reset": (502, "upstream_error", "wait"),
            "/truncated": (200, "upstream_abort", "stream"),
            "/left": (499, "client_abort", "stream"),
        }
        for path, line in lines.items():
            assert line["bytes_down"] == len(got[path])
            assert line["backend"] == backend.url
            assert line["attempts"] == 1
            assert (line["ttft_ms"] is None) == (path in ("/silent", "/reset"))
            assert (line["close_ms"] is None) == (path != "/left")
            assert len(line["request_id"]) == 32
        assert 1999 <= lines["/silent"]["duration_ms"] < 60_000


def test_attempts_and_the_backend_that_answered(proxy_to):
    def reset(conn: Connection) -> None:
        conn.read_head()
        conn.reset()

    with Backend(reset) as bad, Backend(answer_all) as good:
        proxy = proxy_to(bad, good)
        with Client(proxy) as client:
            for path in ("/1", "/2"):  # one of them meets the bad one first
                assert client.request(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()).status == 200
        lines = lines_by_path(proxy, 2)
        attempts = {line["attempts"] for line in lines.values()}
        assert attempts in ({1, 2}, {2})  # both, where the time for which it is left out was over
        assert {line["backend"] for line in lines.values()} == {good.url}


def test_every_field_and_no_other(proxy_to):
    proxy = proxy_to(answer_all)
    with Client(proxy) as client:
        client.request(GET)
    assert list(proxy.access()[0]) == [
        *("time", "level", "event", "client", "method", "path", "status", "outcome", "phase", "backend", "ttft_ms"),
        *("duration_ms", "bytes_up", "bytes_down", "attempts", "reason", "request_id", "close_ms", "pool", "model"),
        *("queued_ms", "connect_ms", "answered_ms", "tokens_prompt", "tokens_completion", "tokens_cached", "events"),
        *("failed", "trace_id", "parent_id"),
    ]


def test_the_engines_ring_overflows_without_a_wait():
    """Nobody takes the records: the ring keeps what it has room for, the rest is counted, every request is answered."""
    requests = 6000
    engine = Engine(Settings())
    engine.configure([])
    thread = threading.Thread(target=engine.run)
    thread.start()
    try:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            stream = Stream(socket.create_connection(listener.getsockname()))
            engine.listen([listener.fileno()], [engine], most=10, resume_at=5)
            wait_until(lambda: engine.clients == 1)
            engine.end_listening()
            wait_until(lambda: not engine.listens)
        for _ in range(requests // 100):
            stream.send(GET * 100)
            for _ in range(100):
                assert stream.read_head().startswith(b"HTTP/1.1 503 ")
                assert b"no_backend" in stream.recv_until(b"}}")
        stream.close()
        wait_until(lambda: engine.clients == 0)
        records = engine.take_records()
        assert 1000 < len(records) < requests
        assert len(records) + engine.stats()["records_dropped"] == requests
        assert {OUTCOMES[record.outcome] for record in records} == {"no_backend"}
        assert engine.take_records() == []
    finally:
        engine.stop()
        thread.join(TIMEOUT)
        engine.close()


def test_what_a_line_says_of_a_request_that_had_it_all(tmp_path: Path) -> None:
    """A real wait, a real refusal, a real answer with figures: each value against the client's own clock."""
    with journey.travelled(tmp_path) as (proxy, way):
        (line,) = [line for line in proxy.access(2) if line["request_id"] == way.request_id]
        assert (line["pool"], line["model"], line["backend"]) == ("large", "tiny-1", "gpu2")
        assert (line["status"], line["outcome"], line["phase"]) == (200, "ok", "stream")
        assert (line["failed"], line["reason"], line["attempts"]) == (["gpu1:ECONNREFUSED"], "ECONNREFUSED", 2)
        assert (line["trace_id"], line["parent_id"]) == (journey.TRACE, journey.PARENT)
        assert line["tokens_prompt"] == journey.PROMPT_TOKENS
        assert line["tokens_completion"] == journey.TOKENS
        assert line["tokens_cached"] is None  # that backend tells of none
        assert line["path"] == "/v1/chat/completions?api_key=***"
        assert (line["bytes_up"], line["bytes_down"]) == (len(way.request), len(way.answer))
        assert 2 <= line["events"] <= journey.TOKENS + 2
        # The wait in the queue is none of the connect's, and everything is in its order.
        assert way.queued * 1000 <= line["queued_ms"]
        assert line["connect_ms"] >= 0
        assert line["queued_ms"] + line["connect_ms"] <= line["answered_ms"] + 0.002  # three roundings
        assert line["answered_ms"] + way.before_first * 1000 <= way.first * 1000
        assert line["queued_ms"] + way.before_first * 1000 <= line["ttft_ms"] <= way.first * 1000
        assert line["ttft_ms"] + way.streamed * 1000 <= line["duration_ms"]
        # The one before it had the place: it waited for nothing, and its backend told of no tokens.
        (before,) = [line for line in proxy.access(2) if line["request_id"] != way.request_id]
        assert (before["pool"], before["model"], before["backend"]) == ("large", "tiny", "gpu1")
        assert (before["queued_ms"], before["failed"], before["attempts"]) == (0, None, 1)
        assert (before["trace_id"], before["parent_id"]) == (None, None)
        assert (before["tokens_prompt"], before["tokens_completion"], before["tokens_cached"]) == (None, None, None)
        assert before["duration_ms"] >= way.queued * 1000
        # As the metrics count them.
        assert proxy.metric("llmpipe_queue_wait_seconds_count", pool="large") == 1
        assert proxy.metric("llmpipe_tokens_total", kind="completion", model="tiny-1") == journey.TOKENS


@pytest.mark.parametrize("asks_for_usage", [True, False])
def test_what_a_line_says_of_a_request_that_came_in_pieces(tmp_path: Path, asks_for_usage: bool) -> None:
    """Its pool is known by its model, before which no backend is connected: that time is not the backend's."""
    more = {"stream_options": {"include_usage": True}} if asks_for_usage else {}
    with journey.travelled(tmp_path) as (proxy, _), Client(proxy) as client:
        request = journey.chat("other", "in-pieces", "traceparent: none of its form", stream=True, **more)
        cut = request.index(b'"model"') + 4
        began = time.monotonic()
        client.send(request[:cut])
        # What comes before the end of the head is not part of the time to connect.
        wait_until(lambda: '"phase": "body"' in proxy.admin("/exchanges?id=in-pieces")[1])
        waits = time.monotonic()
        time.sleep(journey.PAUSE)
        waited = time.monotonic() - waits - journey.TURN
        client.send(request[cut:])
        response = client.read_response()
        ended = time.monotonic()
        (line,) = [line for line in proxy.access(3) if line["request_id"] == "in-pieces"]
        assert (line["pool"], line["model"], line["backend"], line["failed"]) == ("other", "other", "cpu1", None)
        assert (line["queued_ms"], line["attempts"], line["status"]) == (0, 1, 200)
        assert (line["trace_id"], line["parent_id"]) == (None, None)
        assert line["bytes_down"] == len(response.raw)
        assert waited * 1000 <= line["connect_ms"] <= line["answered_ms"] <= (ended - began) * 1000
        told = (journey.PROMPT_TOKENS, journey.TOKENS) if asks_for_usage else (None, None)
        assert (line["tokens_prompt"], line["tokens_completion"]) == told
