"""Rule F: each time-out has its own outcome and its own answer; 0 turns it off."""

import contextlib
import socket
import threading
import time

import pytest
from harness import Backend, Client, Connection, chunk, respond, sse_head, unanswering_address, wait_until

from llmpipe.config import PoolSettings

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n"


def silent(conn: Connection) -> None:
    conn.read_request()
    conn.wait_eof()


def silent_after_head(conn: Connection) -> None:
    conn.read_request()
    conn.send(sse_head())
    conn.wait_eof()


def stalls(conn: Connection) -> None:
    conn.read_request()
    conn.send(sse_head() + chunk(b"data: 1\n\n"))
    conn.wait_eof()


def only_pings(*first: bytes):
    def script(conn: Connection) -> None:
        conn.read_request()
        conn.send(sse_head() + b"".join(first))
        conn.sock.settimeout(0.02)
        while True:
            try:
                if not conn.sock.recv(1):
                    return
            except TimeoutError:
                conn.send(chunk(b": ping\n\n"))

    return script


def check(proxy, outcome: str, status: int) -> dict:
    line = proxy.access()[0]
    assert (line["outcome"], line["status"], line["reason"]) == (outcome, status, "deadline")
    assert proxy.metric("llmpipe_failures_total", reason="deadline") == 1
    assert proxy.metric("llmpipe_exchanges_total", outcome=outcome) == 1
    assert proxy.metric("llmpipe_streaming_errors_total", reason=outcome) == 1
    proxy.settled()
    assert proxy.metric("llmpipe_upstreams") == 0
    return line


@pytest.mark.parametrize(
    ("script", "option", "outcome"),
    [(silent, "--ttft-timeout", "timeout_ttft"), (silent, "--total-timeout", "timeout_total")],
)
def test_before_the_head_504(proxy_to, script, option, outcome):
    proxy = proxy_to(script, options=[option, "2s"])
    with Client(proxy) as client:
        start = time.monotonic()
        response = client.request(GET)
        assert time.monotonic() - start > 1.99
    assert response.status == 504
    assert response.error()["code"] == outcome
    check(proxy, outcome, 504)


@pytest.mark.parametrize(
    ("script", "option", "outcome"),
    [
        (silent_after_head, "--ttft-timeout", "timeout_ttft"),
        (only_pings(), "--ttft-timeout", "timeout_ttft"),
        (stalls, "--idle-timeout", "timeout_idle"),
        (only_pings(chunk(b"data: 1\n\n")), "--idle-timeout", "timeout_idle"),
        (stalls, "--total-timeout", "timeout_total"),
        (only_pings(chunk(b"data: 1\n\n")), "--total-timeout", "timeout_total"),
    ],
)
def test_after_the_head_truncated(proxy_to, script, option, outcome):
    proxy = proxy_to(script, options=[option, "2s"])
    with Client(proxy) as client:
        start = time.monotonic()
        client.send(GET)
        client.read_head()
        body = client.read_eof()
        assert time.monotonic() - start > 1.99
    assert not body.endswith(b"0\r\n\r\n")
    check(proxy, outcome, 200)


def test_content_between_pings_does_reset_the_timer(proxy_to):
    def slow(conn: Connection) -> None:
        conn.read_request()
        conn.send(sse_head())
        for i in range(6):
            conn.send(chunk(b": ping\n\n"))
            time.sleep(0.5)
            conn.send(chunk(b": ping\n\ndata: %d\n\n" % i))
        conn.send(b"0\r\n\r\n")

    proxy = proxy_to(slow, options=["--idle-timeout", "2500ms", "--ttft-timeout", "2500ms"])
    with Client(proxy) as client:
        response = client.request(GET)
    assert response.body.count(b"data: ") == 6
    assert proxy.access()[0]["outcome"] == "ok"


def test_ttft_is_counted_from_the_request_not_from_the_upload(proxy_to):
    proxy = proxy_to(lambda conn: (conn.read_request(), respond(conn)), options=["--ttft-timeout", "2s"])
    with Client(proxy) as client:
        client.send(POST)
        for _ in range(10):
            time.sleep(0.25)
            client.send(b"x")
        assert client.read_response().status == 200


def test_connect(proxy_to):
    with unanswering_address() as url:
        proxy = proxy_to(url, options=["--connect-timeout", "300ms"])
        with Client(proxy) as client:
            response = client.request(GET)
        assert response.status == 504
        assert response.error()["code"] == "timeout_connect"
        line = check(proxy, "timeout_connect", 504)
        assert line["phase"] == "connect"


def test_a_client_that_stalls_in_its_body_408(proxy_to):
    proxy = proxy_to(lambda conn: (conn.read_head(), conn.wait_eof()), options=["--idle-timeout", "300ms"])
    with Client(proxy) as client:
        response = client.request(POST + b"x")
        assert response.status == 408
        assert response.error()["code"] == "timeout_body"
        assert client.read_eof() == b""
    check(proxy, "timeout_body", 408)


def test_a_client_that_does_not_read(proxy_to):
    def flood(conn: Connection) -> None:
        conn.read_request()
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + b"x" * 99_999_999)

    with Backend(flood) as backend:
        proxy = proxy_to(backend, options=["--send-timeout", "500ms"])
        with Client(proxy) as client:
            client.send(GET)
            line = proxy.access()[0]
            assert (line["outcome"], line["phase"]) == ("timeout_send", "blocked")
            proxy.settled()
            assert proxy.metric("llmpipe_upstreams") == 0
            with pytest.raises(ConnectionResetError):
                client.read_eof()
        backend.errors.clear()  # the flood was cut, as it should be


def test_a_client_that_reads_slowly_is_no_stalled_one(proxy_to):
    body = b"x" * (16 << 20)
    proxy = proxy_to(lambda conn: (conn.read_request(), respond(conn, body)), options=["--send-timeout", "2500ms"])
    with Client(proxy) as client:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.send(GET)
        client.read_head()
        got = len(client.recv())
        end = time.monotonic() + 3.2
        while time.monotonic() < end:
            got += len(client.sock.recv(200_000))
            time.sleep(0.05)
        got += len(client.read(len(body) - got))
        assert got == len(body)
    assert proxy.access()[0]["outcome"] == "ok"


def test_a_blocked_client_is_not_the_backends_fault(proxy_to):
    """The idle timer stands still while the client does not read."""
    body = b"x" * (16 << 20)
    proxy = proxy_to(lambda conn: (conn.read_request(), respond(conn, body)), options=["--idle-timeout", "2s"])
    with Client(proxy) as client:
        client.send(GET)
        time.sleep(3)
        assert client.read_response().body == body


def test_idle_client_connections_are_closed(proxy_to):
    proxy = proxy_to(lambda conn: None, options=["--keepalive-timeout", "300ms", "--head-timeout", "0"])
    start = time.monotonic()
    with Client(proxy) as client:
        assert client.read_eof() == b""
        assert time.monotonic() - start > 0.29


@pytest.mark.slow
def test_idle_upstreams_are_closed(proxy_to):
    closed = []

    def once(conn: Connection) -> None:
        conn.read_request()
        start = time.monotonic()
        respond(conn)
        closed.append(conn.wait_eof() - start)

    with Backend(once) as backend:
        proxy = proxy_to(backend, options=["--upstream-idle-timeout", "300ms"])
        with Client(proxy) as client:
            client.request(GET)
            wait_until(lambda: closed)
        assert closed[0] > 0.29
        proxy = proxy_to(backend)
        with Client(proxy) as client:
            client.request(GET)
            wait_until(lambda: len(closed) == 2)
        assert closed[1] > max(3.9, closed[0])
    assert PoolSettings().upstream_idle_timeout < 5  # less than uvicorn's 5 s


def test_zero_turns_them_off(proxy_to):
    names = ("connect", "ttft", "idle", "total", "send", "head", "keepalive")
    options = [word for name in names for word in (f"--{name}-timeout", "0")]

    def slow(conn: Connection) -> None:
        conn.read_request()
        time.sleep(0.5)
        conn.send(sse_head())
        time.sleep(0.5)
        conn.send(chunk(b"data: 1\n\n") + b"0\r\n\r\n")

    proxy = proxy_to(slow, options=options)
    with Client(proxy) as client:
        client.send(GET[:10])
        time.sleep(0.5)
        client.send(GET[10:])
        assert client.read_response().status == 200


@pytest.mark.slow
def test_timeouts_of_minutes_do_not_fire_early(proxy_to):
    """The wheel looks 17 s ahead; longer deadlines are armed again and again."""
    proxy = proxy_to(lambda conn: (conn.read_head(), conn.wait_eof(60)), options=["--ttft-timeout", "19s"])
    with Client(proxy) as client:
        client.sock.settimeout(50)
        start = time.monotonic()
        assert client.request(GET).status == 504
        assert 18.9 < time.monotonic() - start < 33  # and not after two looks


def test_total_counts_while_the_client_does_not_read(proxy_to):
    def flood(conn: Connection) -> None:
        conn.read_request()
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n")
        with contextlib.suppress(ConnectionError):  # it is cut, as it should be
            while True:
                conn.send(bytes(1 << 20))

    proxy = proxy_to(flood, options=["--total-timeout", "1s"])
    with Client(proxy) as client:
        client.send(GET)
        assert check(proxy, "timeout_total", 200)["phase"] == "blocked"


def test_total_counts_while_the_client_sends(proxy_to):
    proxy = proxy_to(lambda conn: (conn.read_head(), conn.wait_eof()), options=["--total-timeout", "1s"])
    with Client(proxy) as client:
        client.send(POST)
        for _ in range(4):
            time.sleep(0.02)
            client.send(b"x")
        response = client.read_response()
        assert (response.status, response.error()["code"]) == (504, "timeout_total")
    check(proxy, "timeout_total", 504)


def test_a_backend_that_does_not_read_the_request(proxy_to):
    """The client is not the one that stalled."""
    with Backend(lambda conn: conn.read_head()) as backend:
        proxy = proxy_to(backend, options=["--idle-timeout", "2s"])
        with Client(proxy) as client:

            def upload() -> None:
                with contextlib.suppress(OSError):  # its end
                    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (60 << 20))
                    client.send(bytes(60 << 20))

            thread = threading.Thread(target=upload)
            thread.start()
            proxy.wait_metric("llmpipe_exchanges_total", 1, outcome="timeout_idle")
        thread.join()
        check(proxy, "timeout_idle", 504)


def test_a_counted_body_that_does_not_begin(proxy_to):
    def script(conn: Connection) -> None:
        conn.read_request()
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        conn.wait_eof()

    proxy = proxy_to(script, options=["--ttft-timeout", "2s"])
    with Client(proxy) as client:
        client.send(GET)
        client.read_head()
        assert client.read_eof() == b""
    assert check(proxy, "timeout_ttft", 200)["phase"] == "silent"


@pytest.mark.parametrize("talks", [False, True])
def test_a_tunnel(proxy_to, talks):
    """Bytes of either side keep it alive."""

    def switch(conn: Connection) -> None:
        conn.read_head()
        conn.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
        conn.wait_eof()

    proxy = proxy_to(switch, options=["--idle-timeout", "1500ms"])
    with Client(proxy) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
        start = time.monotonic()
        client.read_head()
        for _ in range(10 if talks else 0):
            client.send(b"x")
            time.sleep(0.2)
        with contextlib.suppress(ConnectionResetError):
            client.read_eof()
        assert time.monotonic() - start > (3.2 if talks else 1.49)
    assert check(proxy, "timeout_idle", 101)["phase"] == "tunnel"
