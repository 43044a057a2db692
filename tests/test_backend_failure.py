"""Rules E: the backend fails. Nothing is lost silently, nothing is repeated, no end is clean that is not."""

import hashlib
import json
import random
import socket
import threading
import time
from contextlib import ExitStack
from typing import Any

import httpx
import openai
import pytest
from harness import (
    ERROR_TYPES,
    Backend,
    Client,
    Connection,
    Proxy,
    answer_all,
    chunk,
    free_port,
    respond,
    sse_head,
    wait_until,
)

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def post(body: bytes) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def reset_before_head(conn: Connection) -> None:
    conn.read_request()
    conn.reset()


def eof_before_head(conn: Connection) -> None:
    conn.read_request()
    conn.close()


def half_a_head(conn: Connection) -> None:
    conn.read_request()
    conn.send(b"HTTP/1.1 200 OK\r\nContent-")
    conn.close()


def broken_head(conn: Connection) -> None:
    conn.read_request()
    conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nokk")
    conn.wait_eof()


def silent(conn: Connection) -> None:
    conn.read_request()
    conn.wait_eof()


def check_error(response, status: int, code: str) -> None:
    assert response.status == status
    error = json.loads(response.body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["type"], error["param"]) == (code, ERROR_TYPES[status], None)
    assert error["message"].endswith(".")
    assert response.values(b"content-type") == [b"application/json"]
    assert response.values(b"content-length") == [b"%d" % len(response.body)]
    assert len(response.values(b"x-request-id")) == 1


def interim_only(conn: Connection) -> None:
    conn.read_request()
    conn.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")
    conn.close()


NOTHING_CAME = [reset_before_head, eof_before_head]
SOMETHING_CAME = [half_a_head, broken_head]
FAILURES = NOTHING_CAME + SOMETHING_CAME


@pytest.mark.parametrize("failure", NOTHING_CAME)
def test_e1_the_next_backend_is_tried(proxy_to, failure):
    with Backend(failure) as bad, Backend(answer_all) as good:
        proxy = proxy_to(bad, good)
        for _ in range(4):
            with Client(proxy) as client:
                response = client.request(post(b"x" * 1000))
                assert (response.status, response.body) == (200, b"ok")
        assert bad.connections
        assert proxy.metric("llmpipe_retries_total") >= 1
        proxy.wait_metric("llmpipe_exchanges_total", 4, outcome="ok")
        assert max(line["attempts"] for line in proxy.access(4)) == 2
        assert proxy.metric("llmpipe_in_flight", backend=bad.url) == 0


@pytest.mark.parametrize("failure", FAILURES)
def test_e1_without_another_backend_502(proxy_to, failure):
    proxy = proxy_to(failure)
    with Client(proxy) as client:
        check_error(client.request(GET), 502, "upstream_error")
        # The client is not to blame: its connection goes on.
        check_error(client.request(GET), 502, "upstream_error")
    # An exchange is counted after its answer is sent.
    proxy.wait_metric("llmpipe_exchanges_total", 2, outcome="upstream_error")
    assert proxy.metric("llmpipe_streaming_errors_total", reason="upstream_error") == 2


def test_e1_connect_refused(proxy_to):
    dead = f"http://127.0.0.1:{free_port()}"
    proxy = proxy_to(dead)
    with Client(proxy) as client:
        check_error(client.request(GET), 502, "connect_error")
    assert proxy.metric("llmpipe_backend_failures_total", backend=dead) == 1
    with Backend(answer_all) as good:
        proxy = proxy_to(dead, good)
        for _ in range(3):
            with Client(proxy) as client:
                assert client.request(GET).status == 200


def test_e1_no_backend_that_answers_and_retry_after(proxy_to):
    proxy = proxy_to(silent, options=["--drain-timeout", "100ms"])
    with Client(proxy) as client:
        client.send(GET)
        wait_until(lambda: proxy.metric("llmpipe_clients") == 1)
        time.sleep(0.1)
        proxy.signal(15)
        response = client.read_response()
        check_error(response, 503, "shutdown")
        assert response.values(b"retry-after") == [b"1"]
    assert proxy.wait_exit() == 1


@pytest.mark.parametrize("status", [429, 502, 503])
def test_e1_statuses_that_are_retried_if_configured(proxy_to, status):
    def refuse(conn: Connection) -> None:
        while True:
            conn.read_request()
            conn.send(b"HTTP/1.1 %d No\r\nContent-Length: 2\r\n\r\nno" % status)

    with Backend(refuse) as bad, Backend(answer_all) as good:
        proxy = proxy_to(bad, good, options=["--retry-status", str(status)])
        for _ in range(4):
            with Client(proxy) as client:
                assert client.request(post(b"hello")).status == 200
        assert bad.connections
        assert proxy.metric("llmpipe_retries_total", cause="status") >= 1
        # It answered: it is not left out.
        assert proxy.metric("llmpipe_backend_failures_total", backend=bad.url) == 0
        proxy = proxy_to(bad, good)
        statuses = set()
        for _ in range(4):
            with Client(proxy) as client:
                statuses.add(client.request(GET).status)
        assert statuses == {200, status}
        proxy = proxy_to(bad, options=["--retry-status", str(status)])
        with Client(proxy) as client:
            assert client.request(GET).body == b"no"


def test_e1_the_ttft_limit_is_one_for_the_exchange(proxy_to):
    """When it is over nobody waits any more, so that no other backend begins to work on the prompt."""
    with ExitStack() as stack:
        slow = [stack.enter_context(Backend(silent)) for _ in range(4)]
        proxy = proxy_to(*slow, options=["--ttft-timeout", "1s"])
        with Client(proxy) as client:
            start = time.monotonic()
            check_error(client.request(GET), 504, "timeout_ttft")
            assert time.monotonic() - start >= 0.99
        assert proxy.access()[0]["attempts"] == 1
        assert proxy.access()[0]["reason"] == "deadline"
        assert sum(len(backend.connections) for backend in slow) == 1
        # Slow is not dead.
        assert not any(proxy.metric("llmpipe_backend_failures_total", backend=backend.url) for backend in slow)


@pytest.mark.parametrize("failure", NOTHING_CAME)
@pytest.mark.parametrize("request_", [GET, post(b"x" * 5000)], ids=["get", "post"])
def test_e1_a_request_that_kills_its_server_is_sent_twice_at_most(proxy_to, failure, request_):
    with ExitStack() as stack:
        backends = [stack.enter_context(Backend(failure)) for _ in range(4)]
        proxy = proxy_to(*backends)
        with Client(proxy) as client:
            check_error(client.request(request_), 502, "upstream_error")
        assert sum(len(backend.connections) for backend in backends) == 2
        assert proxy.access()[0]["attempts"] == 2
        assert proxy.metric("llmpipe_retries_total", cause="ended") == 1
        assert sum(proxy.metric("llmpipe_backend_failures_total", backend=backend.url) for backend in backends) == 2


def test_b3_behind_a_stale_connection_another_server_is_asked_if_one_has_a_place(proxy_to):
    """The server may be dying, and still accept: no request fails that had not begun to stream."""
    die = threading.Event()

    def dying(conn: Connection) -> None:
        while True:
            conn.read_request()
            if die.is_set():
                time.sleep(0.2)
                conn.reset()
                return
            respond(conn, b"dying")

    with Backend(dying) as bad, Backend(answer_all) as good:
        proxy = proxy_to(bad, good)
        with Client(proxy) as client:
            wait_until(lambda: client.request(GET).body == b"dying")
            client.request(GET)
            die.set()
            assert client.request(GET).body == b"ok"
        assert proxy.metric("llmpipe_stale_replays_total") == 1
        assert proxy.metric("llmpipe_retries_total") == 0
        assert len(bad.connections) == 1


def test_e1_a_stale_connection_counts_as_a_try(proxy_to):
    """It met a connection that closed, and then a server that died of it: that is twice."""

    def once_then_die(conn: Connection) -> None:
        if not conn.index:
            conn.read_request()
            respond(conn)
        conn.read_request()
        conn.close()

    with Backend(once_then_die) as bad:
        proxy = proxy_to(bad)
        with Client(proxy) as client:
            assert [client.request(GET).status for _ in range(2)] == [200, 502]
        assert len(bad.connections) == 2
        assert proxy.metric("llmpipe_stale_replays_total") == 1
        assert proxy.metric("llmpipe_retries_total") == 0


@pytest.mark.parametrize("failure", [*SOMETHING_CAME, interim_only], ids=lambda failure: failure.__name__)
def test_e1_after_a_byte_of_an_answer_the_request_is_not_sent_again(proxy_to, failure):
    """It was carried out, whatever is wrong with the answer."""
    with Backend(failure) as bad, Backend(failure) as other:
        proxy = proxy_to(bad, other)
        with Client(proxy) as client:
            client.send(post(b"x" * 1000))
            response = client.read_response()
            if response.status == 103:
                response = client.read_response()
            check_error(response, 502, "upstream_error")
        assert len(bad.connections) + len(other.connections) == 1
        line = proxy.access()[0]
        assert line["attempts"] == 1
        assert line["reason"]
        assert proxy.metric("llmpipe_failures_total", reason=line["reason"]) == 1


def test_e1_refused_connects_are_tried_on_every_backend(proxy_to):
    dead = [f"http://127.0.0.1:{free_port()}" for _ in range(5)]
    with Backend(answer_all) as good:
        proxy = proxy_to(*dead, good)
        with Client(proxy) as client:
            assert client.request(GET).status == 200
        assert proxy.access()[0]["attempts"] == 6


def test_e1_a_failed_backend_is_left_out_for_a_growing_time_and_gets_nothing_meanwhile(proxy_to):
    dead = f"http://127.0.0.1:{free_port()}"
    proxy = proxy_to(dead, answer_all, options=["--log-level", "debug"])

    def times_out() -> list[dict[str, Any]]:
        return [line for line in proxy.log if line["event"] == "backend left out"]

    with Client(proxy) as client:
        end = time.monotonic() + 60
        while len(times_out()) < 4:
            assert client.request(GET).status == 200
            assert time.monotonic() < end
    lines = times_out()[:4]
    assert [line["seconds"] for line in lines] == [0.1, 0.2, 0.4, 0.8]
    assert {line["reason"] for line in lines} == {"ECONNREFUSED"}
    # Each try ended a time in which it was not left out, or there would be more of them.
    tries = proxy.metric("llmpipe_backend_exchanges_total", backend=dead)
    wait_until(lambda: len(times_out()) >= tries)


def test_e1_the_retry_budget(proxy_to):
    with Backend(eof_before_head) as bad, Backend(eof_before_head) as worse:
        proxy = proxy_to(bad, worse)
        for _ in range(40):
            with Client(proxy) as client:
                assert client.request(GET).status == 502
        # 10 at the start and one for every five exchanges, not one for each.
        assert 10 <= proxy.metric("llmpipe_retries_total") <= 18


@pytest.mark.parametrize("size", [0, 1, 8192, 100_000, 900_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_e1_the_same_body_reaches_the_next_backend(proxy_to, size, chunked):
    body = bytes(i % 251 for i in range(size))
    got = []

    def remember(conn: Connection) -> None:
        while True:
            got.append(conn.read_request().body)
            respond(conn)

    def head_only(conn: Connection) -> None:
        conn.read_head()
        time.sleep(0.05)
        conn.reset()

    with Backend(head_only) as bad, Backend(remember) as good:
        proxy = proxy_to(bad, good)
        for _ in range(2):
            with Client(proxy) as client:
                if chunked:
                    framed = b"".join(chunk(body[i : i + 5000]) for i in range(0, size, 5000)) + b"0\r\n\r\n"
                    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + framed)
                else:
                    client.send(post(body))
                assert client.read_response().status == 200
        assert bad.connections
        assert [hashlib.sha256(b).digest() for b in got] == [hashlib.sha256(body).digest()] * 2
        proxy.settled()
        assert proxy.metric("llmpipe_buffers_held") == 0


def test_e1_above_the_bound_nothing_is_repeated(proxy_to):
    """What is no longer kept cannot be sent again: 502, and the other backend sees nothing of it."""

    def much_then_reset(conn: Connection) -> None:
        conn.read_head()
        conn.read(2 << 20)
        conn.reset()

    with Backend(much_then_reset) as bad, Backend(much_then_reset) as other:
        proxy = proxy_to(bad, other, options=["--failover-body", "64KB"])
        with Client(proxy) as client:
            try:
                client.send(post(b"x" * (4 << 20)))
            except ConnectionError:
                pass
            assert client.read_response().status == 502
        assert len(bad.connections) + len(other.connections) == 1


# ------------------------------------------------------------------------------------------- E2: after a byte was forwarded

ENDS = {
    "chunked, FIN": (sse_head() + chunk(b"data: 1\n\n"), "close"),
    "chunked, RST": (sse_head() + chunk(b"data: 1\n\n"), "reset"),
    "chunked, inside a chunk": (sse_head() + b"ff\r\ndata: 1\n\n", "close"),
    "chunked, before the last line": (sse_head() + chunk(b"data: 1\n\n") + b"0\r\n", "close"),
    "chunked, bad size": (sse_head() + chunk(b"data: 1\n\n") + b"zz\r\n", "wait"),
    "length, FIN": (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\ndata: 1\n\n", "close"),
    "length, RST": (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\ndata: 1\n\n", "reset"),
    "until close, RST": (b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n", "reset"),
}


def ending(name: str):
    data, how = ENDS[name]
    go = threading.Event()

    def script(conn: Connection) -> None:
        conn.read_request()
        conn.send(data)
        go.wait(20)
        if how == "wait":
            conn.wait_eof()
        else:
            {"close": conn.close, "reset": conn.reset}[how]()

    return script, go


@pytest.mark.parametrize("name", ENDS)
def test_e2_a_truncated_answer_looks_truncated(proxy_to, name):
    script, go = ending(name)
    with Backend(script) as backend, Backend(answer_all) as other:
        proxy = proxy_to(backend, other)
        with Client(proxy) as client:
            client.send(GET)
            head = client.read_head()
            body = client.recv() if "RST" in name else b""
            go.set()
            try:
                body += client.read_eof()
                ended = "FIN"
            except ConnectionResetError:
                ended = "RST"
        assert b"data: 1\n\n" in body
        assert b"[DONE]" not in body
        assert b"0\r\n\r\n" not in body
        if b"chunked" not in head and b"Content-Length" not in head:
            assert ended == "RST"
        assert len(body) < 100
        line = proxy.access()[0]
        assert (line["outcome"], line["status"]) == ("upstream_abort", 200)
        assert proxy.metric("llmpipe_streaming_errors_total", reason="upstream_abort") == 1
        assert len(backend.connections) == 1
        assert not other.connections


@pytest.mark.parametrize("name", ENDS)
def test_e2_clients_raise(proxy_to, name):
    script, go = ending(name)
    go.set()
    proxy = proxy_to(script)
    with httpx.Client(base_url=proxy.url, timeout=30) as client, pytest.raises(httpx.TransportError):
        client.get("/")
    with (
        openai.OpenAI(base_url=proxy.url + "/v1", api_key="x", max_retries=0) as client,
        pytest.raises((openai.APIConnectionError, httpx.TransportError, openai.APIError)),
    ):
        answer = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}], stream=True)
        for _ in answer:
            pass


def test_e2_what_was_held_for_a_slow_client_comes_before_the_end(proxy_to):
    body = b"x" * (8 << 20)

    def script(conn: Connection) -> None:
        conn.read_request()
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + body)
        conn.close()

    proxy = proxy_to(script)
    with Client(proxy) as client:
        client.send(GET)
        wait_until(lambda: proxy.metric("llmpipe_buffers_held") == 1)
        time.sleep(0.2)
        client.read_head()
        assert client.read_eof() == body
    assert proxy.access()[0]["outcome"] == "upstream_abort"


HELD_BY_KERNELS = {
    "until close": (GET, b"HTTP/1.1 200 OK\r\n\r\n"),
    "chunks for 1.0": (b"GET / HTTP/1.0\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "tunnel": (
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    ),
}


class SmallWindow(Client):
    """A client that has room for little, so that most of an answer lies with the proxy's kernel."""

    def __init__(self, proxy: Proxy) -> None:
        super().__init__(proxy)
        self.sock.close()
        self.sock = socket.socket()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        self.sock.connect(("127.0.0.1", proxy.port))
        self.sock.settimeout(30)


@pytest.mark.parametrize("how", HELD_BY_KERNELS)
def test_e2_an_rst_comes_behind_what_the_kernel_holds_for_a_slow_client(proxy_to, how):
    request, head = HELD_BY_KERNELS[how]
    body = random.Random(1).randbytes(1 << 20)
    sent = chunk(body) if "chunked" in head.decode() else body
    go = threading.Event()

    def script(conn: Connection) -> None:
        conn.read_request()
        conn.send(head + sent)
        go.wait(60)
        conn.reset()

    proxy = proxy_to(script)
    with SmallWindow(proxy) as client:
        client.send(request)
        # All of it was sent, and nothing is held: it is with the kernel.
        proxy.wait_metric("llmpipe_streaming_bytes_forwarded_total", len(body))
        wait_until(lambda: proxy.metric("llmpipe_buffers_held") == 0)
        go.set()
        assert proxy.access()[0]["outcome"] == "upstream_abort"
        assert proxy.metric("llmpipe_clients") == 1
        client.read_head()
        got = bytes(client.buffer)
        client.buffer.clear()
        with pytest.raises(ConnectionResetError):
            while data := client.sock.recv(65536):
                got += data
        assert got == body
        proxy.settled()


def test_e2_an_rst_does_not_wait_for_ever_for_a_client_that_reads_nothing(proxy_to):
    go = threading.Event()

    def script(conn: Connection) -> None:
        conn.read_request()
        conn.send(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(1 << 20))
        go.wait(60)
        conn.reset()

    proxy = proxy_to(script, options=["--send-timeout", "2s"])
    with SmallWindow(proxy) as client:
        client.send(GET)
        proxy.wait_metric("llmpipe_streaming_bytes_forwarded_total", 1 << 20)
        wait_until(lambda: proxy.metric("llmpipe_buffers_held") == 0)
        started = time.monotonic()
        go.set()
        assert proxy.access()[0]["outcome"] == "upstream_abort"
        proxy.wait_metric("llmpipe_clients", 0, 30)
        assert time.monotonic() - started > 1.9
        with pytest.raises(ConnectionResetError):
            while client.sock.recv(65536):
                pass


def error_events(data: bytes) -> list[dict]:
    events = [event for event in data.split(b"\n\n") if event.startswith(b'data: {"error"')]
    return [json.loads(event.removeprefix(b"data: "))["error"] for event in events]


EVENT = ["--on-midstream-error", "event"]


class TestErrorEvent:
    def body(self, proxy_to, answer: bytes, how: str = "close", options=EVENT) -> bytes:
        go = threading.Event()

        def script(conn: Connection) -> None:
            conn.read_request()
            conn.send(answer)
            go.wait(20)
            {"close": conn.close, "reset": conn.reset}[how]()

        proxy = proxy_to(script, options=options)
        with Client(proxy) as client:
            client.send(GET)
            client.read_head()
            body = client.recv() if how == "reset" else b""
            go.set()
            try:
                body += client.read_eof()
            except ConnectionResetError:
                body += b"<RST>"
        assert proxy.access()[0]["outcome"] == "upstream_abort"
        return body

    def test_one_event_between_events_and_no_terminator(self, proxy_to):
        body = self.body(proxy_to, sse_head() + chunk(b"data: 1\n\n"))
        size, _, rest = body.removeprefix(chunk(b"data: 1\n\n")).partition(b"\r\n")
        assert len(rest) == int(size, 16) + 2
        (error,) = error_events(rest)
        assert error["code"] == "upstream_abort"
        assert not body.endswith(b"0\r\n\r\n")
        assert b"[DONE]" not in body

    def test_before_the_first_event(self, proxy_to):
        assert len(error_events(self.body(proxy_to, sse_head()).partition(b"\r\n")[2])) == 1

    def test_after_a_comment(self, proxy_to):
        body = self.body(proxy_to, sse_head() + chunk(b": ping\n\n"))
        assert b'data: {"error"' in body

    @pytest.mark.parametrize("tail", [b"data: 2", b"data: 2\n", b"event: x\n: note\n", b"\xe2"])
    def test_never_inside_an_event(self, proxy_to, tail):
        body = self.body(proxy_to, sse_head() + chunk(b"data: 1\n\n" + tail))
        assert body == chunk(b"data: 1\n\n" + tail)

    def test_never_inside_a_chunk(self, proxy_to):
        assert self.body(proxy_to, sse_head() + b"ff\r\ndata: 1\n\n") == b"ff\r\ndata: 1\n\n"

    def test_not_into_a_counted_body(self, proxy_to):
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 99\r\n\r\n"
        assert self.body(proxy_to, head + b"data: 1\n\n") == b"data: 1\n\n"

    def test_not_into_other_content(self, proxy_to):
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        assert self.body(proxy_to, head + chunk(b"{")) == chunk(b"{")

    def test_until_close(self, proxy_to):
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
        body = self.body(proxy_to, head + b"data: 1\n\n", "reset")
        # The RST may overtake the event on its way to the reader, but it ends the answer.
        assert body.endswith(b"<RST>")

    def test_the_openai_client_raises(self, proxy_to):
        def script(conn: Connection) -> None:
            conn.read_request()
            conn.send(sse_head() + chunk(b'data: {"choices": []}\n\n'))
            conn.close()

        proxy = proxy_to(script, options=EVENT)
        with openai.OpenAI(base_url=proxy.url + "/v1", api_key="x", max_retries=0) as client:
            stream = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}], stream=True)
            with pytest.raises(openai.APIError, match="broke off"):
                for _ in stream:
                    pass


# ------------------------------------------------------------------------------------------------- E1 and the way there


def test_e1_a_connect_that_times_out_goes_to_the_next_backend(proxy_to):
    listener, fillers = socket.create_server(("127.0.0.1", 0), backlog=0), []
    try:
        for _ in range(4):  # its backlog is full: it neither accepts nor refuses
            fillers.append(socket.socket())
            fillers[-1].setblocking(False)
            fillers[-1].connect_ex(listener.getsockname())
        time.sleep(0.05)
        dead = f"http://127.0.0.1:{listener.getsockname()[1]}"
        proxy = proxy_to(dead, answer_all, options=["--connect-timeout", "200ms"])
        for _ in range(3):
            with Client(proxy) as client:
                assert client.request(post(b"hello")).status == 200
        assert proxy.metric("llmpipe_backend_failures_total", backend=dead) >= 1
        assert proxy.wait_log("backend left out")["backend"] == dead
    finally:
        for sock in (listener, *fillers):
            sock.close()


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("failure", ["reset", "503"])
def test_e1_an_upload_that_is_under_way_goes_on_to_the_next_backend(proxy_to, failure, chunked):
    """The beginning is sent again, the rest follows as it comes."""
    body = bytes(i % 251 for i in range(400_000))
    got = []

    def fail_early(conn: Connection) -> None:
        conn.read_head()
        conn.read(1000)
        if failure == "reset":
            conn.reset()
        else:
            conn.send(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\nno")
            conn.wait_eof()

    def remember(conn: Connection) -> None:
        while True:
            got.append(conn.read_request().body)
            respond(conn)

    with Backend(fail_early) as bad, Backend(remember) as good:
        proxy = proxy_to(bad, good, options=["--retry-status", "503"])
        for _ in range(2):  # one of them at least meets the bad one
            with Client(proxy) as client:
                framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)
                client.send(b"POST / HTTP/1.1\r\nHost: a\r\n%s\r\n\r\n" % framing)
                for start in range(0, len(body), 40_000):
                    piece = body[start : start + 40_000]
                    client.send(chunk(piece) if chunked else piece)
                    time.sleep(0.01)
                if chunked:
                    client.send(b"0\r\n\r\n")
                assert client.read_response().status == 200
        assert bad.connections
        assert got == [body, body]
        proxy.settled()
        assert proxy.metric("llmpipe_buffers_held") == 0


@pytest.mark.parametrize("option", ["ttft", "idle", "total"])
def test_e2_a_time_out_inside_a_stream_is_told_too(proxy_to, option):
    def stall(conn: Connection) -> None:
        conn.read_request()
        conn.send(sse_head() + (b"" if option == "ttft" else chunk(b"data: 1\n\n")))
        conn.wait_eof()

    proxy = proxy_to(stall, options=[*EVENT, f"--{option}-timeout", "2s"])
    with Client(proxy) as client:
        client.send(GET)
        client.read_head()
        body = client.read_eof()
    assert body.count(b'data: {"error"') == 1
    assert b'"code": "timeout_%s"' % option.encode() in body
    assert not body.endswith(b"0\r\n\r\n")


def test_e2_a_1_0_client_gets_the_event_without_chunks(proxy_to):
    go = threading.Event()

    def script(conn: Connection) -> None:
        conn.read_request()
        conn.send(sse_head() + chunk(b"data: 1\n\n"))
        go.wait(20)
        conn.close()

    proxy = proxy_to(script, options=EVENT)
    with Client(proxy) as client:
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        assert b"chunked" not in client.read_head()
        assert client.recv() == b"data: 1\n\n"
        go.set()
        with pytest.raises(ConnectionResetError):
            # It ends without a frame, so that only an RST can say that it is not whole.
            client.read_eof()
    assert proxy.access()[0]["outcome"] == "upstream_abort"
